"""The connection to a daemon, and what belongs to the host rather than to one machine."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Self

import httpx

from roost.client._async._events import events
from roost.client._async._http import AsyncHTTP
from roost.client._async._io import scope
from roost.client._config import fingerprint, resolve
from roost.client._wire import Duration, duration, given, segment
from roost.errors import error, from_wire


class AsyncClient:
    """Thread-safe. ``url`` and ``api_key`` default to ROOST_URL, ROOST_API_KEY, then this host's daemon.

    ``timeout``: seconds an ordinary answer may take. ``max_retry_wait``: seconds in all that a call
    may wait where the daemon says it is busy and when to come back; 0: never. Raises AuthError
    when there is no key.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        max_retry_wait: float = 0.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.http = AsyncHTTP(
            resolve(url, api_key),
            timeout=timeout,
            max_retry_wait=max_retry_wait,
            transport=transport,
        )

    @property
    def url(self) -> str:
        return self.http.config.url

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.http.aclose()

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any call of the API. Options: json, params, headers, content, timeout (s). Raises RoostError."""
        return await self.http.request(method, path, **options)

    async def host(self) -> dict[str, Any]:
        """What this host is and can: {daemon, node_id, rungs, checks, default_driver, capacity, pool}; to who is
        no admin, without the host's own affairs."""
        host: dict[str, Any] = await self.http.call("GET", "/v1/host")
        return host

    async def capabilities(self) -> dict[str, Any]:
        """The contract of each rung on this host: {profile, default_driver, rungs: [{driver, claim, boundary, can,
        defends_against, does_not, available, allowed}], advice}. Each line says how it is known."""
        found: dict[str, Any] = await self.http.call("GET", "/v1/capabilities")
        return found

    async def templates(self) -> list[dict[str, Any]]:
        return [item async for item in self.http.pages("/v1/templates", {}, None)]

    async def template(self, name: str) -> dict[str, Any]:
        """Raises NotFoundError."""
        template: dict[str, Any] = await self.http.call("GET", f"/v1/templates/{segment(name)}")
        return template

    async def build_template(
        self, name: str, *, force: bool = False, driver: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Builds a shipped recipe: {stage, percent, message} as it goes, last {template: ...}.

        Raises MachineError TEMPLATE_BUILD_FAILED (details: step, line, command, exit_code, output).
        """
        params = given(force="true" if force else None, driver=driver)
        path = f"/v1/templates/{segment(name)}/build"
        async for event in events(self.http, "POST", path, params=params):
            if event.name == "progress":
                yield dict(event.data)
            elif event.name == "done":
                yield {"stage": "done", "percent": 100, "message": "", "template": dict(event.data)}
                return
            elif event.name == "error":
                raise from_wire(0, event.data)
        raise error("TEMPLATE_BUILD_FAILED", f"The daemon stopped while it built {name}.")

    async def collect_templates(
        self, *, older_than: int = 86400, dry_run: bool = False
    ) -> dict[str, Any]:
        """Deletes what builds left and nobody used for so many seconds: {dry_run, templates, layers, builds, bytes}."""
        params = {"older_than": older_than, "dry_run": "true" if dry_run else "false"}
        done: dict[str, Any] = await self.http.call("POST", "/v1/templates/gc", params=params)
        return done

    async def tree(self, machine_id: str | None = None) -> list[dict[str, Any]]:
        """Machines and snapshots by what they came of, oldest first: {kind, id, parent_id, from_snapshot_id, name,
        key, phase, tier, replaces, created_at}. All, or of one machine those it came of, itself and all that came
        of it."""
        found = await self.http.call("GET", "/v1/tree", params=given(machine=machine_id))
        return list(found["items"])

    async def keys(self, *, tenant: str | None = None) -> list[dict[str, Any]]:
        """Those neither revoked nor expired; ``tenant`` (id or name) is an admin's to name."""
        return [item async for item in self.http.pages("/v1/keys", given(tenant=tenant), None)]

    async def create_key(
        self,
        name: str,
        *,
        role: str | None = None,
        ttl: Duration | None = None,
        expires_at: datetime | None = None,
        tenant: str | None = None,
    ) -> dict[str, Any]:
        """{key_id, name, role, key, ...}: the only time the key itself is shown.

        ``role``: admin, tenant, runner (uses machines, approves of nothing), read_only; one's own by default. Raises ForbiddenError for one above that.
        """
        body = given(
            name=name,
            role=role,
            tenant=tenant,
            ttl=duration(ttl),
            expires_at=None if expires_at is None else expires_at.isoformat(),
        )
        key: dict[str, Any] = await self.http.call("POST", "/v1/keys", json=body)
        return key

    async def revoke_key(self, key_id: str) -> None:
        """At once, also for what it has open. Raises NotFoundError, ConflictError (the last one)."""
        await self.http.call("DELETE", f"/v1/keys/{segment(key_id)}")

    async def ssh(self) -> dict[str, Any]:
        """Where SSH into machines is answered: {enabled, host, port, host_key, fingerprint}; host None: where the
        API is."""
        found: dict[str, Any] = await self.http.call("GET", "/v1/ssh")
        return found

    async def ssh_keys(self) -> list[dict[str, Any]]:
        """{ssh_key_id, name, fingerprint, public_key, created_at, last_used_at}, oldest first."""
        return [item async for item in self.http.pages("/v1/ssh-keys", {}, None)]

    async def add_ssh_key(self, public_key: str, *, name: str | None = None) -> dict[str, Any]:
        """``public_key``: a line of an ``id_*.pub`` file, whose comment is the name unless one is given. Raises
        InvalidRequestError, ConflictError (it is there already), LimitError."""
        body = given(public_key=public_key, name=name)
        made: dict[str, Any] = await self.http.call("POST", "/v1/ssh-keys", json=body)
        return made

    async def remove_ssh_key(self, ssh_key_id: str) -> None:
        """At once, also for sessions it has open. Raises NotFoundError."""
        await self.http.call("DELETE", f"/v1/ssh-keys/{segment(ssh_key_id)}")

    async def usage(
        self,
        start: date | str | None = None,
        end: date | str | None = None,
        *,
        group_by: str | Sequence[str] = "day",
        tenant: str | None = None,
    ) -> dict[str, Any]:
        """What was used and what it costs, on these UTC days, both included (the last 30): {from, to, prices,
        items: [{day?, machine_id?, key_id?, vcpu_seconds, memory_gib_seconds, storage_gib_hours,
        egress_bytes, cost}], total}. ``group_by``: of day, machine, key; "" gives the total alone."""
        groups = [group_by] if isinstance(group_by, str) else list(group_by)
        params = {"from": start, "to": end, "tenant": tenant, "group_by": ",".join(groups)}
        found: dict[str, Any] = await self.http.call(
            "GET", "/v1/usage", params={k: str(v) for k, v in params.items() if v is not None}
        )
        return found

    # --- approvals --------------------------------------------------------------------------------

    async def approvals(
        self,
        *,
        machine_id: str | None = None,
        status: str = "pending",
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Commands that wait, newest first: {approval_id, machine_id, status, asked: {command, cwd, user, env, stdin, ...},
        asked_by, expires_at, ...}. ``status``: pending, approved, denied, expired, cancelled, any."""
        params = given(machine_id=machine_id, status=status)
        return [item async for item in self.http.pages("/v1/approvals", params, limit)]

    async def approval(self, approval_id: str) -> dict[str, Any]:
        """Raises NotFoundError."""
        found: dict[str, Any] = await self.http.call("GET", f"/v1/approvals/{segment(approval_id)}")
        return found

    async def approve(self, approval_id: str, *, note: str | None = None) -> dict[str, Any]:
        """What waits is started, once, exactly as it was asked for; who waits for it goes on. Raises ForbiddenError (not
        with this key), ConflictError (APPROVAL_EXPIRED, or it was decided before)."""
        return await self._decide(approval_id, "approve", note)

    async def deny(self, approval_id: str, *, note: str | None = None) -> dict[str, Any]:
        """Who waits for it hears APPROVAL_DENIED and the ``note``. Raises as ``approve``."""
        return await self._decide(approval_id, "deny", note)

    async def follow_approvals(
        self, *, machine_id: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """What waits now, then each as it is asked for and again as it is decided; never ends by itself."""
        params = given(machine_id=machine_id)
        async for event in events(self.http, "GET", "/v1/approvals/stream", params=params):
            if event.name == "error":
                raise from_wire(0, event.data)
            yield dict(event.data)

    async def _decide(self, approval_id: str, what: str, note: str | None) -> dict[str, Any]:
        path = f"/v1/approvals/{segment(approval_id)}/{what}"
        said: dict[str, Any] = await self.http.call("POST", path, json=given(note=note))
        return said

    # --- tenants: an admin's ----------------------------------------------------------------------

    async def tenants(self) -> list[dict[str, Any]]:
        """Oldest first: {tenant_id, name, quotas, created_at}."""
        return [item async for item in self.http.pages("/v1/tenants", {}, None)]

    async def tenant(self, tenant: str) -> dict[str, Any]:
        """By id or name, with what it has: ``used``. Raises NotFoundError."""
        found: dict[str, Any] = await self.http.call("GET", f"/v1/tenants/{segment(tenant)}")
        return found

    async def create_tenant(
        self,
        name: str,
        *,
        quotas: Mapping[str, float | None] | None = None,
        isolation: str | None = None,
    ) -> dict[str, Any]:
        """``isolation``: the least of its machines. ``quotas``: machines, awake_machines, vcpu, memory_mib, storage_gib, forks_per_minute,
        requests_per_second, request_burst; None: no limit. Raises ConflictError (the name)."""
        body = {"name": name, "quotas": dict(quotas or {}), **given(isolation=isolation)}
        made: dict[str, Any] = await self.http.call("POST", "/v1/tenants", json=body)
        return made

    async def update_tenant(
        self,
        tenant: str,
        *,
        name: str | None = None,
        quotas: Mapping[str, float | None] | None = None,
        isolation: str | None = None,
    ) -> dict[str, Any]:
        """Quotas that are not named stay. ``isolation``: the least of its machines, "none": the profile's; those below it
        run on and wake no more until they are promoted. Raises NotFoundError."""
        body = given(name=name, quotas=dict(quotas) if quotas else None, isolation=isolation)
        if isolation == "none":
            body["isolation"] = None
        path = f"/v1/tenants/{segment(tenant)}"
        changed: dict[str, Any] = await self.http.call("PATCH", path, json=body)
        return changed

    async def delete_tenant(self, tenant: str) -> None:
        """With its keys. Raises ConflictError IN_USE while it has machines or snapshots."""
        await self.http.call("DELETE", f"/v1/tenants/{segment(tenant)}")

    async def quotas(self) -> dict[str, Any]:
        """The caller's own tenant: {tenant_id, name, quotas, used, created_at}."""
        own: dict[str, Any] = await self.http.call("GET", "/v1/quotas")
        return own

    # --- the audit log ----------------------------------------------------------------------------

    async def audit(
        self,
        *,
        machine_id: str | None = None,
        key_id: str | None = None,
        tenant_id: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Who changed what, newest first; ``limit=None`` is all. A tenant sees its own, an admin all."""
        params = given(
            machine_id=machine_id,
            key_id=key_id,
            tenant_id=tenant_id,
            action=action,
            since=None if since is None else since.isoformat(),
            until=None if until is None else until.isoformat(),
        )
        return [item async for item in self.http.pages("/v1/audit", params, limit)]

    async def follow_audit(
        self,
        *,
        machine_id: str | None = None,
        key_id: str | None = None,
        tenant_id: str | None = None,
        action: str | None = None,
        after: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Each as it is written, from now on or from after the entry of that id; never ends by itself."""
        params = given(machine_id=machine_id, key_id=key_id, tenant_id=tenant_id, action=action)
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        path = "/v1/audit/stream"
        async for event in events(self.http, "GET", path, params=params, headers=headers):
            if event.name == "error":
                raise from_wire(0, event.data)
            yield dict(event.data)


_shared: weakref.WeakKeyDictionary[object, tuple[tuple[str | None, ...], AsyncClient]] = (
    weakref.WeakKeyDictionary()
)
_lock = threading.Lock()


def default_client() -> AsyncClient:
    """The shared client of this process (and event loop); another one when the settings change."""
    where, now = scope(), fingerprint()
    with _lock:
        made = _shared.get(where)
        if made is None or made[0] != now:
            made = _shared[where] = (now, AsyncClient())
        return made[1]
