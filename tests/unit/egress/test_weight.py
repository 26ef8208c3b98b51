from __future__ import annotations

import socket
from typing import Any

from roost.egress import process
from roost.egress.proxy import Connection
from roost.egress.slot import Slot

MIB = 2**20


def test_what_nobody_takes_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as far, server.accept()[0] as near:
            connection = Connection(Slot(1), near, None)  # type: ignore[arg-type]
            assert connection.held == 0
            far.sendall(bytes(50_000))
            assert connection.held >= 50_000
        assert connection.held == 0, "closed"


def test_the_heaviest_of_the_heaviest_slot_ends() -> None:
    a, b, c, d = (object() for _ in range(4))
    two: list[Any] = [[(100 * MIB, a), (40 * MIB, b)], [(90 * MIB, c), (30 * MIB, d)]]
    assert process.too_heavy(two) == [a]
    assert process.too_heavy([]) == []
    many: list[Any] = [[(100 * MIB, each)] for each in range(6)]
    assert process.too_heavy(many) == [0]
