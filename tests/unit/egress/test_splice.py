"""Bytes that the kernel moves from one socket to another."""

from __future__ import annotations

import asyncio
import socket

import pytest

from roost.egress import splice


@pytest.mark.parametrize("count", range(10))
async def test_a_body_ends_with_its_last_byte(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Its source stays open and silent, as a server's does that is kept: in however many pieces it came."""
    monkeypatch.setattr(splice, "PIPE_BYTES", 1)
    source, far = socket.socketpair()
    near, target = socket.socketpair()
    with source, far, near, target:
        for each in (source, near):
            each.setblocking(False)
        target.settimeout(5)
        far.sendall(b"x" * count)
        flow = splice.Flow(source, near, count)
        async with asyncio.timeout(30):
            assert await flow.run()
        assert flow.moved == count
        near.close()
        assert b"".join(iter(lambda: target.recv(100), b"")) == b"x" * count
