"""What ``runsc pause``, ``checkpoint`` and ``resume`` say to a sandbox, said without starting a program for each.

The words are gVisor's own and may be others in any release, so they are said only to releases they were tried
with (``RELEASES``); all others get the program. One call is one connection to the sandbox's control socket: a JSON
object there, one back, files beside the first as descriptors. A Resume too many ends the sandbox.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RELEASES = frozenset({"0.0~20240729.0"})
_ANSWER_BYTES = 1 << 16
_MEANWHILE_S = 0.006


class CallError(OSError):
    """The sandbox's own words, or that it says nothing that makes sense."""


def path(runtime: Path, container: str) -> Path:
    return runtime / f"runsc-{container}.sock"


def pause(where: Path, timeout_s: float) -> None:
    _call(where, timeout_s, "containerManager.Pause", None)


def resume(where: Path, timeout_s: float) -> None:
    _call(where, timeout_s, "containerManager.Resume", None)


def checkpoint(
    where: Path, timeout_s: float, files: Sequence[int], meanwhile: Callable[[], None] | None
) -> None:
    """Uncompressed into ``files``: state, the pages' places, pages. It is left as it was, running or paused.
    ``meanwhile`` is called every few ms until it has. Raises CallError, TimeoutError; ConnectionError where it is gone."""
    options = {
        "key": None,
        "metadata": {"compression": "none"},
        "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": False},
        "have_pages_file": True,
        "Resume": True,
    }
    _call(where, timeout_s, "containerManager.Checkpoint", options, files, meanwhile)


def _call(
    where: Path,
    timeout_s: float,
    method: str,
    argument: Any,
    files: Sequence[int] = (),
    meanwhile: Callable[[], None] | None = None,
) -> None:
    deadline = time.monotonic() + timeout_s  # of the whole: a sandbox may say a byte at a time
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        # A socket's address has 108 bytes, and a run directory may be longer.
        directory = os.open(where.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{where.name}")
        finally:
            os.close(directory)
        request = json.dumps({"method": method, "arg": argument}).encode()
        sent = socket.send_fds(sock, [request], files) if files else sock.send(request)
        if request[sent:]:
            sock.sendall(request[sent:])
        while meanwhile and time.monotonic() < deadline and not _readable(sock, _MEANWHILE_S):
            meanwhile()
        answer = _answer(sock, method, deadline)
    if answer.get("success") is not True:
        raise CallError(str(answer.get("err"))[:1000])


def _readable(sock: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _answer(sock: socket.socket, method: str, deadline: float) -> dict[str, Any]:
    data = bytearray()
    while len(data) < _ANSWER_BYTES:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the sandbox did not answer {method} in time")
        sock.settimeout(left)
        read = sock.recv(_ANSWER_BYTES - len(data))
        if not read:
            raise ConnectionResetError(f"the sandbox ended during {method}")
        data += read
        if not data.rstrip().endswith((b"}", b"]")):  # it cannot be whole
            continue
        try:
            answer = json.loads(data)
        except RecursionError:
            break
        except ValueError:
            continue
        if isinstance(answer, dict):
            return answer
        break
    raise CallError(f"the sandbox's answer to {method} is none")
