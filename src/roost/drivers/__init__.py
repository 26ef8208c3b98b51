"""Drivers: how the machines of each rung are made, kept and ended (see ``interface.py``).

``registry.py`` maps names to constructors. ``container.py`` is what the OCI runtimes have in common (disk
mounted, tree prepared, bundle, launch in the machine's namespaces, watching, removal); ``runc.py`` and
``gvisor.py`` add what differs. ``oci.py`` and ``seccomp.py`` write the bundle, pure; ``tree.py`` puts our
files on a machine's disk. ``fake.py`` is the driver tests of other layers run on.
"""

from roost.drivers.registry import create, names

__all__ = ["create", "names"]
