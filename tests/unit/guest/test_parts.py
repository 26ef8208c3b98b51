from __future__ import annotations

import asyncio
import lzma
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from roost.errors import RoostError
from roost.guest import (
    FIRST_TOKEN,
    Guests,
    Network,
    boot,
    command_line,
    cpio,
    firmware,
    modules,
    package,
    tsc,
    vmlinux,
)
from roost.host import run

AGENT_SOURCE = Path(__file__).parents[3] / "agent/src/guest"


def read_cpio(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """What a kernel would see: name -> (mode, content)."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += -(-(110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[at : at + size])
        at += -(-size // 4) * 4


def test_an_archive_holds_its_files_below_their_directories() -> None:
    files = {
        "init": (0o555, b"\x7fELF"),
        "modules/00-a.ko": (0o400, b"12345"),
        "x/y/z": (0o644, b""),
    }
    archive = cpio.pack(files)
    found = read_cpio(archive)
    assert found["init"] == (0o100555, b"\x7fELF")
    assert found["modules/00-a.ko"] == (0o100400, b"12345")
    assert found["x/y"] == (0o040755, b"")
    names = list(found)
    assert names.index("x") < names.index("x/y") < names.index("x/y/z")
    assert cpio.pack(dict(reversed(files.items()))) == archive


def kernel_tree(directory: Path) -> Path:
    (directory / "kernel").mkdir()
    for name in ("virtio", "virtio_ring", "virtio_mmio"):
        (directory / f"kernel/{name}.ko").write_bytes(name.encode())
    (directory / "kernel/virtio-rng.ko.xz").write_bytes(lzma.compress(b"rng"))
    (directory / "modules.dep").write_text(
        "kernel/virtio_mmio.ko: kernel/virtio.ko kernel/virtio_ring.ko\n"
        "kernel/virtio.ko: kernel/virtio_ring.ko\n"
        "kernel/virtio_ring.ko:\n"
        "kernel/virtio-rng.ko.xz: kernel/virtio.ko kernel/virtio_ring.ko\n"
    )
    (directory / "modules.builtin").write_text("kernel/drivers/char/virtio_console.ko\n")
    return directory


def test_modules_come_after_what_they_need_and_once(tmp_path: Path) -> None:
    tree = kernel_tree(tmp_path)
    order = modules.load_order(tree, ("virtio_mmio", "virtio_console", "virtio_rng"))
    files = modules.ram_disk_files(order)
    assert list(files) == [
        "modules/00-virtio_ring.ko",
        "modules/01-virtio.ko",
        "modules/02-virtio_mmio.ko",
        "modules/03-virtio_rng.ko",
    ]
    assert files["modules/03-virtio_rng.ko"] == (0o400, b"rng")
    with pytest.raises(LookupError, match="virtio_blk"):
        modules.load_order(tree, ("virtio_blk",))


def test_the_modules_image_holds_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    kernel_tree(tree)
    made = tmp_path / "modules.img"
    modules.image(tree, made, "d" * 64)
    assert made.stat().st_size % 4096 == 0
    assert subprocess.run(["e2fsck", "-f", "-n", made], capture_output=True).returncode == 0
    shown = run.run(["debugfs", "-R", "cat kernel/virtio.ko", str(made)], timeout_s=10)
    assert shown.stdout == "virtio"


def bzimage(payload: bytes) -> bytes:
    image = bytearray(4096)
    image[0x1F1] = 3
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 100, len(payload) + 4)
    return bytes(image[: 4 * 512]) + bytes(100) + payload + struct.pack("<I", 5)


@pytest.mark.skipif(shutil.which("lz4") is None, reason="needs lz4")
def test_a_kernel_is_unpacked(tmp_path: Path) -> None:
    kernel = b"\x7fELF" + bytes(range(256)) * 100
    payload = subprocess.run(
        ["lz4", "-l", "-c"], input=kernel, capture_output=True, check=True
    ).stdout
    (tmp_path / "vmlinuz").write_bytes(bzimage(payload))
    vmlinux.extract(tmp_path / "vmlinuz", tmp_path / "vmlinux")
    assert (tmp_path / "vmlinux").read_bytes() == kernel


@pytest.mark.parametrize("data", [b"", b"MZ" + bytes(4096), bzimage(b"????????")])
def test_what_is_no_kernel_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(data)
    with pytest.raises(OSError):
        vmlinux.extract(tmp_path / "vmlinuz", tmp_path / "vmlinux")


def test_the_command_line_names_devices_and_clock() -> None:
    words = command_line(
        tsc_khz=2_500_000, network=Network("10.0.0.2/30", "10.0.0.1", "10.0.0.1")
    ).split()
    assert "tsc_early_khz=2500000" in words
    assert "root=/dev/vda" in words
    assert "roost.address=10.0.0.2/30" in words
    # KVM tells the guest its clock; real silicon keeps its mitigations.
    under_kvm = command_line(tsc_khz=None)
    assert "tsc" not in under_kvm
    assert "mitigations" not in under_kvm
    for bad in ("10.0.0.2/33", "10.0.0.2/30 init=/bin/sh", ""):
        with pytest.raises(ValueError):
            Network(bad, "10.0.0.1", "10.0.0.1")


def test_both_halves_agree() -> None:
    """The agent's constants are the daemon's."""
    source = (AGENT_SOURCE / "mod.rs").read_text()
    assert f'FIRST_TOKEN: &[u8] = b"{FIRST_TOKEN}"' in source
    assert f'PORT: &str = "{boot.PORT}"' in (AGENT_SOURCE / "port.rs").read_text()
    known = (AGENT_SOURCE / "parameters.rs").read_text()
    line = command_line(tsc_khz=1, network=Network("10.0.0.2/30", "10.0.0.1", "10.0.0.1"))
    for word in line.split():
        if word.startswith(("roost.", "root=")):
            assert f'"{word.split("=")[0]}"' in known


def test_the_counter_is_measured() -> None:
    first, second = tsc.khz.__wrapped__(), tsc.khz.__wrapped__()
    assert first > 100_000
    assert abs(first - second) / first < 1e-3


# --- Guests, with stand-ins for the archive and the kernel ----------------------------------------


@pytest.fixture
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guests:
    def fetch(directory: Path) -> Path:
        made = directory / "linux.deb"
        made.write_bytes(b"package")
        fetched.append(made)
        return made

    def unpack(_: Path, target: Path) -> package.Kernel:
        tree = target / "lib/modules/6.0"
        tree.mkdir(parents=True)
        kernel_tree(tree)
        (target / "vmlinuz").write_bytes(b"kernel")
        return package.Kernel("6.0", target / "vmlinuz", tree)

    def extract(image: Path, made: Path) -> None:
        made.write_bytes(image.read_bytes())

    fetched: list[Path] = []
    (tmp_path / "rom").write_bytes(b"rom")
    (tmp_path / "agent").write_bytes(b"agent")
    monkeypatch.setattr(package, "fetch", fetch)
    monkeypatch.setattr(package, "unpack", unpack)
    monkeypatch.setattr(modules, "index", lambda tree, version: None)
    monkeypatch.setattr(modules, "NEEDED", ("virtio_mmio",))
    monkeypatch.setattr(vmlinux, "extract", extract)
    monkeypatch.setattr(firmware, "find", lambda: tmp_path / "rom")
    made = Guests(tmp_path / "data", tmp_path / "agent")
    made.fetched = fetched  # type: ignore[attr-defined]
    return made


def quiet(*_: Any) -> None:
    """Nobody watches."""


async def test_a_guest_is_made_once_and_again_when_the_agent_changes(
    guests: Guests, tmp_path: Path
) -> None:
    first, same = await asyncio.gather(guests.ensure(quiet), guests.ensure(quiet))
    assert first == same
    assert len(guests.fetched) == 1  # type: ignore[attr-defined]
    assert read_cpio(first.initrd.read_bytes())["init"] == (0o100555, b"agent")
    assert first.firmware.read_bytes() == b"rom"
    (tmp_path / "agent").write_bytes(b"newer")
    second = await guests.ensure(quiet)
    assert second.digest != first.digest
    assert guests.get(first.digest) == first
    assert len(guests.fetched) == 1  # type: ignore[attr-defined]
    assert not list((tmp_path / "data/guest").glob("build-*"))


async def test_a_guest_without_its_manifest_is_made_again(guests: Guests) -> None:
    made = await guests.ensure(quiet)
    (made.kernel.parent / "manifest.json").unlink()
    made.kernel.unlink()
    assert guests.get(made.digest) is None
    assert await guests.ensure(quiet) == made
    assert made.kernel.exists()


async def test_a_build_that_fails_leaves_nothing(
    guests: Guests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(image: Path, made: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(vmlinux, "extract", broken)
    with pytest.raises(RoostError) as caught:
        await guests.ensure(quiet)
    assert caught.value.code == "INTERNAL"
    assert [path.name for path in (tmp_path / "data/guest").iterdir()] == ["package"]


async def test_a_missing_agent_is_said(guests: Guests, tmp_path: Path) -> None:
    (tmp_path / "agent").unlink()
    with pytest.raises(RoostError, match="scripts/up"):
        await guests.ensure(quiet)


async def test_sweep_keeps_what_is_named(guests: Guests, tmp_path: Path) -> None:
    first = await guests.ensure(quiet)
    (tmp_path / "agent").write_bytes(b"newer")
    second = await guests.ensure(quiet)
    guests.sweep({second.digest})
    assert guests.get(first.digest) is None
    assert await guests.ensure(quiet) == second
    assert len(guests.fetched) == 1  # type: ignore[attr-defined]


def test_no_archive_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(argv: list[str], **_: Any) -> run.Done:
        done = run.Done(100, "", "E: Unable to fetch some archives")
        if argv[0] == "apt-cache":
            return run.Done(
                0, "linux-image-cloud-amd64\n  Depends: linux-image-6.0-cloud-amd64\n", ""
            )
        raise run.CommandError(argv, done)

    monkeypatch.setattr(package.run, "run", fails)
    with pytest.raises(RoostError) as caught:
        package.fetch(tmp_path)
    assert caught.value.code == "DEPENDENCY_UNAVAILABLE"
    assert caught.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_names_volumes_in_their_order() -> None:
    line = command_line(tsc_khz=None, volumes=[("/data", False), ("/a/b.c", True)])
    assert line.split()[-2:] == [
        "roost.volume=/dev/vdc:rw:/data",
        "roost.volume=/dev/vdd:ro:/a/b.c",
    ]
    for path in ("/a b", "/a:b", "data", "/a\nb", "/"):
        with pytest.raises(ValueError, match="path"):
            command_line(tsc_khz=None, volumes=[(path, False)])
    longest = [("/" + "x" * 119, False)] * 8
    assert len(command_line(tsc_khz=2_400_000, volumes=longest)) < 2000
