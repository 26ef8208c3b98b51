"""Runs a command to its end, with a deadline, from any thread."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """What to show of a failure."""
        lines = [line for line in (self.stderr + "\n" + self.stdout).splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {self.code}"


class CommandError(OSError):
    """A command that did not do its work."""

    def __init__(self, argv: Sequence[str], done: Done) -> None:
        super().__init__(f"{argv[0]} failed ({done.code}): {done.last_line}")
        self.done = done


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    text_in: str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> Done:
    """Output is for small answers: it is held in memory. The command's whole process group is killed at
    the deadline. Raises CommandError (``check``), FileNotFoundError, TimeoutError."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if text_in is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else {"PATH": os.environ.get("PATH", os.defpath), **env},
        text=True,
        errors="replace",
        process_group=0,
    )
    try:
        out, err = process.communicate(text_in, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{argv[0]} ran longer than {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    done = Done(process.returncode, out, err)
    if check and done.code != 0:
        raise CommandError(argv, done)
    return done
