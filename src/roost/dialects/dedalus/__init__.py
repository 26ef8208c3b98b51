"""Dedalus Machines, as ``dedalus-sdk`` 0.4.0 and 0.6.0 speak it.

    app          which calls there are, and what the gateway must know of them
    asked        bodies, queries and durations as that client sends them
    shapes       machines, executions, terminals, ports, SSH sessions as it reads them; both versions' at once
    errors       failures in its shape, with the headers its retries obey
    machines, executions, terminals, ports, ssh, usage   calls: translate, and call the services
    events       an execution's output as numbered events with a cursor; pure
    tickets      the credential that a terminal's ``stream_url`` carries
    absent       what is not served

A key whose prefix is ``dsk`` chooses it at the paths that are also the native API's; below ``/dedalus`` any key does.
Made by the composition root; calls ``Services`` and nothing below.
"""

from roost.dialects.dedalus.app import targets

__all__ = ["targets"]
