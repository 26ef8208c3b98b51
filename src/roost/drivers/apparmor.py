"""A profile of AppArmor for machines on the host's kernel, where that has it: said once more, by somebody else.

Nothing in it is the only thing that stands in the way: mounts, the host's settings in ``/proc`` and ``/sys`` and other
machines' processes are kept from a machine by its namespaces, its capabilities and the calls it may make. Where the
kernel has no AppArmor, or its tools are not installed, machines run without, and the driver's details say so.
"""

from __future__ import annotations

import functools
import logging
import shutil
from pathlib import Path

from roost.host import run

log = logging.getLogger(__name__)

NAME = "roost-machine"
PROFILE = f"""\
profile {NAME} flags=(attach_disconnected,mediate_deleted) {{
  capability,
  file,
  network,
  unix,

  deny mount,
  deny umount,
  deny pivot_root,

  deny /proc/sys/** wkl,
  deny /proc/sysrq-trigger rwkl,
  deny /proc/kcore rwkl,
  deny /sys/** wkl,
  deny /sys/firmware/** rwkl,
  deny /sys/kernel/security/** rwkl,

  signal (receive),
  signal (send) peer={NAME},
  ptrace (trace, read, tracedby, readby) peer={NAME},
}}
"""
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_LOADED = Path("/sys/kernel/security/apparmor/profiles")
_TOOL = "apparmor_parser"
_TIMEOUT_S = 20.0


def loaded() -> str | None:
    """The profile's name, for the runtime; None where there is none. Blocking."""
    return NAME if why_not() is None else None


@functools.cache
def why_not() -> str | None:
    """None once a process of ours has loaded the profile, where the kernel enforces it. Blocking."""
    if (lacking := _lacking()) is not None:
        return lacking
    try:
        run.run([_TOOL, "--replace", "--skip-cache"], timeout_s=_TIMEOUT_S, text_in=PROFILE)
    except (OSError, TimeoutError) as exc:
        log.warning("AppArmor's profile %s could not be loaded: %s", NAME, exc)
        return f"AppArmor's profile {NAME} could not be loaded: {exc}"
    return None


def _lacking() -> str | None:
    try:
        if _ENABLED.read_text().strip() != "Y":
            return "AppArmor is turned off on this host"
    except OSError:
        return "this host's kernel has no AppArmor"
    if not _LOADED.exists():
        return "AppArmor's files are not mounted (securityfs)"
    if shutil.which(_TOOL) is None:
        return f"{_TOOL} is not installed (apt-get install apparmor)"
    return None
