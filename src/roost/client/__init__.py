"""The Python SDK: the native HTTP API as objects, in an async and a sync half.

``_async/`` is the source; ``_sync/`` is generated from it by ``scripts/unasync.py`` (but for ``_io.py``,
``_parallel.py``, ``_socket.py`` and ``_forward.py``, which are written by hand on both sides) and a check fails when they drift apart. What
has no I/O is shared: ``_config``, ``_types``, ``_wire`` (event streams, bodies), ``_tar`` (trees that
machines send are hostile until proven otherwise).

    Machine, Execution, ExecStream, Files, Terminal
        -> _http.py  one keep-alive pool, errors made typed, idempotency keys
        -> the daemon

Users import from ``roost``; nothing here is a public name by its module path. Every failure is a
``roost.RoostError``. What is tried again is logged on the logger ``roost.client``.
"""
