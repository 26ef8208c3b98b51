"""The few words of netlink that slots need, spoken directly: a library that knows them all takes 40 ms of this process for
a slot, and the kernel 5.

Layouts and numbers: Linux' ``linux/netlink.h``, ``rtnetlink.h``, ``if_link.h``, ``veth.h`` and ``neighbour.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from types import TracebackType

ROUTE, NETFILTER = 0, 12
_REQUEST, _ACK, _EXCLUSIVE, _REPLACE, _CREATE = 0x1, 0x4, 0x200, 0x100, 0x400
_ERROR = 2
_HEADER = struct.Struct("=LHHLL")  # length, type, flags, sequence, port
_NESTED = 0x3FFF  # without the bits that say so
_TIMEOUT_S = 10.0

_NEW_LINK, _DEL_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _NEW_ROUTE, _NEW_NEIGHBOUR = 20, 24, 28
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, changed flags
_LINK_NONE = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
_UP = 1
_MAC, _NAME, _MTU, _INFO, _NETNS_FD = 1, 3, 4, 18, 28
_INFO_KIND, _INFO_DATA, _PEER = 1, 2, 1
_PERMANENT = 0x80
_MAIN, _STATIC, _UNICAST = 254, 4, 1


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & _NESTED] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


class Netlink:
    """A socket of the namespace that the calling thread is in now."""

    def __init__(self, family: int = ROUTE) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        self._sock.settimeout(_TIMEOUT_S)
        self._sock.bind((0, 0))

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def ask(self, kind: int, body: bytes, flags: int = 0) -> bytes:
        """The answer's body; of a request that is only acknowledged, nothing. Raises OSError with the kernel's reason."""
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        answer = self._sock.recv(16384)
        length, said, *_ = _HEADER.unpack_from(answer)
        if said != _ERROR:
            return answer[_HEADER.size : length]
        code = -struct.unpack_from("=l", answer, _HEADER.size)[0]
        if code:
            raise OSError(code, os.strerror(code))
        return b""

    # --- links ---------------------------------------------------------------------------------

    def veth(
        self, name: str, peer: str, namespace: int, mtu: int, mac: str = "", peer_mac: str = ""
    ) -> None:
        """A pair, both ends down; the peer in the namespace of that descriptor."""
        far = _LINK_NONE + _named(peer, mtu, peer_mac)
        far += attribute(_NETNS_FD, struct.pack("=i", namespace))
        info = attribute(_INFO_KIND, b"veth") + attribute(_INFO_DATA, attribute(_PEER, far))
        near = _LINK_NONE + _named(name, mtu, mac) + attribute(_INFO, info)
        self.ask(_NEW_LINK, near, _ACK | _CREATE | _EXCLUSIVE)

    def index(self, name: str) -> int:
        answer = self.ask(_GET_LINK, _LINK_NONE + attribute(_NAME, name.encode() + b"\0"))
        return int(_LINK.unpack_from(answer)[2])

    def up(self, index: int) -> None:
        self.ask(_NEW_LINK, _LINK.pack(socket.AF_UNSPEC, 0, index, _UP, _UP), _ACK)

    def down(self, index: int) -> None:
        self.ask(_NEW_LINK, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, _UP), _ACK)

    def delete(self, name: str) -> bool:
        """Whether there was one."""
        try:
            self.ask(_DEL_LINK, _LINK_NONE + attribute(_NAME, name.encode() + b"\0"), _ACK)
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise
            return False
        return True

    # --- addresses -----------------------------------------------------------------------------

    def address(self, index: int, address: str, prefix: int) -> None:
        own = socket.inet_aton(address)
        body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, index)
        body += attribute(2, own) + attribute(1, own)  # IFA_LOCAL, IFA_ADDRESS
        self.ask(_NEW_ADDRESS, body, _ACK | _CREATE | _EXCLUSIVE)

    def default_route(self, gateway: str) -> None:
        body = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _MAIN, _STATIC, 0, _UNICAST, 0
        ) + attribute(5, socket.inet_aton(gateway))  # RTA_GATEWAY
        self.ask(_NEW_ROUTE, body, _ACK | _CREATE | _EXCLUSIVE)

    def neighbour(self, index: int, address: str, mac: str) -> None:
        """One that is never asked for, nor believed anything else of."""
        body = struct.pack("=BxxxiHBB", socket.AF_INET, index, _PERMANENT, 0, 0)
        body += attribute(1, socket.inet_aton(address)) + attribute(2, _mac(mac))
        self.ask(_NEW_NEIGHBOUR, body, _ACK | _CREATE | _REPLACE)


def _named(name: str, mtu: int, mac: str) -> bytes:
    found = attribute(_NAME, name.encode() + b"\0") + attribute(_MTU, struct.pack("=I", mtu))
    return found + (attribute(_MAC, _mac(mac)) if mac else b"")


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
