"""What boots inside a microVM, below the drivers: kernel, initial RAM disk, the kernel's modules.

```
Debian's cloud kernel (its package, never installed here) --+
the agent, which is init ------------------------------------+--> <data_dir>/guest/<digest>/
QEMU's qboot ------------------------------------------------+      firmware vmlinux initrd modules.img manifest.json
```
A guest is named by the digest of all that went into it, and never changes: a new agent or kernel makes
another one beside it, and what was baked from the old keeps it. ``Guests.ensure`` makes what is missing;
``command_line`` is what such a guest is booted with.

The monitor must offer: the root disk as the first virtio block device, ``modules.img`` read-only as the
second, volumes in the order of the command line after it, a virtio port named ``PORT``, the network as the first virtio interface, and the console as the
first ISA serial port. The agent on the port begins with ``FIRST_TOKEN``.
"""

from roost.guest.boot import FIRST_TOKEN, PORT, Network, command_line
from roost.guest.guests import Guest, Guests

__all__ = ["FIRST_TOKEN", "PORT", "Guest", "Guests", "Network", "command_line"]
