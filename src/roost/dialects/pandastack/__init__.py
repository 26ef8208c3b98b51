"""PandaStack's API: sandboxes, for its Python and TypeScript clients as they are.

```
 pds_... key, or /v1/sandboxes -> app.py (routes) -> sandboxes, commands, files, terminals, ... -> services
                                       errors.py: {"error": "text"} with the status its clients act on
                                       shapes.py: what a machine is called there
```

A sandbox is a machine: its metadata are labels, ``persistent`` is that it sleeps when idle, a pause is the sleep that keeps
its memory resident, a hibernation the deepest one that keeps it. Every port of a sandbox is shown to whoever knows its id,
for the clients make those addresses themselves. What is not served says so with 501.
"""

from roost.dialects.pandastack.app import targets

__all__ = ["targets"]
