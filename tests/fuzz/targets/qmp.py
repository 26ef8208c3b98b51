"""What a VMM says on its control socket, greeting and answers: whoever waits gets an answer or a VmmError."""

from __future__ import annotations

import asyncio
import socket

from roost.drivers.qemu.qmp import Qmp, VmmError

_HELLO = b'{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}}}\n'
_DONE = b'{"id": 1, "return": {}}\n'
COVERS = ("roost.drivers.qemu.qmp",)
SEEDS = (
    _HELLO
    + _DONE
    + b'{"event": "STOP", "data": {"a": 1}}\n{"id": 2, "return": {"status": "running"}}\n',
    _HELLO + _DONE + b'{"id": 2, "error": {"class": "X", "desc": "no"}}\n',
    _HELLO + b'{"id": 1, "error": {"desc": 5}}\n',
    _HELLO + _DONE + b'{"error": {"desc": "what"}}\n',
    b"\n\n[]\n",
    _HELLO + _DONE + b'{"event": "STOP"}\n{"id": true, "return": 1}\n{"id": 2, "return": []}\n',
)
WORDS = (
    b'"QMP"',
    b'"return": ',
    b'"error": ',
    b'"event": ',
    b'"id": ',
    b"\n",
    b"[",
    b"]",
    b"{}",
    b'"desc": ',
)
LONGEST = 2048
_loop = asyncio.new_event_loop()


def one(data: bytes) -> None:
    strays: list[object] = []
    _loop.set_exception_handler(lambda _, context: strays.append(context))
    _loop.run_until_complete(_talk(data))
    assert not strays, strays


async def _talk(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(60):
                qmp = await Qmp.over(ours, 30)
        except VmmError:
            return
        try:
            with qmp.listen("STOP") as listener:
                assert isinstance(await qmp.execute("query-status", timeout_s=30), dict)
                await listener.next(30)
        except VmmError:
            pass
        finally:
            await qmp.close()
