"""Whether KVM runs a guest here: found by running one.

``/dev/kvm`` can exist, open and make a machine, and then hang an ordinary kernel as soon as it enters long
mode. So the guest's kernel is booted under it without a disk: where KVM works it panics for want of a root
within a second or two and the VMM stops; where it does not, nothing comes before the deadline. The answer
holds for this boot of the host, this VMM and this guest.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from roost.drivers.qemu import jail, options
from roost.drivers.qemu.runtime import Runtime
from roost.guest import Guest
from roost.host import apart, ending, files, processes

DEADLINE_S = 5.0
_DEVICE = Path("/dev/kvm")
_CACHE = "kvm.json"
_NO_DEVICE = "this host has no /dev/kvm"
_PANIC = b"Kernel panic"
_MEMORY_MIB = 256
_OUTPUT_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Acceleration:
    works: bool
    reason: str  # in words, for the user
    tried: bool = True  # what could not be is tried again by the next daemon


def acceleration(run_dir: Path, runtime: Runtime, guest: Guest, uid: int) -> Acceleration:
    """Blocking, up to ``DEADLINE_S`` the first time after a boot. ``uid``: one that nothing else runs as."""
    if (found := known(run_dir, runtime, guest)) is not None:
        return found
    found = _find_out(runtime, guest, uid)
    if found.tried:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        value = {"key": _key(runtime, guest), "works": found.works, "reason": found.reason}
        files.write_json(run_dir / _CACHE, value, durable=False)
    return found


def known(run_dir: Path, runtime: Runtime, guest: Guest | None) -> Acceleration | None:
    """Without trying."""
    if not _DEVICE.exists():
        return Acceleration(False, _NO_DEVICE)
    found = files.read_json(run_dir / _CACHE)
    if guest is None or found is None or found.get("key") != _key(runtime, guest):
        return None
    return Acceleration(bool(found["works"]), str(found["reason"]))


def _key(runtime: Runtime, guest: Guest) -> dict[str, str]:
    return {"boot_id": processes.boot_id(), "runtime": runtime.digest, "guest": guest.digest}


def _find_out(runtime: Runtime, guest: Guest, uid: int) -> Acceleration:
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Acceleration(False, _NO_DEVICE)
    except OSError as exc:
        return Acceleration(False, f"/dev/kvm does not open: {exc.strerror}")
    try:
        return _boot(runtime, guest, uid, device)
    except OSError as exc:
        return Acceleration(False, f"the VMM could not be tried with KVM: {exc}", tried=False)
    finally:
        os.close(device)
        ending.end_user(uid, 10.0)


def _boot(runtime: Runtime, guest: Guest, uid: int, device: int) -> Acceleration:
    with contextlib.ExitStack() as held:
        # Nobody talks to it; both must listen somewhere.
        idle = [held.enter_context(_listener()) for _ in range(2)]
        output, sink = os.pipe2(os.O_CLOEXEC)
        held.callback(os.close, output)
        fds = options.Descriptors(qmp=idle[0].fileno(), agent=idle[1].fileno(), kvm=device)
        argv = options.arguments(
            options.Vmm(
                memory_mib=_MEMORY_MIB,
                start=options.Boot("console=ttyS0 quiet panic=-1 reboot=t"),
                fds=fds,
                mac="02:00:00:00:00:01",
                accel=options.Accel.KVM,
                console=options.Console.STDOUT,
            )
        )
        cell = jail.Jail(runtime.root, uid, None, {"guest": guest.kernel.parent})

        def start() -> int:
            jail.enter(cell)
            return jail.spawn(argv, fds.all(), sink)

        try:
            pid = apart.run(start)
        finally:
            os.close(sink)
        said, ended = _listen(output, time.monotonic() + DEADLINE_S)
        processes.reap(pid)
    if _PANIC in said:
        return Acceleration(True, "the guest's kernel ran under KVM")
    if ended:
        last = said.decode("utf-8", "replace").strip().splitlines()
        return Acceleration(
            False, f"the VMM gave up with KVM: {last[-1][:200] if last else 'it said nothing'}"
        )
    return Acceleration(
        False,
        f"/dev/kvm opens, but the guest's kernel did not come up under it within {DEADLINE_S:g} s",
    )


def _listener() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind("")  # an abstract name of the kernel's choice
    sock.listen(1)
    return sock


def _listen(output: int, deadline: float) -> tuple[bytes, bool]:
    """What was said until it told enough, and whether the VMM has ended."""
    said = b""
    while (left := deadline - time.monotonic()) > 0 and _PANIC not in said:
        if select.select([output], [], [], left)[0]:
            data = os.read(output, 64 << 10)
            if not data:
                return said, True
            said = (said + data)[-_OUTPUT_BYTES:]
    return said, False
