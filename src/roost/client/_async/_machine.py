"""A machine: made, found, driven, ended."""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Self

from roost.client._async._client import AsyncClient, default_client
from roost.client._async._events import events
from roost.client._async._executions import AsyncExecution, AsyncExecutions
from roost.client._async._files import AsyncFiles
from roost.client._async._http import log
from roost.client._async._io import sleep
from roost.client._async._snapshot import AsyncSnapshot
from roost.client._async._stream import BROKEN, RECONNECT_S, AsyncExecStream
from roost.client._async._terminal import AsyncTerminal, AsyncTerminals
from roost.client._types import ExecResult, ExecTimeout, parse_time
from roost.client._wire import (
    UNSET,
    Command,
    Duration,
    Unset,
    duration,
    execution_body,
    given,
    segment,
)
from roost.errors import RoostError, error


class AsyncMachine:
    """Get one with ``create``, ``ensure``, ``get`` or ``list``.

    As a context manager a machine from ``create`` is destroyed at the end; one from ``ensure``,
    ``get`` or ``list`` goes on. The properties are as of the last answer; ``refresh`` asks again.
    """

    def __init__(
        self, client: AsyncClient, data: Mapping[str, Any], *, owned: bool = False
    ) -> None:
        self._client = client
        self._http = client.http
        self._data = dict(data)
        self._owned = owned
        self.files = AsyncFiles(self._http, self.id)
        self.executions = AsyncExecutions(self._http, self.id)
        self.terminals = AsyncTerminals(self._http, self.id)

    def __repr__(self) -> str:
        key = f" key={self.key}" if self.key else ""
        return f"<{type(self).__name__} {self.id}{key} {self.phase}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if not self._owned:
            return
        try:
            await self.destroy()
        except RoostError as failure:
            if kind is None:
                raise
            log.warning("could not destroy machine %s: %s", self.id, failure)

    # --- made and found -------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        template: str | None = None,
        *,
        key: str | None = None,
        name: str | None = None,
        vcpu: float | None = None,
        memory_mib: int | None = None,
        storage_gib: int | None = None,
        isolation: str | None = None,
        driver: str | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        autosleep: Duration | None = None,
        hibernate_after: Duration | None = None,
        ttl: Duration | None = None,
        snapshot: AsyncSnapshot | str | None = None,
        memory: bool | None = None,
        egress: object = None,
        wait: bool = True,
        timeout: float | None = None,
        client: AsyncClient | None = None,
    ) -> Self:
        """A new machine, running when this returns (with ``wait=False``: on its way).

        ``isolation``: auto, workspace, user, container, microvm. ``autosleep`` and ``ttl`` are
        durations: "5m", 300, a timedelta; autosleep also "never". A machine that was idle for so long is
        frozen, and after ``hibernate_after`` ("10m", "never") its memory goes to the disk; what needs it wakes it.
        ``timeout`` bounds the request (s).
        ``template`` is "base" unless named. With ``snapshot`` (itself, its id or name) the machine goes on
        from there (with ``memory=False`` from its disk alone); template, rung, size and env are then the
        snapshot's and cannot be given.
        Raises InvalidRequestError (what cannot be), ConflictError (the key is taken), LimitError,
        CapacityError, MachineError.
        """
        if egress is not None:
            raise error("UNSUPPORTED", "create(egress=) is not in this release of Roost yet.")
        client = client or default_client()
        if template is None and snapshot is None:
            template = "base"
        body = given(
            template=template,
            key=key,
            name=name,
            vcpu=vcpu,
            memory_mib=memory_mib,
            storage_gib=storage_gib,
            isolation=isolation,
            driver=driver,
            env=dict(env) if env is not None else None,
            labels=dict(labels) if labels is not None else None,
            autosleep=duration(autosleep) if autosleep is not None else None,
            hibernate_after=duration(hibernate_after) if hibernate_after is not None else None,
            ttl=duration(ttl) if ttl is not None else None,
            snapshot=snapshot.id if isinstance(snapshot, AsyncSnapshot) else snapshot,
            memory=memory,
        )
        data = await client.http.call(
            "POST",
            "/v1/machines",
            json=body,
            params={} if wait else {"wait": "false"},
            **given(timeout=timeout),
        )
        return cls(client, data, owned=True)

    @classmethod
    async def ensure(
        cls,
        key: str,
        *,
        template: str = "base",
        name: str | None = None,
        vcpu: float | None = None,
        memory_mib: int | None = None,
        storage_gib: int | None = None,
        isolation: str | None = None,
        driver: str | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        autosleep: Duration | None = None,
        hibernate_after: Duration | None = None,
        ttl: Duration | None = None,
        timeout: float | None = None,
        client: AsyncClient | None = None,
    ) -> Self:
        """The machine of ``key``, running: made if there is none, woken if it slept.

        However many callers ask at once, all get the one. The settings count only when it is made.
        Raises as ``create``.
        """
        client = client or default_client()
        body = given(
            template=template,
            name=name,
            vcpu=vcpu,
            memory_mib=memory_mib,
            storage_gib=storage_gib,
            isolation=isolation,
            driver=driver,
            env=dict(env) if env is not None else None,
            labels=dict(labels) if labels is not None else None,
            autosleep=duration(autosleep) if autosleep is not None else None,
            hibernate_after=duration(hibernate_after) if hibernate_after is not None else None,
            ttl=duration(ttl) if ttl is not None else None,
        )
        data = await client.http.call(
            "PUT", f"/v1/machines/by-key/{segment(key)}", json=body, **given(timeout=timeout)
        )
        return cls(client, data)

    @classmethod
    async def get(
        cls,
        machine_id: str | None = None,
        *,
        key: str | None = None,
        client: AsyncClient | None = None,
    ) -> Self:
        """By id or by key. Raises NotFoundError."""
        client = client or default_client()
        if (machine_id is None) == (key is None):
            raise TypeError("get() takes a machine id or key=, one of the two")
        if machine_id is not None:
            return cls(client, await client.http.call("GET", f"/v1/machines/{segment(machine_id)}"))
        page = await client.http.call("GET", "/v1/machines", params={"key": key, "limit": 1})
        if not page["items"]:
            raise error("MACHINE_NOT_FOUND", f"There is no machine with key {key!r}.")
        return cls(client, page["items"][0])

    @classmethod
    async def list(
        cls,
        *,
        phase: str | None = None,
        key: str | None = None,
        labels: Mapping[str, str] | None = None,
        template: str | None = None,
        limit: int | None = None,
        client: AsyncClient | None = None,
    ) -> builtins.list[Self]:
        """Newest first; ``limit=None`` is all. Destroyed ones only with ``phase="destroyed"``."""
        client = client or default_client()
        params = given(phase=phase, key=key, template=template)
        if labels:
            params["label"] = [f"{k}={v}" for k, v in labels.items()]
        pages = client.http.pages("/v1/machines", params, limit)
        return [cls(client, item) async for item in pages]

    # --- what it is -----------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return str(self._data["machine_id"])

    @property
    def key(self) -> str | None:
        return self._data.get("key")

    @property
    def name(self) -> str | None:
        return self._data.get("name")

    @property
    def phase(self) -> str:
        """As of the last answer; streams and files may have woken it since: ``refresh``."""
        return str(self._data["phase"])

    @property
    def isolation(self) -> dict[str, Any]:
        """{level, name, driver, boundary, accelerated, claim}: never more than is true."""
        return dict(self._data["isolation"])

    @property
    def template(self) -> str:
        return str(self._data["template"])

    @property
    def vcpu(self) -> float:
        return float(self._data["vcpu"])

    @property
    def memory_mib(self) -> int:
        return int(self._data["memory_mib"])

    @property
    def storage_gib(self) -> int:
        return int(self._data["storage_gib"])

    @property
    def autosleep(self) -> int | None:
        """Seconds without activity before it sleeps; None: never."""
        return self._data.get("autosleep_seconds")

    @property
    def hibernate_after(self) -> int | None:
        """Seconds it stays frozen before its memory goes to the disk; None: never."""
        return self._data.get("hibernate_after_seconds")

    @property
    def tier(self) -> str | None:
        """How it sleeps: frozen, hibernated, stopped; None: it does not."""
        tier: str | None = self._data["status"].get("tier")
        return tier

    @property
    def labels(self) -> dict[str, str]:
        return dict(self._data.get("labels") or {})

    @property
    def env(self) -> dict[str, str]:
        return dict(self._data.get("env") or {})

    @property
    def expires_at(self) -> datetime | None:
        return parse_time(self._data.get("expires_at"))

    @property
    def created_at(self) -> datetime | None:
        return parse_time(self._data.get("created_at"))

    @property
    def revision(self) -> int:
        return int(self._data["status"]["revision"])

    def to_json(self) -> dict[str, Any]:
        """The daemon's own record."""
        return dict(self._data)

    # --- its life -------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return f"/v1/machines/{self.id}"

    async def _apply(self, method: str, path: str, **options: Any) -> Self:
        self._data = await self._http.call(method, path, **options)
        return self

    async def _woken(self) -> None:
        """After what wakes a sleeping machine: what is known of it is out of date."""
        if self.phase != "running":
            await self.refresh()

    async def refresh(self) -> Self:
        return await self._apply("GET", self._path)

    async def update(
        self,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        autosleep: Duration | None = None,
        hibernate_after: Duration | None = None,
        ttl: Duration | Unset | None = UNSET,
        vcpu: float | None = None,
        memory_mib: int | None = None,
        storage_gib: int | None = None,
        if_revision: int | None = None,
    ) -> Self:
        """Changes what is given; ``ttl=None`` takes the end away; storage only grows.

        Raises ConflictError REVISION_MISMATCH where ``if_revision`` is no longer the machine's.
        """
        body = given(
            name=name,
            labels=dict(labels) if labels is not None else None,
            autosleep=duration(autosleep) if autosleep is not None else None,
            hibernate_after=duration(hibernate_after) if hibernate_after is not None else None,
            vcpu=vcpu,
            memory_mib=memory_mib,
            storage_gib=storage_gib,
        )
        if not isinstance(ttl, Unset):
            body["ttl"] = None if ttl is None else duration(ttl)
        headers = {} if if_revision is None else {"If-Match": f'"{if_revision}"'}
        return await self._apply("PATCH", self._path, json=body, headers=headers)

    async def sleep(self, tier: str | None = None) -> Self:
        """Leaves the host's memory and CPU; any call that needs it wakes it.

        ``tier``: "frozen" keeps memory resident and wakes within milliseconds, "hibernated" keeps it on disk and
        goes on from there (UnsupportedError where the rung cannot), "stopped" ends its processes and keeps the
        disk. Default: the deepest that keeps all the rung can.
        """
        return await self._apply("POST", f"{self._path}/sleep", params=given(tier=tier))

    async def wake(self) -> Self:
        return await self._apply("POST", f"{self._path}/wake")

    async def states(self) -> AsyncIterator[Self]:
        """This machine as it is, and again with every change, until it is destroyed; reconnects by itself.
        What changes quickly may be told as one."""
        last: str | None = None
        broken_since: float | None = None
        while self.phase != "destroyed":
            headers = {} if last is None else {"Last-Event-ID": last}
            source = events(self._http, "GET", f"{self._path}/status/stream", headers=headers)
            try:
                async for event in source:
                    if event.name == "error":
                        raise error("DAEMON_UNREACHABLE", str(event.data.get("message")))
                    broken_since, last = None, event.id
                    self._data = dict(event.data)
                    yield self
            except RoostError as failure:
                if failure.code not in BROKEN:
                    raise
                now = time.monotonic()
                broken_since = now if broken_since is None else broken_since
                if now - broken_since > RECONNECT_S:
                    raise
                log.warning("states of %s broke (%s); reconnecting", self.id, failure.code)
                await sleep(0.5)
            finally:
                await source.aclose()  # type: ignore[attr-defined]

    async def destroy(self, *, wait: bool = True) -> Self:
        """Ends it and deletes its disk. One that is gone already is no error."""
        try:
            return await self._apply("DELETE", self._path, params={} if wait else {"wait": "false"})
        except RoostError as failure:
            if failure.code != "MACHINE_NOT_FOUND":
                raise
            self._data["phase"] = "destroyed"
            return self

    async def fork(
        self,
        count: int | None = None,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: Duration | None = None,
        timeout: float | None = None,
    ) -> Self | builtins.list[Self]:
        """A machine that goes on from this one's instant: disk, and memory where the rung can. This one
        runs on. ``count=N``: a list of N, all or none.

        Raises CapacityError before anything is stopped, UnsupportedError, MachineError.
        """
        body = given(
            count=count,
            name=name,
            labels=dict(labels) if labels is not None else None,
            ttl=duration(ttl) if ttl is not None else None,
        )
        data = await self._http.call(
            "POST", f"{self._path}/fork", json=body, **given(timeout=timeout)
        )
        made = [type(self)(self._client, item, owned=True) for item in data["items"]]
        return made if count is not None else made[0]

    async def snapshot(self, name: str | None = None) -> AsyncSnapshot:
        """Disk, and memory where the rung can, at this instant; the machine runs on. ``name`` is unique
        among yours. Raises ConflictError ALREADY_EXISTS, CapacityError STORAGE_FULL, MachineError."""
        data = await self._http.call("POST", f"{self._path}/snapshots", json=given(name=name))
        return AsyncSnapshot(self._client, data)

    async def rollback(self, snapshot: AsyncSnapshot | str) -> Self:
        """Back to a snapshot of its own; what it did since is gone."""
        which = snapshot.id if isinstance(snapshot, AsyncSnapshot) else snapshot
        return await self._apply("POST", f"{self._path}/rollback", json={"snapshot": which})

    async def usage(self) -> dict[str, Any]:
        """{cpu_usage_us, memory_bytes, memory_limit_bytes, pids, disk_total_bytes, disk_used_bytes,
        uptime_ms}."""
        usage: dict[str, Any] = await self._http.call("GET", f"{self._path}/usage")
        return usage

    async def logs(self) -> builtins.list[dict[str, Any]]:
        """Its own life, oldest first: [{at, event, message}]."""
        items: builtins.list[dict[str, Any]] = (await self._http.call("GET", f"{self._path}/logs"))[
            "items"
        ]
        return items

    async def create_token(
        self,
        scope: str,
        *,
        port: int | None = None,
        name: str | None = None,
        ttl: Duration | None = None,
    ) -> dict[str, Any]:
        """{token_id, token, scope, port, expires_at, ...}: the only time the token itself is shown.

        ``scope``: "machine" reads this machine's own status; "preview" opens one ``port`` of it.
        """
        body = given(scope=scope, port=port, name=name, ttl=duration(ttl))
        made: dict[str, Any] = await self._http.call("POST", f"{self._path}/tokens", json=body)
        return made

    async def tokens(self) -> builtins.list[dict[str, Any]]:
        """Those neither revoked nor expired, oldest first."""
        return [item async for item in self._http.pages(f"{self._path}/tokens", {}, None)]

    async def revoke_token(self, token_id: str) -> None:
        """At once. Raises NotFoundError."""
        await self._http.call("DELETE", f"{self._path}/tokens/{segment(token_id)}")

    # --- what it does ---------------------------------------------------------------------------

    async def exec(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: str | bytes | None = None,
        timeout: float | None = None,
        check: bool = False,
    ) -> ExecResult:
        """Runs a command to its end, in one request.

        A string runs under ``/bin/sh -c``, a list is the argument vector. An exit code other than 0
        is a result, not an error, unless ``check`` (CommandFailed). ``timeout`` (s) ends everything
        it started and raises ExecTimeout with what it wrote in ``.result``. Raises
        InvalidRequestError COMMAND_NOT_FOUND where there is no such program.
        """
        result = await self.executions.run(
            execution_body(command, cwd=cwd, env=env, user=user, stdin=stdin, timeout=timeout)
        )
        await self._woken()
        if result.status == "expired":
            raise ExecTimeout(
                f"The command did not end within {timeout:g} s; all it started was killed."
                if timeout is not None
                else "The command's time ran out; all it started was killed.",
                result,
            )
        return result.check() if check else result

    def exec_stream(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: str | bytes | None = None,
        timeout: float | None = None,
        stdin_stream: bool = False,
    ) -> AsyncExecStream:
        """Runs a command and gives its output as it comes; starts when first iterated or entered."""
        body = execution_body(
            command,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            timeout=timeout,
            stdin_stream=stdin_stream,
        )
        return AsyncExecStream(self._http, self.id, body=body)

    async def start(self, command: Command, **options: Any) -> AsyncExecution:
        """Starts a command in the background; options as ``executions.start``."""
        execution = await self.executions.start(command, **options)
        await self._woken()
        return execution

    async def terminal(self, cols: int = 80, rows: int = 24, **options: Any) -> AsyncTerminal:
        """Opens a terminal and attaches to it; options as ``terminals.create``."""
        terminal = await self.terminals.create(cols, rows, **options)
        await self._woken()
        return terminal
