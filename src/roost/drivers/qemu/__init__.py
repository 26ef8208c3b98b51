"""Machines with a kernel of their own: QEMU's ``microvm``, jailed, restored from snapshots.

```
driver.py    the rung, as the engine sees it          machine.py  one running VMM: its monitor, its end, its dialler
launch.py    spec -> sockets, disks, tap -> VMM        options.py  argv, from typed values
jail.py      where a VMM runs                         runtime.py  the VMM's files, content-addressed
capture.py   live and delta snapshots, load           mappedram.py  their format     manifest.py  their checks
qmp.py       the monitor's protocol                   tap.py  the network card       probe.py  does KVM work
```
"""

from roost.drivers.qemu.driver import QemuDriver

__all__ = ["QemuDriver"]
