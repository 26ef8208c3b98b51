"""The daemon's resident memory over 2,000 execs, and over one exec that prints 4 GB: of text and of zero bytes, which
JSON makes six times as long, waited for; of zero bytes, every one counted, streamed."""

from __future__ import annotations

from pathlib import Path

from bench.report import Report
from roost import Client, Machine

TEXT = "yes a line of ordinary output | head -c 4000000000"
ZEROS = "head -c 4000000000 /dev/zero"


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def run(report: Report, n: int) -> None:
    del n
    pid = int(Client().request("GET", "/v1/host").json()["daemon"]["pid"])
    with Machine.create(driver="runc") as m:
        for _ in range(200):
            m.exec("true")
        start = rss_mb(pid)
        for _ in range(2000):
            m.exec("true")
        report.add("daemon RSS growth over 2,000 execs", "MB", [rss_mb(pid) - start], bound=20)
        for what, command in (("text", TEXT), ("zero bytes", ZEROS)):
            start = rss_mb(pid)
            result = m.exec(command, timeout=300)
            assert result.truncated
            report.add(
                f"daemon RSS growth over an exec of 4 GB of {what}, waited for",
                "MB",
                [rss_mb(pid) - start],
                bound=20,
            )
        start = rss_mb(pid)
        total = sum(len(chunk.data) for chunk in m.exec_stream(ZEROS))
        assert total == 4_000_000_000, total
        report.add(
            "daemon RSS growth over an exec of 4 GB of zero bytes, streamed",
            "MB",
            [rss_mb(pid) - start],
            bound=20,
        )
