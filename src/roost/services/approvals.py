"""Approvals: calls outside their machine's list of tools, which wait for somebody with the right to say yes.

```
                        approve, in time
  (asked) --> pending ------------------> approved   the execution is started, once
                 |  deny --------------> denied      APPROVAL_DENIED
                 |  time over ---------> expired     APPROVAL_EXPIRED
                 '- its execution is cancelled, its machine ends --> cancelled
```

What was asked for is kept sealed as it came, and that is what is started: nobody can change it in between. It outlives
the daemon; once decided, the row says who decided what, and what was sealed is gone: with it stdin and the values of
the environment. An approval has the id of its execution. Nobody approves of what they cannot see: all that is asked for
is shown to who may decide, and where that is too much, or it cannot be opened, nothing is run. Who may only look sees
no stdin and no value of the environment: no name tells which of them is a secret, and which a command.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from roost.clock import Clock
from roost.errors import (
    ConflictError,
    InternalError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    RoostError,
    error,
)
from roost.secrets.vault import Vault
from roost.services import asking
from roost.services.models import Page
from roost.store import Store
from roost.store import approvals as rows
from roost.store.cursor import Cursors
from roost.store.executions import QUEUED, ExecutionRow

log = structlog.get_logger(__name__)
T = TypeVar("T")

STATUSES = ("pending", "approved", "denied", "expired", "cancelled")
OF_MACHINE = 50  # that wait at once
REQUEST_BYTES = 64 * 1024
NOTE = 300
FOLLOWED = 500
KEEP = timedelta(days=90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """``shown``: command, cwd, user, env, stdin, stdin_bytes, stdin_stream, timeout_ms; stdin and the values of env are
    None where they are hidden."""

    id: str
    tenant_id: str
    machine_id: str
    status: str
    shown: Mapping[str, Any]
    asked_by: str | None
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    decided_by: str | None
    note: str | None

    @property
    def pending(self) -> bool:
        return self.status == rows.PENDING

    @staticmethod
    def from_row(row: Mapping[Any, Any]) -> Approval:
        return Approval(**{name: row[name] for name in _FIELDS})


_FIELDS = [each.name for each in dataclasses.fields(Approval)]
# What was decided, and of what was approved the request.
Listener = Callable[[Approval, Mapping[str, Any] | None], None]
# Columns of the execution of what was not approved.
_ENDS = {
    "denied": {"status": "failed", "reason": "approval_denied"},
    "expired": {"status": "failed", "reason": "approval_expired"},
    "cancelled": {"status": "cancelled", "reason": "approval_cancelled"},
}


class Approvals:
    """As ``Machines``: the caller's tenant first, APPROVAL_NOT_FOUND for another's."""

    def __init__(
        self, store: Store, clock: Clock, vault: Vault, cursors: Cursors, wait_s: float
    ) -> None:
        self._store = store
        self._clock = clock
        self._vault = vault
        self._cursors = cursors
        self._wait = timedelta(seconds=wait_s)
        self._pending: dict[str, tuple[str, datetime]] = {}  # id -> machine, when it expires
        self._followers: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.listener: Listener | None = None

    async def open(self) -> None:
        for row in await self._store.read(rows.pending):
            self._pending[row["id"]] = (row["machine_id"], row["expires_at"])

    # --- asked ----------------------------------------------------------------------------------

    async def ask(
        self, execution: ExecutionRow, request: Mapping[str, Any], shown: Mapping[str, Any]
    ) -> Approval:
        """Both rows, durable. Raises PAYLOAD_TOO_LARGE, LIMIT_EXCEEDED."""
        if max(len(json.dumps(each)) for each in (dict(request), dict(shown))) > REQUEST_BYTES:
            raise InvalidRequestError(
                "This command waits for approval, and there is too much of it and its stdin for anyone to read (64 KiB):"
                " write what it reads to a file first.",
                code="PAYLOAD_TOO_LARGE",
                details={"limit": REQUEST_BYTES},
            )
        approval = Approval(
            id=execution.id,
            tenant_id=execution.tenant_id,
            machine_id=execution.machine_id,
            status=rows.PENDING,
            shown=shown,
            asked_by=asking.key_id(),
            created_at=execution.created_at,
            expires_at=execution.created_at + self._wait,
            decided_at=None,
            decided_by=None,
            note=None,
        )
        values = {name: getattr(approval, name) for name in _FIELDS}
        values["shown"] = _hidden(shown)
        whole = json.dumps({"request": dict(request), "shown": dict(shown)})
        values["request"] = self._vault.seal(whole, *_belongs(approval))

        def fn(connection: sa.Connection) -> None:
            if rows.pending_of(connection, approval.machine_id) >= OF_MACHINE:
                raise LimitError(
                    f"{OF_MACHINE} commands of this machine wait for approval already: decide on some first.",
                    code="LIMIT_EXCEEDED",
                    details={"limit": OF_MACHINE},
                )
            rows.insert(connection, values, dataclasses.asdict(execution))

        async def keep() -> None:
            await self._store.write(fn)
            self._pending[approval.id] = (approval.machine_id, approval.expires_at)
            self._tell()

        await self._whole(keep())
        return approval

    # --- decided --------------------------------------------------------------------------------

    async def approve(
        self, tenant: str, id: str, by: str | None, note: str | None = None
    ) -> Approval:
        """What was asked for is started, as it was asked for, when this returns or soon after. Raises
        APPROVAL_EXPIRED, INVALID_STATE (it was decided before)."""
        return await self._decide(tenant, id, "approved", by, note)

    async def deny(self, tenant: str, id: str, by: str | None, note: str | None = None) -> Approval:
        """``note`` is told to who asked. Raises as ``approve``."""
        return await self._decide(tenant, id, "denied", by, note)

    async def cancel(self, id: str) -> None:
        """Nobody needs it any more; of what is decided nothing changes."""
        await self._end(id, "cancelled", None, None)

    async def sweep(self) -> None:
        """Ends what nobody decided in time; call every second."""
        now = self._clock.now()
        for id in [id for id, (_, until) in self._pending.items() if until <= now]:
            await self._end(id, "expired", None, None)

    def changed(self, machine_id: str, ended: Callable[[], Any]) -> None:
        """``ended()`` is awaited for whether the machine is over, where something of it waits."""
        if any(of == machine_id for of, _ in self._pending.values()):
            task = asyncio.get_running_loop().create_task(self._of_machine(machine_id, ended))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _of_machine(self, machine_id: str, ended: Callable[[], Any]) -> None:
        try:
            if await ended():
                for id in [id for id, (of, _) in self._pending.items() if of == machine_id]:
                    await self.cancel(id)
        except RoostError as failure:
            log.warning("approval.machine", machine_id=machine_id, error=failure.code)

    async def _decide(
        self, tenant: str, id: str, status: str, by: str | None, note: str | None
    ) -> Approval:
        note = _note(note)
        approval = await self.get(tenant, id)
        if approval.pending and approval.expires_at <= self._clock.now():
            await self._end(id, "expired", None, None)
        elif await self._end(id, status, by, note):
            return await self.get(tenant, id)
        raise refused(await self.get(tenant, id), f"It was not {status}:")

    async def _end(self, id: str, status: str, by: str | None, note: str | None) -> bool:
        """False where it was decided before."""
        return await self._whole(self._ended(id, status, by, note))

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """To its end: whoever asked may go away."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _ended(self, id: str, status: str, by: str | None, note: str | None) -> bool:
        now = self._clock.now()
        execution = _ENDS.get(status)
        values = {"status": QUEUED} if execution is None else {**execution, "ended_at": now}

        def fn(connection: sa.Connection) -> tuple[Approval, Any] | None:
            row = rows.get(connection, id)
            if row is None or row["status"] != rows.PENDING:
                return None
            before, request = Approval.from_row(row), None
            if status == "approved":
                request = self._opened(row, before)["request"]
            rows.decide(connection, id, status, now, by, note, values)
            after = dataclasses.replace(
                before, status=status, decided_at=now, decided_by=by, note=note
            )
            return after, request

        found = await self._store.write(fn)
        self._pending.pop(id, None)
        if found is None:
            return False
        approval, request = found
        log.info("approval.decided", execution=id, machine_id=approval.machine_id, outcome=status)
        if self.listener is not None:
            self.listener(approval, request)
        self._tell()
        return True

    # --- told -----------------------------------------------------------------------------------

    async def get(self, tenant: str, id: str, *, whole: bool = False) -> Approval:
        """``whole``, here and below: for who may decide, with stdin and the environment of what waits."""

        def fn(connection: sa.Connection) -> Approval | None:
            row = rows.get(connection, id)
            return None if row is None else self._shown(row, whole)

        found = await self._store.read(fn)
        if found is None or found.tenant_id != tenant:
            raise NotFoundError(
                f"There is no approval {id[:64]}; those decided long ago are forgotten.",
                code="APPROVAL_NOT_FOUND",
            )
        return found

    async def list(
        self,
        tenant: str,
        machine_id: str | None = None,
        status: str | None = "pending",
        limit: int = 100,
        cursor: str | None = None,
        *,
        whole: bool = False,
    ) -> Page[Approval]:
        """Newest first. Raises INVALID_CURSOR."""
        scope = f"approvals:{tenant}:{machine_id or ''}:{status or ''}"
        after = self._cursors.decode(scope, cursor) if cursor else None

        def fn(connection: sa.Connection) -> tuple[builtins.list[Approval], bool]:
            found = rows.find(
                connection,
                tenant,
                machine_id=machine_id,
                status=status,
                after=after,
                limit=limit + 1,
            )
            return [self._shown(row, whole) for row in found[:limit]], len(found) > limit

        items, more = await self._store.read(fn)
        last = items[-1] if more else None
        return Page(items, self._cursors.encode(scope, last.created_at, last.id) if last else None)

    async def follow(
        self, tenant: str, machine_id: str | None = None, *, whole: bool = False
    ) -> AsyncGenerator[Approval, None]:
        """What waits now, oldest first, then each as it is asked for and again as it is decided; never ends."""
        told: set[str] = set()  # that waited when they were told
        changed = asyncio.Event()
        self._followers.add(changed)
        try:
            while True:
                changed.clear()  # before the look: what changes meanwhile sets it again
                waiting = await self._store.read(lambda c: rows.waiting(c, tenant, machine_id))
                over = told.difference(waiting)
                news = [*over, *(id for id in waiting if id not in told)]
                told -= over
                for at in range(0, len(news), FOLLOWED):
                    for each in await self._look(tenant, news[at : at + FOLLOWED], whole):
                        if each.pending:
                            told.add(each.id)
                        yield each
                await changed.wait()
        finally:
            self._followers.discard(changed)

    async def prune(self, machine_id: str) -> None:
        """Forgets the oldest of what was decided of a machine of which there is very much."""
        await self._store.write(lambda c: rows.forget_of(c, machine_id))

    async def tidy(self) -> None:
        """Forgets what was decided long ago; call now and then."""
        before = self._clock.now() - KEEP
        while await self._store.write(lambda c: rows.forget(c, before)):
            pass

    async def _look(
        self, tenant: str, ids: builtins.list[str], whole: bool
    ) -> builtins.list[Approval]:
        def fn(connection: sa.Connection) -> builtins.list[Approval]:
            found = rows.find(connection, tenant, ids=ids, limit=len(ids))
            return [self._shown(row, whole) for row in reversed(found)]

        return await self._store.read(fn)

    def _shown(self, row: Mapping[Any, Any], whole: bool) -> Approval:
        found = Approval.from_row(row)
        if whole and found.pending:
            with contextlib.suppress(ConflictError):  # it is listed all the same, to be denied
                return dataclasses.replace(found, shown=self._opened(row, found)["shown"])
        return found

    def _opened(self, row: Mapping[Any, Any], approval: Approval) -> dict[str, Any]:
        """Raises INVALID_STATE."""
        try:
            found: dict[str, Any] = json.loads(
                self._vault.open(row["request"], *_belongs(approval))
            )
        except InternalError:
            raise ConflictError(
                "What was asked for was sealed with another key than this host has now (secrets.key in its data"
                " directory), and nobody can see it: put the key back, or deny it and have it asked for again.",
                details={"execution_id": approval.id, "status": approval.status},
            ) from None
        return found

    def _tell(self) -> None:
        for each in self._followers:
            each.set()


def shown(
    argv: list[str],
    cwd: str | None,
    user: str | None,
    env: Mapping[str, str],
    stdin: bytes,
    stdin_stream: bool,
    timeout_ms: int | None,
) -> dict[str, Any]:
    """What people see of a call before they decide."""
    return {
        "command": argv,
        "cwd": cwd,
        "user": user,
        "env": dict(env),
        "stdin": stdin.decode(errors="backslashreplace"),
        "stdin_bytes": len(stdin),
        "stdin_stream": stdin_stream,
        "timeout_ms": timeout_ms,
    }


def refused(approval: Approval, what: str = "It was not run:") -> RoostError:
    """Why what was asked for does not run, or cannot be decided any more."""
    details = {"execution_id": approval.id, "status": approval.status}
    match approval.status:
        case "denied":
            said = f" ({approval.note})" if approval.note else ""
            return error(
                "APPROVAL_DENIED", f"{what} its approval was denied{said}.", details=details
            )
        case "expired":
            return error(
                "APPROVAL_EXPIRED",
                f"{what} nobody approved of it in time. Ask for it again.",
                details=details,
            )
        case "cancelled":
            return ConflictError(f"{what} it was given up, or its machine ended.", details=details)
    return ConflictError(f"{what} it is {approval.status} already.", details=details)


def _belongs(approval: Approval) -> tuple[str, str, str]:
    return ("approval", approval.machine_id, approval.id)


def _hidden(shown: Mapping[str, Any]) -> dict[str, Any]:
    """Of the environment the names alone, of stdin its size."""
    return {**shown, "env": dict.fromkeys(shown["env"]), "stdin": None if shown["stdin"] else ""}


def _note(note: str | None) -> str | None:
    if note is not None and (len(note) > NOTE or not note.isprintable()):
        raise InvalidRequestError(
            f"note: one line of at most {NOTE} characters.", details={"field": "note"}
        )
    return note or None
