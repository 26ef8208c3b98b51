"""Small hands on the host: system calls, loop devices, mounts, processes, cgroups, namespaces.

Nothing here knows what a machine is. Everything is synchronous and quick (callers run it in their own
threads), raises ``OSError`` where the kernel refuses, and is safe to repeat. ``drivers``, ``network``,
``storage`` and ``templates`` call it; nothing above them does, but for ``doctor``.
"""
