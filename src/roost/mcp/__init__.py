"""``roost mcp``: machines as tools of the Model Context Protocol, by the official Python SDK.

    host of an agent --stdio or streamable HTTP--> server.py -> tools -> roost (the SDK) --HTTP--> daemon

``server.py`` puts it together, ``machines.py``, ``commands.py``, ``files.py`` and ``screens.py`` hold the tools, ``shapes.py``
what they answer with. ``callers.py`` knows whose key a call uses: the command line's own over stdio, over HTTP that of
each request. It is a process of its own, not part of the daemon: it needs no privilege, may run on another host, and
what it takes from strangers is never read by root. It keeps nothing between calls.

Every failure is a tool's error, with its code and what to do; every answer is bounded and says what was left out.
"""
