"""What arrives on the wire, as the kernel hands it to a packet socket, before any rule.

To an attacker, the metadata service or the private machine every packet; to the other addresses what is not TCP, and
of TCP the first of each connection: a download's packets are too many to look at.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
import time
from collections.abc import Callable

from tests.system.internet.names import ATTACKERS, LAN, METADATA
from tests.system.internet.record import Record

# <linux/filter.h>, <linux/if_packet.h>
_SO_ATTACH_FILTER = 26
_SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>
_ETH_P_ALL, _ETH_P_IP, _ETH_P_ARP = 3, 0x0800, 0x0806
_PACKET_OUTGOING = 4
_AD = 0xFFFFF000  # SKF_AD_OFF: what the kernel knows of the packet
_LD_W, _LD_H, _LD_B, _LDX_MSH, _LD_IND_B = 0x20, 0x28, 0x30, 0xB1, 0x50
_AND, _JEQ, _JSET, _RET = 0x54, 0x15, 0x45, 0x06
_NAMES = {1: "icmp", 6: "tcp", 17: "udp"}


def _number(address: str) -> int:
    return int(ipaddress.IPv4Address(address))


def _filter() -> bytes:
    attackers = ipaddress.IPv4Network(ATTACKERS)
    steps: list[tuple[int, str, str, int]] = [
        # code, where to go on true and on false ("" is the next), operand
        (_LD_B, "", "", _AD + 4),  # the packet's type
        (_JEQ, "drop", "", _PACKET_OUTGOING),
        (_LD_H, "", "", _AD + 0),  # its protocol
        (_JEQ, "drop", "", _ETH_P_ARP),
        (_JEQ, "", "take", _ETH_P_IP),
        (_LD_W, "", "", 16),
        (_JEQ, "take", "", _number(METADATA)),
        (_JEQ, "take", "", _number(LAN)),
        (_AND, "", "", int(attackers.netmask)),
        (_JEQ, "take", "", int(attackers.network_address)),
        (_LD_B, "", "", 9),
        (_JEQ, "", "take", 6),
        (_LDX_MSH, "", "", 0),
        (_LD_IND_B, "", "", 13),
        (_JSET, "take", "drop", 2),  # SYN
        (_RET, "", "", 0),
        (_RET, "", "", 256),
    ]
    at = {"drop": len(steps) - 2, "take": len(steps) - 1}
    return b"".join(
        struct.pack(
            "HBBI",
            code,
            at[true] - n - 1 if true else 0,
            at[false] - n - 1 if false else 0,
            operand & 0xFFFFFFFF,
        )
        for n, (code, true, false, operand) in enumerate(steps)
    )


def listen(interface: str) -> socket.socket:
    """To be called in the namespace."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
    program = _filter()
    buffer = ctypes.create_string_buffer(program)
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)),
    )
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def reader(sock: socket.socket, record: Record) -> Callable[[], None]:
    """To be called when something can be read."""

    def read() -> None:
        for _ in range(256):
            try:
                packet, ancillary, _, _ = sock.recvmsg(256, 64)
            except (BlockingIOError, InterruptedError):
                return
            note(packet, record, _arrived(ancillary))

    return read


def _arrived(ancillary: list[tuple[int, int, bytes]]) -> float:
    """When the kernel had it, which a busy host may read much later; on the clock of ``time.monotonic``."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("qq", data)
            return time.monotonic() - (time.time() - seconds - nanoseconds / 1e9)
    return time.monotonic()


def note(packet: bytes, record: Record, at: float) -> None:
    if len(packet) < 20 or packet[0] >> 4 != 4:
        record.add("packet", "", 0, "other", at, head=packet[:64])
        return
    protocol = _NAMES.get(packet[9], str(packet[9]))
    source, to = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    body = packet[4 * (packet[0] & 15) :]
    port = (
        struct.unpack_from("!H", body, 2)[0] if protocol in ("tcp", "udp") and len(body) > 3 else 0
    )
    record.add("packet", to, port, protocol, at, source=source, head=body[:128])
