"""SFTP by asyncssh's client and by hand, on a real agent's files."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.ssh.sftp import wire
from roost.ssh.sftp.handles import WAITING, _Upload
from roost.ssh.sftp.server import HANDLES
from tests.unit.ssh.kit import Ssh


async def test_reads_and_writes_at_offsets(ssh: Ssh, tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        async with sftp.open(str(path), "wb+") as file:
            await file.write(b"0123456789" * 1000)
            await file.write(b"ABC", 5)
            assert await file.read(10, 0) == b"01234ABC89"
            await file.write(b"end", 20_000)
            assert (await file.stat()).size == 20_003
            assert await file.read(100, 20_000) == b"end"
            assert await file.read(100, 30_000) == b""
        assert path.read_bytes()[10_000:20_000] == bytes(10_000)
        async with sftp.open(str(path), "ab") as file:
            await file.write(b"+")
            await file.write(b"+", 0)  # to the end all the same
        assert path.read_bytes().endswith(b"end++")
        await sftp.truncate(str(path), 4)
        assert path.read_bytes() == b"0123"
        async with sftp.open(str(path), "wb") as file:
            pass
        assert path.read_bytes() == b""
        with pytest.raises(asyncssh.SFTPFailure):
            await sftp.open(str(path), "xb")


async def test_a_growing_file_is_read_on(ssh: Ssh, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one")
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        async with sftp.open(str(path), "rb") as file:
            assert await file.read(10, 0) == b"one"
            with path.open("ab") as more:
                more.write(b"two")
            assert await file.read(10, 3) == b"two"


async def test_attributes_links_and_names(ssh: Ssh, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        await sftp.setstat(
            str(path), asyncssh.SFTPAttrs(permissions=0o600, atime=1, mtime=1_000_000)
        )
        assert path.stat().st_mode & 0o777 == 0o600
        assert int(path.stat().st_mtime) == 1_000_000
        await sftp.symlink("file", str(tmp_path / "link"))
        assert os.readlink(tmp_path / "link") == "file"
        assert await sftp.readlink(str(tmp_path / "link")) == "file"
        assert (await sftp.lstat(str(tmp_path / "link"))).type == asyncssh.FILEXFER_TYPE_SYMLINK
        assert (await sftp.stat(str(tmp_path / "link"))).type == asyncssh.FILEXFER_TYPE_REGULAR
        async with sftp.open(str(tmp_path / "link"), "rb") as file:
            assert await file.read() == b"x"
        await sftp.link(str(path), str(tmp_path / "hard"))
        assert (tmp_path / "hard").stat().st_ino == path.stat().st_ino
        await sftp.mkdir(str(tmp_path / "d"))
        with pytest.raises(asyncssh.SFTPFailure):
            await sftp.mkdir(str(tmp_path / "d"))
        with pytest.raises(asyncssh.SFTPFailure):
            await sftp.remove(str(tmp_path / "d"))
        with pytest.raises(asyncssh.SFTPFailure):
            await sftp.rmdir(str(path))
        with pytest.raises(asyncssh.SFTPFailure):
            await sftp.rename(str(path), str(tmp_path / "hard"))
        await sftp.posix_rename(str(path), str(tmp_path / "hard"))
        await sftp.rmdir(str(tmp_path / "d"))
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await sftp.stat(str(tmp_path / "nothing"))
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await sftp.open(str(tmp_path / "no" / "such" / "directory"), "wb")
        names = await sftp.listdir(str(tmp_path))
        assert {"hard", "link"} <= set(names)
        assert await sftp.realpath("..//./x/..") == await sftp.realpath("..")
        assert await sftp.realpath("/../../etc") == "/etc"


async def test_many_entries(ssh: Ssh, tmp_path: Path) -> None:
    for n in range(450):
        (tmp_path / f"f{n:03}").touch()
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        assert len([n for n in await sftp.listdir(str(tmp_path)) if n.startswith("f")]) == 450


async def test_errors_of_a_write_come_at_the_latest_with_the_close(ssh: Ssh) -> None:
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        with pytest.raises(asyncssh.SFTPError):
            async with sftp.open("/dev/full", "wb") as file:
                await file.write(b"x" * 100_000)
                await file.write(b"y" * 100_000, 100_000)
        async with sftp.open("/proc/self/comm", "rb") as file:  # a file without a size
            await file.read()
        with pytest.raises(asyncssh.SFTPError):
            await sftp.open("/dev/zero", "rb")


async def raw(ssh: Ssh, *packets: bytes) -> bytes:
    """What is answered to these bytes, until the server is done."""
    async with ssh.connect() as connection:
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None)
        for packet in packets:
            writer.write(packet)
        writer.write_eof()
        return bytes(await asyncio.wait_for(reader.read(), 20))


INIT = wire.packet(wire.Kind.INIT, struct.pack(">I", 3))


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        wire.packet(wire.Kind.OPEN, b"\x00\x00\x00\x01"),
        wire.packet(wire.Kind.READ, struct.pack(">I", 1), wire.string(b"no-handle"), bytes(12)),
        wire.packet(wire.Kind.EXTENDED, struct.pack(">I", 1), wire.string(b"nothing@of.ours")),
        wire.packet(wire.Kind.STAT, struct.pack(">I", 1), wire.string(b"/a\0b")),
        wire.packet(wire.Kind.SYMLINK, struct.pack(">I", 1), wire.string(b"\xff"), wire.string(b"/tmp/\xff")),
        wire.packet(wire.Kind.DATA, struct.pack(">I", 1), wire.string(b"x")),
    ],
)  # fmt: skip
async def test_junk_is_answered_or_ended(ssh: Ssh, junk: bytes) -> None:
    await raw(ssh, INIT, junk)
    await raw(ssh, junk)
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        assert await sftp.exists("/")


async def test_handles_are_bounded(ssh: Ssh) -> None:
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        opened: list[Any] = []
        with pytest.raises(asyncssh.SFTPFailure):
            for _ in range(HANDLES + 1):
                opened.append(await sftp.open("/etc/passwd", "rb"))
        assert len(opened) == HANDLES


async def test_a_link_out_of_nowhere_leads_nowhere_here(ssh: Ssh, tmp_path: Path) -> None:
    """Paths go to the agent as they are: what they lead to is the machine's, as for any program in it."""
    (tmp_path / "link").symlink_to("../" * 40 + "etc/hostname")
    async with ssh.connect() as connection, connection.start_sftp_client() as sftp:
        there = await connection.run("cat /etc/hostname")
        async with sftp.open(str(tmp_path / "link"), "rb") as file:
            assert await file.read() == str(there.stdout).encode()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_packet_or_malformed(data: bytes) -> None:
    packets = wire.Packets()
    packets.feed(data)
    try:
        while (packet := packets.next()) is not None:
            fields = wire.Reader(packet)
            fields.u8()
            fields.u32()
            fields.string()
            fields.attrs()
    except wire.Malformed:
        pass


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 7))
def test_packets_come_whole_however_they_are_cut(bodies: list[bytes], size: int) -> None:
    stream = b"".join(struct.pack(">I", len(body)) + body for body in bodies)
    packets, found = wire.Packets(), []
    for at in range(0, len(stream), size):
        packets.feed(stream[at : at + size])
        while (packet := packets.next()) is not None:
            found.append(packet)
    assert found == bodies


async def test_who_gives_up_a_close_gives_up_the_upload() -> None:
    never = asyncio.Event()

    class Stuck:
        async def write(self, *_: Any) -> None:
            await never.wait()

    visit: Any = SimpleNamespace(inside=SimpleNamespace(files=Stuck()), tenant="t", machine_id="m")
    upload = _Upload(visit, b"/x", appends=False)
    for n in range(WAITING):
        await upload.write(n, b"x")
    task = upload._task
    assert task is not None
    closing = asyncio.ensure_future(upload.settle())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.sleep(0)
    assert task.cancelled()
