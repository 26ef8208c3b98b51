"""What the kernel's tables say is listened on."""

from __future__ import annotations

from roost.services.listening import parse

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0200000A:1F90 0100000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 3
   3: nonsense
   4: zz:1F90 00000000:0000 0A
"""
TCP6 = """  sl  local_address remote_address st
   0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A
   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A
   2: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A
"""


def test_those_that_listen() -> None:
    assert list(parse(TCP.splitlines())) == [("127.0.0.1", 8080), ("0.0.0.0", 22)]
    assert list(parse(TCP6.splitlines())) == [("::1", 3000), ("::", 80), ("127.0.0.1", 81)]
