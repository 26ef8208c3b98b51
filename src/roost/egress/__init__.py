"""Names and addresses a machine may reach, enforced outside of it.

``policy.py`` is the rule, pure; ``interface.py`` is what the network calls, ``supervisor.py`` does it.

One process a daemon (``__main__.py``), unprivileged, outlives it. It has of each slot the sockets that listen in
its gateway namespace, so which machine is asking is never in doubt, and dials out from the host's own:

    control.py     what daemon and process say to each other     process.py   the process: its slots
    resolver.py    the machines' only DNS                        upstream.py  asks the host's resolvers, remembers
    proxy.py       a connection, from its first bytes            web.py       HTTP, request by request
    hello.py       the first flight of TLS                       http.py      heads and framing of HTTP/1
    dialling.py    straight out, by SOCKS or an upstream proxy   splice.py    bytes, in the kernel
    slot.py        what holds for one machine                    ledger.py    what it tried

``hello.py``, ``http.py`` and ``ledger.py`` do no I/O.
"""

from roost.egress.policy import Entry, Mode, Policy

__all__ = ["Entry", "Mode", "Policy"]
