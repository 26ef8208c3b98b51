"""Somebody in a machine, over one SSH connection: what every channel of it works with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from roost import ids
from roost.services.audit import Audit
from roost.services.doors import Doors
from roost.services.executions import Executions
from roost.services.files import Files
from roost.services.machines import Machines
from roost.services.models import Principal
from roost.services.terminals import Terminals


@dataclass(frozen=True, slots=True)
class Inside:
    """The services that reach into machines. ``afterwards``: what is still to be done when a channel is gone."""

    machines: Machines
    executions: Executions
    terminals: Terminals
    files: Files
    doors: Doors
    audit: Audit
    afterwards: set[asyncio.Task[Any]]


@dataclass(frozen=True, slots=True)
class Visit:
    inside: Inside
    who: Principal
    machine_id: str
    user: str | None  # inside; None: the template's
    peer: str

    @property
    def tenant(self) -> str:
        return self.who.tenant

    def note(self, action: str, error_code: str | None = None) -> None:
        """A line in the audit log; what is run, read or written is not in it."""
        entry = {
            "tenant_id": self.tenant,
            "key_id": self.who.key_id,
            "role": self.who.role.value,
            "action": action,
            "method": "SSH",
            "path": f"/v1/machines/{self.machine_id}/ssh",
            "machine_id": self.machine_id,
            "peer": self.peer[:64],
            "status": 200 if error_code is None else 502,
            "error_code": error_code,
            "request_id": ids.new(),
        }
        self.later(self.inside.audit.record(entry, lasting=False))

    def later(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Done although whoever asked may be gone."""
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self.inside.afterwards.add(task)
        task.add_done_callback(self.inside.afterwards.discard)
        return task


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(Exception):  # nobody is left to be told
        await work
