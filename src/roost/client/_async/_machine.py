"""A machine: made, found, driven, ended."""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Any, Self

import httpx

from roost.client._async._browser import AsyncBrowser
from roost.client._async._client import AsyncClient, default_client
from roost.client._async._code import AsyncCode, OnResult, OnText
from roost.client._async._computer import AsyncComputer
from roost.client._async._events import events
from roost.client._async._executions import AsyncExecution, AsyncExecutions
from roost.client._async._files import AsyncFiles
from roost.client._async._forward import AsyncForward
from roost.client._async._http import log
from roost.client._async._io import in_thread, sleep
from roost.client._async._ports import AsyncPorts, AsyncPreviewTransport
from roost.client._async._snapshot import AsyncSnapshot
from roost.client._async._stream import BROKEN, RECONNECT_S, AsyncExecStream
from roost.client._async._terminal import AsyncTerminal, AsyncTerminals
from roost.client._diff import PATCH_BYTES, PATCH_FILES, Diff, Difference, patchable, unified
from roost.client._explored import Explored
from roost.client._results import CodeResult
from roost.client._types import Egress, EgressPolicy, ExecResult, ExecTimeout, Secret, parse_time
from roost.client._wire import (
    UNSET,
    Command,
    Duration,
    Unset,
    duration,
    egress_body,
    execution_body,
    given,
    listed,
    path_query,
    segment,
    tools_body,
    volumes_body,
)
from roost.errors import RoostError, error

START_S = 900.0  # an answer that waits for a machine and for what its template starts


class AsyncMachine:
    """Get one with ``create``, ``ensure``, ``get`` or ``list``.

    As a context manager a machine from ``create`` is destroyed at the end, and what took its place
    (``promote``); one from ``ensure``, ``get`` or ``list`` goes on. The properties are as of the last answer; ``refresh`` asks again.
    """

    def __init__(
        self, client: AsyncClient, data: Mapping[str, Any], *, owned: bool = False
    ) -> None:
        self._client = client
        self._http = client.http
        self._data = dict(data)
        self._owned = owned
        self._successors: list[AsyncMachine] = []  # that took its place: its block ends them, too
        self.files = AsyncFiles(self._http, self.id)
        self.executions = AsyncExecutions(self._http, self.id)
        self.terminals = AsyncTerminals(self._http, self.id)
        self.ports = AsyncPorts(self._http, self.id)
        self.browser = AsyncBrowser(self._http, self.id)
        self.computer = AsyncComputer(self._http, self.id)
        self.code = AsyncCode(self._http, self.id)

    def __repr__(self) -> str:
        key = f" key={self.key}" if self.key else ""
        return f"<{type(self).__name__} {self.id}{key} {self.phase}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if not self._owned:
            return
        try:
            for machine in (self, *self._successors):
                await machine.destroy()
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
        egress: str | Mapping[str, Any] | None = None,
        secrets: Sequence[Secret] = (),
        volumes: Sequence[str | Mapping[str, Any]] | None = None,
        expiry: str | None = None,
        autowake: bool | None = None,
        unrestricted: bool | None = None,
        run_as: str | None = None,
        allow_inside: Sequence[str] | None = None,
        inside_forks: int | None = None,
        tools: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        wait: bool = True,
        timeout: float | None = None,
        client: AsyncClient | None = None,
    ) -> Self:
        """A new machine, running when this returns (with ``wait=False``: on its way).

        ``isolation``: auto, workspace, user, container, microvm. ``autosleep`` and ``ttl`` are
        durations: "5m", 300, a timedelta; autosleep also "never". A machine that was idle for so long is
        frozen, and after ``hibernate_after`` ("10m", "never") its memory goes to the disk; what needs it wakes it.
        ``timeout`` bounds the request (s; 15 minutes unless named: a template's first machine may take some).
        ``template`` is "base" unless named; it says how large the machine is where that is not asked for, and what it
        starts: that is ready on return. With ``snapshot`` (itself, its id or name) the machine goes on
        from there (with ``memory=False`` from its disk alone); template, rung, size and env are then the
        snapshot's and cannot be given.
        ``egress``: what it may reach, "open", "off", or {"allow": ["python.example", "*.mirror.example",
        "192.0.2.0/24:5432"]}; with "observe": True all that it tries is listed (``egress``).
        ``secrets`` are what its requests carry and it never sees.
        ``volumes``: disks of their own (``Volume``) that it mounts, "NAME:/path", "NAME:/path:ro" or {"name", "path",
        "read_only"}; it has them until it is destroyed. Such a machine boots, and what is made from it has no memory.
        ``expiry``: what the ttl ends in, "destroy" or "sleep" (then it has no ttl any more). ``autowake=False``: once it
        sleeps, calls that need it raise ConflictError MACHINE_SLEEPING until ``wake``.
        ``unrestricted``: without the guardrails inside it, such as a tool policy; the boundary around it is the same.
        ``warnings`` then says what that means on its rung.
        ``run_as``: the user ("user", "1000", "user:group") that commands and terminals run as unless they say;
        default: the template's, mostly root.
        ``allow_inside``: what its programs may ask of the daemon by ``roost`` inside, beyond looking at it:
        "expose" (a port, to its owner), "publish" (to everybody), "fork" (``inside_forks`` times in its life),
        "sleep".
        ``tools``: which programs may be run in it, "off" (all), or {"mode": "ask" or "deny", "allow": [{"program":
        "git", "args": ["status", "..."]}]}: what is not listed waits for approval, or is refused (``set_tools``).
        Raises InvalidRequestError (what cannot be), ConflictError (the key is taken, VOLUME_IN_USE), LimitError,
        CapacityError, MachineError (TEMPLATE_NOT_READY: ``details["machine_id"]`` runs, what it starts does not).
        """
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
            secrets=[each.to_json() for each in secrets] or None,
            egress=egress_body(egress),
            volumes=volumes_body(volumes),
            expiry=expiry,
            autowake=autowake,
            unrestricted=unrestricted,
            run_as=run_as,
            allow_inside=listed(allow_inside),
            inside_forks=inside_forks,
            tools=tools_body(tools),
        )
        data = await client.http.call(
            "POST",
            "/v1/machines",
            json=body,
            params={} if wait else {"wait": "false"},
            timeout=timeout or max(client.http.timeout, START_S),
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
        egress: str | Mapping[str, Any] | None = None,
        volumes: Sequence[str | Mapping[str, Any]] | None = None,
        expiry: str | None = None,
        autowake: bool | None = None,
        unrestricted: bool | None = None,
        run_as: str | None = None,
        allow_inside: Sequence[str] | None = None,
        inside_forks: int | None = None,
        tools: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
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
            egress=egress_body(egress),
            volumes=volumes_body(volumes),
            expiry=expiry,
            autowake=autowake,
            unrestricted=unrestricted,
            run_as=run_as,
            allow_inside=listed(allow_inside),
            inside_forks=inside_forks,
            tools=tools_body(tools),
        )
        data = await client.http.call(
            "PUT",
            f"/v1/machines/by-key/{segment(key)}",
            json=body,
            timeout=timeout or max(client.http.timeout, START_S),
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
        phase: str | Sequence[str] | None = None,
        key: str | None = None,
        labels: Mapping[str, str] | None = None,
        template: str | None = None,
        parent: str | None = None,
        since: datetime | None = None,
        order: str | None = None,
        limit: int | None = None,
        client: AsyncClient | None = None,
    ) -> builtins.list[Self]:
        """Newest first, or with ``order="oldest"``; ``limit=None`` is all. ``phase``: one, or any of several; destroyed
        ones only where it says so. ``labels``: all of these. ``parent``: those that went on from the machine of this id.
        ``since``: made then or later."""
        client = client or default_client()
        params = given(
            phase=listed(phase),
            key=key,
            template=template,
            parent=parent,
            since=None if since is None else since.isoformat(),
            order=order,
        )
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
    def inside(self) -> dict[str, Any]:
        """What it may ask of the daemon itself: {allow, forks, forked}; nothing of a daemon that knows of none."""
        return dict(self._data.get("inside") or {"allow": [], "forks": 0, "forked": 0})

    @property
    def tools(self) -> dict[str, Any]:
        """Which programs may be run in it: {mode, allow}; "off": all."""
        return dict(self._data.get("tools") or {"mode": "off", "allow": []})

    @property
    def volumes(self) -> builtins.list[dict[str, Any]]:
        """What it mounts: {volume_id, name, path, read_only}."""
        return [dict(each) for each in self._data.get("volumes") or ()]

    @property
    def expiry(self) -> str:
        """What its ttl ends in: destroy or sleep."""
        return str(self._data.get("expiry", "destroy"))

    @property
    def autowake(self) -> bool:
        """Whether what needs it wakes it."""
        return bool(self._data.get("autowake", True))

    @property
    def run_as(self) -> str | None:
        """Whom commands and terminals run as unless they say; None: the template's user."""
        return self._data.get("run_as")

    @property
    def expires_at(self) -> datetime | None:
        return parse_time(self._data.get("expires_at"))

    @property
    def created_at(self) -> datetime | None:
        return parse_time(self._data.get("created_at"))

    @property
    def client(self) -> AsyncClient:
        """The connection it was found by."""
        return self._client

    @property
    def parent(self) -> str | None:
        """The id of the machine it went on from, which may be gone by now; None: it began from a template."""
        return self._data.get("parent_id")

    @property
    def unrestricted(self) -> bool:
        return bool(self._data.get("unrestricted"))

    @property
    def warnings(self) -> Sequence[str]:
        """What its owner ought to know of how it runs."""
        return tuple(self._data.get("warnings") or ())

    @property
    def replaces(self) -> str | None:
        """The id of the machine whose place it took (``promote``)."""
        return self._data.get("replaces")

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
        expiry: str | None = None,
        autowake: bool | None = None,
        run_as: str | None = None,
        allow_inside: Sequence[str] | None = None,
        inside_forks: int | None = None,
        if_revision: int | None = None,
    ) -> Self:
        """Changes what is given; ``ttl=None`` takes the end away; a disk cannot grow yet; ``allow_inside`` replaces what
        was allowed; ``run_as=""``: the template's user again.

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
            expiry=expiry,
            autowake=autowake,
            run_as=run_as,
            allow_inside=listed(allow_inside),
            inside_forks=inside_forks,
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
        return await self._apply(
            "POST", f"{self._path}/wake", timeout=max(self._http.timeout, START_S)
        )

    async def reboot(self) -> Self:
        """Running again from its disk: its processes are gone, whatever it was doing."""
        return await self._apply(
            "POST", f"{self._path}/reboot", timeout=max(self._http.timeout, START_S)
        )

    def forward(self, remote: int, local: int = 0, *, host: str = "127.0.0.1") -> AsyncForward:
        """While it is entered, ``host:local`` here is port ``remote`` of the machine, raw TCP (0: a free port, see
        ``.port``). Connections wake the machine and keep it awake.

            async with m.forward(5432) as f: connect(f.host, f.port)
        """
        return AsyncForward(self._http.config, self.id, remote, local, host)

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
        key: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: Duration | None = None,
        inherit_secrets: bool | None = None,
        egress: str | Mapping[str, Any] | None = None,
        snapshot: AsyncSnapshot | str | None = None,
        volumes: Sequence[str | Mapping[str, Any]] | None = None,
        expiry: str | None = None,
        autowake: bool | None = None,
        allow_inside: Sequence[str] | None = None,
        inside_forks: int | None = None,
        timeout: float | None = None,
    ) -> Self | builtins.list[Self]:
        """A machine that goes on from this one's instant: disk, and memory where the rung can. This one
        runs on. ``count=N``: a list of N, all or none. ``key``: of the one there is without ``count``. ``snapshot``: one of this machine, to go on from its instant
        instead. Its secrets are the children's only with ``inherit_secrets``. ``egress`` as of ``create``; by default as this one's.
        What this one may ask itself is not inherited: ``allow_inside`` as of ``create``. ``volumes`` as of ``create``; by
        default those this one has read-only. A machine with volumes is forked by its disk alone.

        Raises CapacityError before anything is stopped, ConflictError (the key), UnsupportedError, MachineError.
        """
        body = given(
            count=count,
            key=key,
            name=name,
            labels=dict(labels) if labels is not None else None,
            ttl=duration(ttl) if ttl is not None else None,
            inherit_secrets=inherit_secrets,
            egress=egress_body(egress),
            snapshot=snapshot.id if isinstance(snapshot, AsyncSnapshot) else snapshot,
            volumes=volumes_body(volumes),
            expiry=expiry,
            autowake=autowake,
            allow_inside=listed(allow_inside),
            inside_forks=inside_forks,
        )
        data = await self._http.call(
            "POST",
            f"{self._path}/fork",
            json=body,
            timeout=timeout or max(self._http.timeout, START_S),
        )
        made = [type(self)(self._client, item, owned=True) for item in data["items"]]
        return made if count is not None else made[0]

    async def children(self) -> builtins.list[Self]:
        """Machines that went on from this one and live, newest first."""
        return await type(self).list(parent=self.id, client=self._client)

    async def promote(
        self,
        onto: AsyncMachine | str | None = None,
        *,
        previous: str = "keep",
        isolation: str | None = None,
        driver: str | None = None,
    ) -> Self:
        """With ``isolation`` ("container", "microvm") or ``driver``: up the ladder, with its disk, id, key, ports and
        policy. What runs in it ends and its memory is dropped; it runs there if it ran. Once more changes nothing.
        Raises ConflictError RUNG_LOWER (there is no way down), ForbiddenError RUNG_REFUSED, InvalidRequestError
        RUNG_UNAVAILABLE.

        Else it takes the place of its parent (``onto``): key, name, end, ports with their hosts and links, and preview
        tokens. Size, labels, policy and secrets stay its own. ``previous``: what becomes of that machine, "keep" (it
        lives on without those) or "destroy". Once more changes nothing; ``parent.promote(child)`` takes it back.

        Raises ConflictError: they are not parent and child, or both have a key. Then nothing has changed."""
        if isolation is not None or driver is not None:
            if onto is not None:
                raise TypeError(
                    "promote() takes isolation= or driver=, or a machine whose place it takes"
                )
            body = given(isolation=isolation, driver=driver)
            long = max(self._http.timeout, START_S)
            return await self._apply("POST", f"{self._path}/promote", json=body, timeout=long)
        which = onto.id if isinstance(onto, AsyncMachine) else onto
        body = given(onto=which, previous=previous)
        await self._apply("POST", f"{self._path}/promote", json=body)
        if isinstance(onto, AsyncMachine) and onto is not self:
            onto._successors.append(self)
        return self

    async def diff(
        self,
        other: AsyncMachine | str,
        path: str | bytes | PurePath = "/",
        *,
        exclude: Sequence[str] = (),
        limit: int | None = None,
        patch: bool = False,
        timeout: float | None = None,
    ) -> Diff:
        """What differs in files, from this machine to ``other`` (itself or its id): "added" is what the other alone
        has. ``base.diff(child)`` is what the child did. Wakes both.

        Below ``path`` without ``exclude`` (absolute paths, with all below them), what is mounted, and what Roost itself
        writes (host name, machine id, SSH host keys). Nothing is read of what nobody wrote to since one came of the
        other. ``patch``: of the first text files, 256 KiB at most each, also their contents as ``diff -u``.

        Raises NotFoundError (FILE_NOT_FOUND: in both), UnsupportedError (a machine that runs since an earlier release
        of Roost: sleep it with "stopped" and wake it)."""
        other_id = other.id if isinstance(other, AsyncMachine) else other
        params = {
            **path_query(path),
            **given(other=other_id, exclude=[*exclude] or None, limit=limit),
        }
        found = Diff.from_json(
            await self._http.call(
                "GET", f"{self._path}/diff", params=params, **given(timeout=timeout)
            )
        )
        return await self._patched(found) if patch else found

    async def _patched(self, found: Diff) -> Diff:
        items = []
        left = PATCH_FILES
        for each in found.items:
            if left and patchable(each):
                left -= 1
                each = replace(each, patch=await self._patch(each, found.other))
            items.append(each)
        return replace(found, items=tuple(items))

    async def _patch(self, difference: Difference, other: str) -> str | None:
        """None where one of them has changed meanwhile."""
        path = difference.path if difference.path_bytes is None else difference.path_bytes
        if not self.isolation[
            "level"
        ]:  # of a workspace they are told as if its directory were the root
            path = path[1:]
        texts: builtins.list[bytes | None] = []
        for side, files in (
            (difference.before, self.files),
            (difference.after, AsyncFiles(self._http, other)),
        ):
            try:
                text = None
                if side is not None:
                    text = await files.read(path, length=PATCH_BYTES) if side.size else b""
            except RoostError:
                return None
            texts.append(text)
        return await in_thread(unified, difference.path, texts[0], texts[1])

    async def explore(
        self, strategies: Sequence[Any], run: Callable[..., Any], *args: Any, **options: Any
    ) -> Explored[AsyncMachine]:
        """Best of N with this machine as base: ``roost.explore``."""
        from roost.client._async._explore import explore

        return await explore(self, strategies, run, *args, **options)

    async def snapshot(self, name: str | None = None) -> AsyncSnapshot:
        """Disk, and memory where the rung can, at this instant; the machine runs on. ``name`` is unique
        among yours. Raises ConflictError ALREADY_EXISTS, CapacityError STORAGE_FULL, MachineError."""
        data = await self._http.call("POST", f"{self._path}/snapshots", json=given(name=name))
        return AsyncSnapshot(self._client, data)

    async def rollback(self, snapshot: AsyncSnapshot | str) -> Self:
        """Back to a snapshot of its own; what it did since is gone."""
        which = snapshot.id if isinstance(snapshot, AsyncSnapshot) else snapshot
        return await self._apply("POST", f"{self._path}/rollback", json={"snapshot": which})

    async def secrets(self) -> builtins.list[dict[str, Any]]:
        """[{name, hosts, header, format, placeholder, in_body, created_at, updated_at}]; no values."""
        data = await self._http.call("GET", f"{self._path}/secrets")
        return builtins.list(data["items"])

    async def set_secret(
        self,
        name: str,
        value: str | None = None,
        *,
        hosts: Sequence[str] | None = None,
        header: str | None = None,
        format: str | None = None,
        placeholder: str | None = None,
        in_body: bool | None = None,
    ) -> dict[str, Any]:
        """Made, or changed from the next request on: what is not named stays. As ``roost.Secret``.

        Raises InvalidRequestError, UnsupportedError (its rung cannot keep secrets out)."""
        body = given(
            value=value,
            hosts=builtins.list(hosts) if hosts is not None else None,
            header=header,
            format=format,
            placeholder=placeholder,
            in_body=in_body,
        )
        path = f"{self._path}/secrets/{segment(name)}"
        made: dict[str, Any] = await self._http.call("PUT", path, json=body)
        return made

    async def delete_secret(self, name: str) -> None:
        """No request carries it any more. Raises NotFoundError."""
        await self._http.call("DELETE", f"{self._path}/secrets/{segment(name)}")

    async def usage(self) -> dict[str, Any]:
        """{cpu_usage_us, memory_bytes, memory_limit_bytes, pids, disk_total_bytes, disk_used_bytes,
        uptime_ms}."""
        usage: dict[str, Any] = await self._http.call("GET", f"{self._path}/usage")
        return usage

    async def metrics(
        self, start: datetime | None = None, end: datetime | None = None
    ) -> builtins.list[dict[str, Any]]:
        """What it used, oldest first: [{at, cpu_count, cpu_used_pct, memory_used_bytes, memory_total_bytes,
        memory_cache_bytes, disk_used_bytes, disk_total_bytes}], one a minute while it ran (a day at most, since the
        daemon started) and one of now. Does not wake it."""
        params = given(
            start=None if start is None else start.isoformat(),
            end=None if end is None else end.isoformat(),
        )
        found = await self._http.call("GET", f"{self._path}/metrics", params=params)
        items: builtins.list[dict[str, Any]] = found["items"]
        return items

    async def logs(self) -> builtins.list[dict[str, Any]]:
        """Its own life, oldest first: [{at, event, message}]."""
        items: builtins.list[dict[str, Any]] = (await self._http.call("GET", f"{self._path}/logs"))[
            "items"
        ]
        return items

    # --- what it may reach ------------------------------------------------------------------------

    async def egress(self) -> Egress:
        """The policy, what was tried since the machine last started, and what would have let it through."""
        return Egress.from_json(await self._http.call("GET", f"{self._path}/egress"))

    async def set_egress(
        self,
        mode: str,
        *,
        allow: Sequence[str] | None = None,
        observe: bool = False,
        if_revision: int | None = None,
    ) -> EgressPolicy:
        """Replaces the policy: "open", "allowlist" with ``allow``, or "off". When this returns it holds, and live
        connections that it does not allow are cut; a machine that sleeps has it from its next start on.

        Raises UnsupportedError where the rung cannot enforce it; UnavailableError (the policy before holds)."""
        body = given(mode=mode, allow=None if allow is None else [*allow], observe=observe)
        return await self._set_egress("PUT", body, if_revision)

    async def allow(self, *entries: str, if_revision: int | None = None) -> EgressPolicy:
        """Adds to the allowlist; raises InvalidRequestError where the mode is another."""
        return await self._set_egress("PATCH", {"add": [*entries]}, if_revision)

    async def deny(self, *entries: str, if_revision: int | None = None) -> EgressPolicy:
        """Takes from the allowlist; raises InvalidRequestError where another entry would still allow it."""
        return await self._set_egress("PATCH", {"remove": [*entries]}, if_revision)

    async def observe(self, on: bool = True) -> EgressPolicy:
        """Whether all that is tried is listed, allowed or not."""
        return await self._set_egress("PATCH", {"observe": on}, None)

    async def _set_egress(
        self, method: str, body: Mapping[str, Any], if_revision: int | None
    ) -> EgressPolicy:
        headers = {} if if_revision is None else {"If-Match": f'"{if_revision}"'}
        path = f"{self._path}/egress"
        data = await self._http.call(method, path, json=body, headers=headers)
        return EgressPolicy.from_json(data)

    async def set_tools(
        self,
        mode: str,
        allow: Sequence[Mapping[str, Any]] = (),
        *,
        if_revision: int | None = None,
    ) -> dict[str, Any]:
        """Replaces which programs may be run: "off" (all), "ask" (what ``allow`` does not cover waits for approval,
        ``Client.approve``) or "deny" (it is refused, TOOL_DENIED). It holds for what is begun from then on.

        A rule: {"program": a name or an absolute path, "args": a pattern each, "..." last for any more; None any, "env":
        variables a call may add, "users": users it may name}. Words are taken as they are; in patterns ``*`` stands for
        no slash, ``**`` for anything. It guards against mistakes: who may write files may write over a program."""
        body = {"mode": mode, "allow": [dict(each) for each in allow]}
        headers = {} if if_revision is None else {"If-Match": f'"{if_revision}"'}
        path = f"{self._path}/tools"
        tools: dict[str, Any] = await self._http.call("PUT", path, json=body, headers=headers)
        self._data["tools"] = tools
        return dict(tools)

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

    async def url(self, port: int) -> str:
        """Where a browser finds an HTTP server on this port; shown privately where it was not (``ports``). Raises
        UnsupportedError for a tcp port."""
        return _url(await self.ports.ensure(port))

    async def link(self, port: int, ttl: float | timedelta = 3600) -> str:
        """As ``url``, for whoever has it, for so many seconds."""
        await self.url(port)
        return str((await self.ports.link(port, ttl))["url"])

    async def http(self, port: int, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of the server on this port, by the daemon; close it. Options as ``httpx.AsyncClient``."""
        url = await self.url(port)
        config = self._http.config
        transport = AsyncPreviewTransport(url, config.url, config.api_key)
        return httpx.AsyncClient(base_url=url, transport=transport, **options)

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
        InvalidRequestError COMMAND_NOT_FOUND where there is no such program. One that is not on the machine's list of
        tools waits until somebody approves of it; ForbiddenError TOOL_DENIED, APPROVAL_DENIED, ConflictError
        APPROVAL_EXPIRED where nobody does.
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

    async def run_code(
        self,
        code: str,
        language: str = "python",
        *,
        context: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
    ) -> CodeResult:
        """Runs code in a Jupyter kernel of the machine (template ``code-interpreter``), which keeps what it made for the
        next call. Gives what it printed, the value of its last line, tables (html) and pictures (png).

        ``context``: a kernel of its own ("default"; of another language than Python its name). ``timeout`` (s, 300 by default) interrupts it and raises
        CodeTimeout; what it had made is kept. ``on_stdout``, ``on_stderr`` (text), ``on_result`` (a CodeOutput) are
        called as it comes. An exception of the code is ``result.error``, raised as CodeFailed with ``check``. Raises
        UnsupportedError (it has no kernels), InvalidRequestError (no such language), MachineError KERNEL_DOWN.
        """
        result = await self.code.run(
            code,
            language=language,
            context=context,
            timeout=timeout,
            check=check,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_result=on_result,
        )
        await self._woken()
        return result

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


def _url(port: Mapping[str, Any]) -> str:
    if port["url"] is None:
        raise error("UNSUPPORTED", f"Port {port['port']} is shown as tcp: no browser opens that.")
    return str(port["url"])
