"""The daemon, with a point at every boundary of its operations, at which it can be told to kill itself.

The tests' own way in: the product has no setting for it. ``FAULTS_DIR/arm`` says what to do (see ``Points``); what was
reached while it is there stands in ``FAULTS_DIR/trace``.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import roost.daemon
from roost.engine.engine import Engine
from roost.store import Store

# The journal's own rows have their boundaries already; the others are nobody's operation.
_NOT_COUNTED = (
    "Journal._begin",
    "Journal._end",
    "Engine.flush_activity",
    "Engine.forget",
    "Keys.",
    "Idempotency.sweep",
)


class Points:
    """``arm`` is JSON: ``id`` (another one begins a new count), and where to die: ``at`` a label, its ``nth`` time
    (from 1), ``after_s`` later; or at the ``total``-th point of any name."""

    def __init__(self, directory: Path) -> None:
        self._arm = directory / "arm"
        self._trace = (directory / "trace").open("a", buffering=1)
        self._id: object = None
        self._seen: Counter[str] = Counter()

    def __call__(self, kind: str, point: str) -> None:
        try:
            plan = json.loads(self._arm.read_text())
        except FileNotFoundError:
            return
        if plan["id"] != self._id:
            self._id = plan["id"]
            self._seen.clear()
        label = f"{kind} {point}"
        self._seen[label] += 1
        self._trace.write(f"{time.monotonic():.4f} {label}\n")
        if (label, self._seen[label]) == (plan.get("at"), plan.get("nth", 1)):
            self._die(plan.get("after_s", 0.0))
        elif self._seen.total() == plan.get("total"):
            self._die(0.0)

    def _die(self, after_s: float) -> None:
        if after_s:
            threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    points = Points(Path(os.environ["FAULTS_DIR"]))
    plain = Store.write

    async def write(self: Store, fn: Callable[..., Any]) -> Any:
        name = fn.__qualname__.replace(".<locals>", "").replace(".<lambda>", "").replace(".fn", "")
        if name.startswith(_NOT_COUNTED):
            return await plain(self, fn)
        points("row", name)
        result = await plain(self, fn)
        points("rowed", name)
        return result

    Store.write = write  # type: ignore[method-assign, assignment]
    roost.daemon.Engine = functools.partial(Engine, hook=points)  # type: ignore[misc, assignment]
    return roost.daemon.main()


if __name__ == "__main__":
    sys.exit(main())
