"""Starts the daemon's process by a fork of one that has imported all of it: a sweep starts it hundreds of times, and
importing is most of a start. The daemon is a process like any other; what a restart of it costs is measured elsewhere.

Protocol, a line each: ``start`` on stdin, then the pid, then ``waitpid``'s status once it has ended.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO


class Forked:
    """As much of ``subprocess.Popen`` as is asked of a daemon's process."""

    def __init__(self, zygote: subprocess.Popen[bytes]) -> None:
        self._zygote = zygote
        self._code: int | None = None
        assert zygote.stdin is not None
        zygote.stdin.write(b"start\n")
        zygote.stdin.flush()
        self.pid = int(self._line())

    def _line(self) -> bytes:
        assert self._zygote.stdout is not None
        return self._zygote.stdout.readline()

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            assert self._zygote.stdout is not None
            if not select.select([self._zygote.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("roost.daemon", timeout or 0)
            self._code = os.waitstatus_to_exitcode(int(self._line()))
        return self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Zygote:
    """One for each environment, until ``close``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, env: Mapping[str, str], out: IO[bytes]) -> Forked:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.faults.zygote"],
                env=dict(env),
                cwd=Path(__file__).parents[3],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                bufsize=0,
                start_new_session=True,
            )
        return Forked(self._process)

    def close(self) -> None:
        """Its daemon must have ended."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)
            self._process = None


def main() -> int:
    from tests.system.faults import entry

    replies = os.dup(1)
    os.dup2(2, 1)
    while sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            os.close(replies)
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os._exit(entry.main())
        os.write(replies, f"{pid}\n".encode())
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                break
        os.write(replies, f"{status}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
