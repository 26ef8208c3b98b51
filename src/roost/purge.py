"""Takes away everything Roost made on this host. Works when the daemon is dead; never beside a live one.

    machines of every driver -> control groups -> network -> pool -> data and run directories

Each step is idempotent, so a purge that was broken off is simply run again. Nothing is deleted below
a mount that is still there: removing the directories must not reach into a machine's disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from roost.errors import RoostError, error
from roost.host import mounts
from roost.settings import Settings

Say = Callable[[str], None]

# A directory is ours to delete only if it holds one of these.
MARKS = ("roost.db", "key", "pool", "pool.img", "logs", "machines", "network.json", "lock")


async def purge(settings: Settings, say: Say) -> None:
    """Raises what could not be removed, after trying everything."""
    failures: list[str] = []
    await _machines(settings, say, failures)
    await _network(settings, say, failures)
    if not failures:
        await _storage(settings, say, failures)
    if not failures:
        for target in reversed(mounts_below(settings.run_dir)):
            mounts.unmount(target)  # the drivers' own; machines' are gone by now
        for directory in (settings.run_dir, settings.data_dir):
            try:
                remove_directory(directory, say)
            except (OSError, RoostError) as exc:
                failures.append(str(exc))
    if failures:
        raise error(
            "IN_USE",
            "Not everything could be removed: " + "; ".join(failures) + ". Mend that and run "
            "`roost down --purge` again.",
        )


async def _machines(settings: Settings, say: Say, failures: list[str]) -> None:
    from roost.drivers import registry

    for name in registry.names():
        try:
            driver = registry.create(name, settings)
            for machine_id in sorted(await driver.list_ids()):
                await driver.remove(machine_id)
                say(f"removed machine {machine_id} ({name})")
            groups = getattr(driver, "cgroups", None)
            if groups is not None:
                for group in groups.names():
                    groups.remove(group)
                groups.remove_parent()
        except Exception as exc:  # the rest must still be tried
            failures.append(f"{name}: {exc}")


async def _network(settings: Settings, say: Say, failures: list[str]) -> None:
    from roost.egress.supervisor import Supervisor
    from roost.network import SlotNetwork

    if os.geteuid() != 0:  # who made none
        return
    try:
        await SlotNetwork(settings, Supervisor(settings)).purge()
        say("removed the network's namespaces, rules and its egress process")
    except Exception as exc:
        failures.append(f"network: {exc}")


async def _storage(settings: Settings, say: Say, failures: list[str]) -> None:
    from roost.storage import PoolStorage

    try:
        await PoolStorage(settings).purge()
        say("removed the pool with all disks and templates")
    except Exception as exc:
        held = holders(settings.data_dir / "pool")
        failures.append(f"pool: {exc}" + (f" (held by {', '.join(held)})" if held else ""))


def remove_directory(path: Path, say: Say) -> None:
    """Deletes a directory of ours. Raises ConflictError where it is not ours or something is mounted in it."""
    if not path.is_dir():
        return
    real = Path(os.path.realpath(path))
    names = {p.name for p in real.iterdir()}
    if names and not names.intersection(MARKS):
        raise error("INVALID_STATE", f"{path} does not look like Roost's: it is left alone")
    if len(real.parts) < 3:
        raise error("INVALID_STATE", f"{path} is left alone: too near the root")
    mounted = mounts_below(real)
    if mounted:
        raise error("IN_USE", f"{mounted[0]} is still mounted")
    shutil.rmtree(real)
    with contextlib.suppress(OSError):
        path.unlink()  # where it was a link to it
    say(f"removed {path}")


def mounts_below(path: Path, pid: str = "self") -> list[str]:
    """Mount points at or below ``path``, outermost first, as process ``pid`` sees them."""
    real = os.path.realpath(path)
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines():
        target = line.split()[4].encode().decode("unicode_escape")
        if target == real or target.startswith(f"{real}/"):
            found.append(target)
    return found


def holders(path: Path) -> list[str]:
    """Processes in other mount namespaces that still have ``path`` mounted: what a busy pool waits for."""
    found = []
    own = os.readlink("/proc/self/ns/mnt")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "ns/mnt") != own and mounts_below(path, entry.name):
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                found.append(f"process {entry.name}: {' '.join(command.split())[:60]}")
    return found[:5]
