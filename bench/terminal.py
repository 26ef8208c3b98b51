"""From a keystroke sent to its echo read, through WebSocket, daemon, agent and a real tty."""

from __future__ import annotations

import time

from bench.report import Report, ms
from roost import Machine


def run(report: Report, n: int) -> None:
    for driver in ("runc", "gvisor"):
        samples = []
        with Machine.create(driver=driver) as m, m.terminal() as t:
            t.send("PS1=; cat >/dev/null\n")
            time.sleep(0.5)
            t.read(timeout=0.5)

            def key(letter: str) -> None:
                t.send(letter)
                t.read_until(letter, timeout=5)

            for i in range(max(100, n)):
                # Letters in turn: an old echo cannot pass for the new one.
                samples.append(ms(lambda i=i: key("abcdefghijklmnop"[i % 16])))  # type: ignore[misc]
                time.sleep(0.01)
        report.add(f"keystroke echo, {driver}", "ms", samples, bound=5.0)
