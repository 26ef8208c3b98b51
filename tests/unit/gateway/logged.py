"""A daemon whose log is looked at, in a process of its own: logging is the process's. ``python -m ... DIRECTORY``"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import structlog

from roost.api.v1 import Services, create_app, native
from roost.drivers.interface import Exit
from roost.errors import MachineError
from roost.gateway.app import Gateway
from roost.gateway.dispatch import Table
from roost.gateway.metrics import Metrics
from roost.logs import Logs
from roost.services.audit import Audit
from roost.services.models import Principal
from roost.services.rates import Rates
from roost.store.cursor import Cursors
from roost.store.idempotency import Idempotency
from roost.watching import watch
from tests.unit.engine.kit import TENANT, daemon, until


class Keys:
    async def authenticate(self, secret_form: str) -> Principal:
        return Principal(TENANT, "key-1", "roost")

    def on_end(self, listener: Callable[[str], None]) -> None:
        """None ever does."""


async def main(directory: Path) -> None:
    logs = Logs(directory / "logs", "info")
    marks = structlog.get_logger("marks")
    async with daemon(directory, memory=True) as d:
        metrics = Metrics()
        executions: Any = type("None_", (), {"running": 0})
        watch(metrics, d.engine, executions, d.warm)
        there: dict[str, Any] = {field.name: None for field in fields(Services)}
        services = Services(**{**there, "machines": d.machines, "metrics": metrics})
        idempotency = Idempotency(d.store)
        clock = d.host.clock
        audit = Audit(d.store, clock, Cursors(bytes(32)), 90)
        await audit.open()
        table = Table([native(create_app(services), services.tickets)])
        gateway = Gateway(
            table, Keys(), idempotency, metrics, Rates(clock.monotonic, 10.0), audit, clock
        )
        transport = httpx.ASGITransport(gateway)
        headers = {"authorization": "Bearer roost_" + "0" * 64}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://here", headers=headers
        ) as http:
            made = await http.post("/v1/machines", json={"vcpu": 0.1, "memory_mib": 64})
            assert made.status_code == 201, made.text
            path = f"/v1/machines/{made.json()['machine_id']}"
            assert (await http.post(f"{path}/sleep")).status_code == 200
            marks.info("restore fails")
            d.host.driver.fail("restore", MachineError("scripted", code="MACHINE_FAILED"))
            # Both wait for one wake; it is told as the first one's.
            for answer in await asyncio.gather(*(http.post(f"{path}/wake") for _ in range(2))):
                assert answer.status_code == 200, answer.text
            marks.info("it dies by itself")
            d.host.driver.fail("remove", MachineError("scripted"))
            d.host.driver.die(made.json()["machine_id"], Exit("exited", 1))
            await until(lambda: d.host.driver.calls["remove"] >= 3)
            await until(lambda: not d.engine.desk.busy())
            assert (await http.get("/v1/machines/" + "0" * 26)).status_code == 404
        await audit.close()
        (directory / "metrics").write_bytes(await metrics.render())
    logs.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
