"""The daemon, with a clock that a test turns: ``CLOCK_AHEAD`` names a file of the seconds it is ahead, read each time.

The tests' own way in: the product has no setting for it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

import roost.daemon
from roost.clock import SystemClock

if TYPE_CHECKING:
    from tests.system.conftest import Daemon


class Turned(SystemClock):
    def __init__(self) -> None:
        self._file = Path(os.environ["CLOCK_AHEAD"])

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self._ahead())

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead()

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while (left := until - self.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    def _ahead(self) -> float:
        return float(self._file.read_text() or 0)


@contextmanager
def turned(daemon: Daemon, path: Path) -> Iterator[Callable[[float], None]]:
    """Its next process has such a clock; call what this gives with the seconds it is to be ahead from then on."""

    def ahead(seconds: float) -> None:
        beside = path.with_suffix(".new")
        beside.write_text(str(seconds))
        beside.rename(path)

    def launch(env: Mapping[str, str], out: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.turned"],
            env={**env, "CLOCK_AHEAD": str(path)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    ahead(0)
    plain, daemon.launch = daemon.launch, launch
    try:
        daemon.restart()
        yield ahead
    finally:
        daemon.launch = plain
        daemon.restart()


if __name__ == "__main__":
    roost.daemon.SystemClock = Turned  # type: ignore[misc, attr-defined]
    sys.exit(roost.daemon.main())
