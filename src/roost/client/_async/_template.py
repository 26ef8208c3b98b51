"""Templates: what machines start from; and their building."""

from __future__ import annotations

import builtins
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from roost.client._async import _export
from roost.client._async._client import AsyncClient, default_client
from roost.client._async._events import events
from roost.client._async._http import AsyncHTTP
from roost.client._async._io import from_iterator, in_thread, sleep
from roost.client._recipe import Recipe, recipe
from roost.client._types import parse_time
from roost.client._wire import given, segment
from roost.errors import RoostError, error, from_wire
from roost.templates.pack import pack

_ENDED = ("succeeded", "failed", "cancelled")
_WHOLE = "FROM oci:.\n"  # the context is the image
Log = Callable[[dict[str, Any]], object] | None
_TRIES = 5  # to hear a build again whose log broke off


class AsyncTemplate:
    """Make one with ``build``, machines from it with ``Machine.create(template=...)``."""

    def __init__(self, client: AsyncClient, data: Mapping[str, Any]) -> None:
        self._client = client
        self._http = client.http
        self._data = dict(data)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {(self.digest or self.status)[:19]}>"

    @classmethod
    async def build(
        cls,
        name: str,
        path: str | os.PathLike[str] | None = None,
        *,
        dockerfile: str | os.PathLike[str] | None = None,
        context: str | os.PathLike[str] | None = None,
        roost_toml: str | None = None,
        tags: Sequence[str] = (),
        build_args: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        credentials: Mapping[str, Mapping[str, str]] | None = None,
        driver: str | None = None,
        no_cache: bool = False,
        keep_failed: bool = False,
        on_log: Log = None,
        client: AsyncClient | None = None,
    ) -> Self:
        """Builds a Dockerfile to the template ``name`` (or ``name:tag``), and waits.

        ``path``: the directory with the Dockerfile, its roost.toml and what it copies. Or ``dockerfile``: its
        text, or (as a Path) its file; with ``context``: the directory it copies from. ``tags``: further names.
        ``secrets``: by id, for RUN --mount=type=secret. ``credentials``: {registry: {username, password}}.
        ``keep_failed``: the machine of a step that fails stays (``details["machine_id"]`` of the error).
        ``on_log``: hears {event: step|log, step, ...} as it goes. Interrupted, it cancels the build.

        Raises InvalidRequestError DOCKERFILE_INVALID (details.line), MachineError TEMPLATE_BUILD_FAILED
        (details: step, line, command, exit_code, output).
        """
        made = await AsyncBuild.start(
            name,
            path,
            dockerfile=dockerfile,
            context=context,
            roost_toml=roost_toml,
            tags=tags,
            build_args=build_args,
            secrets=secrets,
            credentials=credentials,
            driver=driver,
            no_cache=no_cache,
            keep_failed=keep_failed,
            client=client,
        )
        return await cls._heard(made, on_log)

    @classmethod
    async def _heard(cls, made: AsyncBuild, on_log: Log) -> Self:
        try:
            async for event in made.events():
                if on_log is not None:
                    on_log(event)
        except RoostError:
            raise
        except BaseException:
            await made.cancel()
            raise
        return cls(made.client, (await made.template()).to_json())

    @classmethod
    async def load(
        cls,
        source: str | os.PathLike[str],
        name: str,
        *,
        on_log: Log = None,
        progress: _export.Progress = None,
        client: AsyncClient | None = None,
    ) -> Self:
        """The template that ``export`` wrote, or any image as a tar (an oci-archive, what ``docker save`` wrote), as
        ``name`` (or ``name:tag``). Unpacked inside a machine, so nobody need be trusted. ``progress`` hears how many
        bytes went. Raises as ``build``."""
        client = client or default_client()
        made = await AsyncBuild.start(name, dockerfile=_WHOLE, client=client, sent=False)
        try:
            await made._put(_export.content(Path(source), progress))
        except BaseException:
            await made.cancel()
            raise
        return await cls._heard(made, on_log)

    async def export(self, to: str | os.PathLike[str], *, progress: _export.Progress = None) -> int:
        """As one file at ``to``, whole or not at all; its bytes. It is an OCI image of one layer (an oci-archive), that
        other tools read, too."""
        return await _export.save(self.read(), Path(to), progress)

    async def read(self) -> AsyncIterator[bytes]:
        """That file's bytes as they come."""
        path = f"/v1/templates/{segment(self._known)}/export"
        async with self._http.stream("GET", path, timeout=None) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    @classmethod
    async def get(cls, template: str, *, client: AsyncClient | None = None) -> Self:
        """By name, name:tag, name@digest or id. Raises NotFoundError."""
        client = client or default_client()
        return cls(client, await client.template(template))

    @classmethod
    async def list(
        cls, *, unnamed: bool = False, client: AsyncClient | None = None
    ) -> builtins.list[Self]:
        """By name; ``unnamed``: also those that have lost theirs."""
        client = client or default_client()
        params = {"unnamed": "true"} if unnamed else {}
        found = await client.http.call("GET", "/v1/templates", params=params)
        return [cls(client, item) for item in found["items"]]

    async def tag(self, name: str) -> Self:
        """Another name of it; one that was another's moves here."""
        path = f"/v1/templates/{segment(self._known)}/tags"
        data = await self._http.call("POST", path, json={"name": name})
        return type(self)(self._client, data)

    async def delete(self) -> None:
        """With all its names. Raises ConflictError IN_USE (details.used_by), ForbiddenError (shipped)."""
        await self._http.call("DELETE", f"/v1/templates/{segment(self._known)}")

    @property
    def _known(self) -> str:
        """What it is asked for by: a shipped one that is not built has no id."""
        return self.id or self.name

    @property
    def id(self) -> str:
        return str(self._data["template_id"])

    @property
    def name(self) -> str:
        return str(self._data["name"])

    @property
    def tags(self) -> builtins.list[str]:
        """All its names, each name:tag."""
        return builtins.list(self._data.get("tags") or [])

    @property
    def status(self) -> str:
        """unbuilt, building, ready or failed."""
        return str(self._data["status"])

    @property
    def digest(self) -> str | None:
        """Of all that is in it: machines of one digest begin alike."""
        return self._data.get("digest")

    @property
    def size_bytes(self) -> int | None:
        """Allocated, with what it shares with others."""
        return self._data.get("size_bytes")

    @property
    def config(self) -> dict[str, Any]:
        """env, user, workdir, start, ready, ports, size, ..."""
        return dict(self._data.get("config") or {})

    @property
    def shipped(self) -> bool:
        """A recipe of the installation, everybody's."""
        return bool(self._data.get("shipped"))

    @property
    def created_at(self) -> datetime | None:
        return parse_time(self._data.get("created_at"))

    def to_json(self) -> dict[str, Any]:
        """The daemon's own record."""
        return dict(self._data)


class AsyncBuild:
    """One build under way, or ended."""

    def __init__(self, client: AsyncClient, data: Mapping[str, Any]) -> None:
        self.client = client
        self._http: AsyncHTTP = client.http
        self._data = dict(data)
        self.place = 0  # in its log, behind what was heard

    @classmethod
    async def start(
        cls,
        name: str,
        path: str | os.PathLike[str] | None = None,
        *,
        dockerfile: str | os.PathLike[str] | None = None,
        context: str | os.PathLike[str] | None = None,
        roost_toml: str | None = None,
        tags: Sequence[str] = (),
        build_args: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        credentials: Mapping[str, Mapping[str, str]] | None = None,
        driver: str | None = None,
        no_cache: bool = False,
        keep_failed: bool = False,
        sent: bool = True,
        client: AsyncClient | None = None,
    ) -> Self:
        """As ``Template.build``, without waiting. The context is sent where the Dockerfile copies anything, unless it
        is not to be ``sent`` here."""
        client = client or default_client()
        found: Recipe = await in_thread(recipe, path, dockerfile, context, roost_toml)
        body = given(
            tags=[name, *tags],
            dockerfile=found.dockerfile,
            roost_toml=found.roost_toml,
            build_args=dict(build_args or {}),
            secrets=dict(secrets or {}),
            credentials={host: dict(login) for host, login in (credentials or {}).items()},
            driver=driver,
            no_cache=no_cache,
            keep_failed=keep_failed,
        )
        made = cls(client, await client.http.call("POST", "/v1/builds", json=body))
        if made.status == "waiting" and sent:
            try:
                await made._send(found.context)
            except BaseException:
                await made.cancel()
                raise
        return made

    async def _send(self, context: Path | None) -> None:
        if context is None:
            raise error(
                "VALIDATION_FAILED",
                "The Dockerfile copies files, and there is no context: give the directory they are in.",
            )
        await self._put(from_iterator(pack(context)))

    async def _put(self, content: AsyncIterator[bytes]) -> None:
        self._data = await self._http.call(
            "PUT",
            f"/v1/builds/{self.id}/context",
            content=content,
            headers={"Content-Type": "application/x-tar"},
            timeout=None,
        )

    @classmethod
    async def get(cls, build_id: str, *, client: AsyncClient | None = None) -> Self:
        client = client or default_client()
        return cls(client, await client.http.call("GET", f"/v1/builds/{segment(build_id)}"))

    @classmethod
    async def list(
        cls,
        *,
        status: str | None = None,
        limit: int | None = None,
        client: AsyncClient | None = None,
    ) -> builtins.list[Self]:
        """Newest first."""
        client = client or default_client()
        pages = client.http.pages("/v1/builds", given(status=status), limit)
        return [cls(client, item) async for item in pages]

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Its log from where it was heard last: {event: step|log|end, ...}; ends with the build. What broke off is
        taken up again."""
        left = _TRIES
        while True:
            try:
                async for event in self._events():
                    left = _TRIES
                    yield event
                    if event["event"] == "end":
                        return
                if (await self.refresh()).status in _ENDED:
                    return
            except RoostError as failure:
                if failure.code not in ("DAEMON_UNREACHABLE", "TIMEOUT") or not left:
                    raise
            left -= 1
            if left < 0:
                raise error("DAEMON_UNREACHABLE", "The build's log breaks off again and again.")
            await sleep(0.5)

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        path = f"/v1/builds/{self.id}/stream"
        async for event in events(self._http, "GET", path, params={"after": self.place}):
            if event.id and event.id.isdecimal():
                self.place = int(event.id)
            if event.name == "error":
                raise from_wire(0, event.data)
            yield {"event": event.name, **event.data}

    async def refresh(self) -> Self:
        self._data = await self._http.call("GET", f"/v1/builds/{self.id}")
        return self

    async def wait(self) -> Self:
        """Until it has ended."""
        async for _ in self.events():
            pass
        return await self.refresh()

    async def template(self) -> AsyncTemplate:
        """What a build that has ended made. Raises its error."""
        await self.refresh()
        if self.status != "succeeded":
            failure = self._data.get("error")
            if failure:
                raise from_wire(0, failure)
            raise error("INVALID_STATE", f"The build is {self.status}: wait for it.")
        return AsyncTemplate(self.client, await self.client.template(self._data["template_id"]))

    async def cancel(self) -> None:
        """Of no effect on one that has ended."""
        self._data = await self._http.call("DELETE", f"/v1/builds/{self.id}")

    @property
    def id(self) -> str:
        return str(self._data["build_id"])

    @property
    def status(self) -> str:
        """waiting (for its context), queued, running, succeeded, failed or cancelled."""
        return str(self._data["status"])

    @property
    def machine_id(self) -> str | None:
        """Of the machine that was kept when it failed."""
        return self._data.get("machine_id")

    def to_json(self) -> dict[str, Any]:
        """The daemon's own record."""
        return dict(self._data)
