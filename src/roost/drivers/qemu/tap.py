"""The machine's network card on the host: a tap, bridged to the interface that its slot offers.

```
slot's namespace:   eth0 (no address, a MAC of its own) -- br0 -- tap0 = descriptor of the VMM
```
The slot's address and MAC become the guest's. The tap goes with its last descriptor, the bridge with the
slot. Only ioctls: nothing here needs a netlink socket or a helper.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

_TUN = "/dev/net/tun"
_TAP, _BRIDGE = "tap0", "br0"
# The guest has the slot's MAC: a bridge keeps frames for a MAC of its own ports to itself.
_PORT_MAC = bytes.fromhex("027273740003")

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFHWADDR, _SIOCGIFINDEX = 0x8916, 0x8924, 0x8933
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
_SIOCBRADDBR, _SIOCBRADDIF = 0x89A0, 0x89A2
_IFF_UP = 0x1
_ARPHRD_ETHER = 1


def plug(interface: str) -> tuple[int, int]:
    """In the calling thread's network namespace: a tap bridged to ``interface``; its descriptor, which is
    the caller's, and the MTU of both. Safe to repeat for a slot that had a machine before. Raises OSError (EBUSY while that
    machine's VMM still has its tap)."""
    tap = open_tap(_TAP)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            mtu = _mtu_of(control, interface)
            _ioctl(control, _SIOCSIFMTU, _TAP, struct.pack("=i20x", mtu))
            _bridge(control, interface)
    except BaseException:
        os.close(tap)
        raise
    return tap, mtu


def open_tap(name: str) -> int:
    """A tap that goes with its descriptor, in the calling thread's network namespace."""
    tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(tap)
        raise
    return tap


def _bridge(control: socket.socket, interface: str) -> None:
    try:
        fcntl.ioctl(control, _SIOCBRADDBR, _BRIDGE.encode() + b"\0")
    except OSError as exc:
        if exc.errno != errno.EEXIST:
            raise
    else:
        _ioctl(control, _SIOCSIFADDR, interface, struct.pack("=H14x", socket.AF_INET))  # 0.0.0.0
        _ioctl(control, _SIOCSIFHWADDR, interface, struct.pack("=H6s8x", _ARPHRD_ETHER, _PORT_MAC))
        _add(control, interface)
    _add(control, _TAP)
    for name in (interface, _TAP, _BRIDGE):
        _up(control, name)


def _mtu_of(control: socket.socket, name: str) -> int:
    (mtu,) = struct.unpack_from("=i", _ioctl(control, _SIOCGIFMTU, name, bytes(24)), 16)
    return int(mtu)


def _add(control: socket.socket, name: str) -> None:
    answer = _ioctl(control, _SIOCGIFINDEX, name, bytes(24))
    (index,) = struct.unpack_from("=i", answer, 16)
    _ioctl(control, _SIOCBRADDIF, _BRIDGE, struct.pack("=i20x", index))


def _up(control: socket.socket, name: str) -> None:
    (flags,) = struct.unpack_from("=H", _ioctl(control, _SIOCGIFFLAGS, name, bytes(24)), 16)
    _ioctl(control, _SIOCSIFFLAGS, name, struct.pack("=H22x", flags | _IFF_UP))


def _ioctl(control: socket.socket, request: int, name: str, data: bytes) -> bytes:
    """``struct ifreq``: 16 bytes of name, 24 of union."""
    return fcntl.ioctl(control, request, name.encode().ljust(16, b"\0") + data.ljust(24, b"\0"))
