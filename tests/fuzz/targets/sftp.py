"""Packets of SFTP: cut alike however they come, and read within their own bounds."""

from __future__ import annotations

from roost.ssh.sftp.wire import MAX_PACKET, Attrs, Kind, Malformed, Packets, Reader, packet, string
from tests.fuzz.targets._pieces import cut

_SET = Attrs(size=5, uid=1, gid=2, mode=0o644, atime=3, mtime=4)
COVERS = ("roost.ssh.sftp.wire",)
SEEDS = (
    b"\x05" + packet(Kind.INIT, b"\x00\x00\x00\x03"),
    b"\x3c"
    + packet(Kind.OPEN, b"\x00\x00\x00\x01", string(b"/x"), b"\x00\x00\x00\x1a", _SET.encode()),
    b"\x01"
    + packet(
        Kind.SETSTAT,
        b"\x00\x00\x00\x02",
        string(b"y"),
        b"\x80\x00\x00\x00\x00\x00\x00\x01",
        string(b"a"),
        string(b"b"),
    ),
    b"\x07" + b"\xff\xff\xff\xff",
)


def _packets(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    packets, found = Packets(), []
    for piece in pieces:
        packets.feed(piece)
        try:
            while (each := packets.next()) is not None:
                found.append(each)
        except Malformed:
            return found, False
    return found, True


def one(data: bytes) -> None:
    pieces, whole = cut(data)
    found = _packets(pieces)
    assert found == _packets([whole])
    for each in found[0]:
        assert 1 <= len(each) <= MAX_PACKET
        reader = Reader(each)
        try:
            reader.u8()
            reader.u32()
            assert len(reader.string()) <= len(each)
            attrs = reader.attrs()
        except Malformed:
            continue
        if (attrs.uid is None) == (attrs.gid is None):
            assert Reader(attrs.encode()).attrs().size == attrs.size
