"""One call over a sandbox's control socket, and what can come back."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.drivers import urpc

Peer = Callable[[bytes | list[bytes]], dict[str, Any]]


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[tuple[Path, Peer]]:
    """Answers one call with these bytes, and tells what was asked, with how many files."""
    runtime = tmp_path / ("long" * 40)  # more than a socket's address holds
    runtime.mkdir()
    where = urpc.path(runtime, "m1")
    listener = socket.socket(socket.AF_UNIX)
    fd = os.open(runtime, os.O_PATH)
    listener.bind(f"/proc/self/fd/{fd}/{where.name}")
    os.close(fd)
    listener.listen()
    threads: list[threading.Thread] = []

    def answer(parts: bytes | list[bytes]) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def body() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                data, fds, _, _ = socket.recv_fds(sock, 65536, 8)
                seen.update(json.loads(data), files=len(fds))
                for each in fds:
                    os.close(each)
                for part in [parts] if isinstance(parts, bytes) else parts:
                    sock.sendall(part)

        threads.append(threading.Thread(target=body))
        threads[-1].start()
        return seen

    yield where, answer
    for thread in threads:
        thread.join(5)
    listener.close()


OK = b'{"success":true,"err":"","result":{}}'


def test_a_call_and_its_answer_in_pieces(sandbox: tuple[Path, Peer]) -> None:
    where, answer = sandbox
    seen = answer([OK[:9], OK[9:]])
    urpc.pause(where, 5)
    assert seen == {"method": "containerManager.Pause", "arg": None, "files": 0}


def test_files_go_with_a_checkpoint_and_the_machine_stays(
    sandbox: tuple[Path, Peer], tmp_path: Path
) -> None:
    where, answer = sandbox
    seen = answer(OK)
    with (tmp_path / "a").open("w") as a, (tmp_path / "b").open("w") as b:
        urpc.checkpoint(where, 5, [a.fileno(), b.fileno()], None)
    assert seen["files"] == 2
    assert seen["arg"]["Resume"] is True


def test_what_the_sandbox_refuses_is_said_in_its_words(sandbox: tuple[Path, Peer]) -> None:
    where, answer = sandbox
    answer(b'{"success":false,"err":"no space left on device","result":null}')
    with pytest.raises(urpc.CallError, match="no space left on device"):
        urpc.resume(where, 5)


@pytest.mark.parametrize(
    "answered",
    [
        b"",
        b'{"succ',
        b"[1]",
        b'{"err":""}',
        b"[" * 60_000 + b"]",
        b'{"success":true,"err":"' + bytes(2**17) + b'"}',
    ],
)
def test_an_answer_that_is_none(sandbox: tuple[Path, Peer], answered: bytes) -> None:
    where, answer = sandbox
    answer(answered)
    with pytest.raises((urpc.CallError, ConnectionError)):
        urpc.pause(where, 5)


def test_a_sandbox_that_says_nothing_in_time(sandbox: tuple[Path, Peer]) -> None:
    where, _ = sandbox
    calls: list[None] = []
    with pytest.raises(TimeoutError):
        urpc.checkpoint(where, 0.05, [], lambda: calls.append(None))
    assert calls


def test_a_sandbox_that_says_a_byte_at_a_time_has_one_deadline(tmp_path: Path) -> None:
    where = urpc.path(tmp_path, "m1")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen()
        over = threading.Event()

        def drip() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                while not over.wait(0.02):
                    sock.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        late = threading.Timer(20, over.set)  # without a deadline the test would hang
        late.start()
        try:
            with pytest.raises(TimeoutError):
                urpc.pause(where, 0.3)
            assert not over.is_set()
        finally:
            late.cancel()
            over.set()
            thread.join(5)
