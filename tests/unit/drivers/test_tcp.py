"""What counts as a connection that is still there."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from roost.host import tcp

HERE = "127.0.0.1"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server((HERE, 0)) as server:
        yield server


def test_one_that_ends_is_waited_for(server: socket.socket) -> None:
    port = server.getsockname()[1]
    assert tcp.wait_closed(HERE, port, 0)
    client = socket.create_connection((HERE, port))
    peer, _ = server.accept()
    assert not tcp.wait_closed(HERE, port, 0.05)
    client.close()
    assert not tcp.wait_closed(HERE, port, 0.05)  # the peer's half is open
    peer.close()
    assert tcp.wait_closed(HERE, port, 1)


def test_one_that_the_other_side_never_ends_is_not(server: socket.socket) -> None:
    port = server.getsockname()[1]
    client = socket.create_connection((HERE, port))
    peer, _ = server.accept()
    with peer:
        client.close()
        assert not tcp.wait_closed(HERE, port, 0.1)
        assert tcp.wait_closed(HERE, port, 4)


def test_one_whose_end_nobody_answers_is_not(server: socket.socket) -> None:
    port = server.getsockname()[1]
    client = socket.create_connection((HERE, port))
    peer, _ = server.accept()
    with peer:
        client.setblocking(False)
        try:
            while client.send(
                bytes(1 << 20)
            ):  # till the peer's window is shut, and no end gets through
                pass
        except BlockingIOError:
            pass
        client.close()
        assert not tcp.wait_closed(HERE, port, 0.1)
        assert tcp.wait_closed(HERE, port, 4)
