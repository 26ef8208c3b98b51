"""100 MiB up and down through the API, by the SDK, on runc."""

from __future__ import annotations

import io
import os

from bench.report import Report, ms
from roost import Machine

SIZE = 100 << 20


def run(report: Report, n: int) -> None:
    data = os.urandom(1 << 20) * (SIZE >> 20)
    for driver, bound in (("runc", 150.0), ("gvisor", None)):
        up, down = [], []
        with Machine.create(driver=driver, storage_gib=10) as m:
            for _ in range(max(5, n // 2)):
                up.append(
                    SIZE / 1e6 / ms(lambda: m.files.write("/workspace/big", io.BytesIO(data))) * 1e3
                )
                got = b""

                def read() -> None:
                    nonlocal got
                    got = m.files.read("/workspace/big")

                down.append(SIZE / 1e6 / ms(read) * 1e3)
                assert got == data
        report.add(f"file up 100 MiB, {driver}", "MB/s", up, bound=bound, at_least=True)
        report.add(f"file down 100 MiB, {driver}", "MB/s", down, bound=bound, at_least=True)
