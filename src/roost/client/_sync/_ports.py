"""Ports of a machine, as browsers and programs outside reach them."""

from __future__ import annotations

import builtins
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx

from roost.client._sync._http import HTTP
from roost.client._wire import UNSET, Unset, given
from roost.errors import RoostError


class Ports:
    """``machine.ports``. A port is {port_id, machine_id, port, protocol, visibility, name, url, created_at}."""

    def __init__(self, http: HTTP, machine_id: str) -> None:
        self._http = http
        self._path = f"/v1/machines/{machine_id}/ports"
        self._listening = f"/v1/machines/{machine_id}/listening"

    def create(
        self,
        port: int,
        *,
        visibility: str = "private",
        name: str | None = None,
        protocol: str = "http",
    ) -> dict[str, Any]:
        """Shows a port outside, at its ``url``; 0: every port that is not shown by itself, at ``{port}-{machine id}``
        (without a ``url``). ``visibility``: private (a key, a token or a link opens it) or public. ``name``: its host is that instead of port and machine. Raises ConflictError, LimitError."""
        body = given(port=port, visibility=visibility, name=name, protocol=protocol)
        made: dict[str, Any] = self._http.call("POST", self._path, json=body)
        return made

    def list(self) -> builtins.list[dict[str, Any]]:
        """By number."""
        return list(self._http.pages(self._path, {}, None))

    def listening(self) -> builtins.list[dict[str, Any]]:
        """{port, addresses} of each TCP port a program in the machine listens on, shown outside or not."""
        return list(self._http.pages(self._listening, {}, None))

    def get(self, port: int) -> dict[str, Any]:
        """Raises NotFoundError PORT_NOT_FOUND."""
        found: dict[str, Any] = self._http.call("GET", f"{self._path}/{port:d}")
        return found

    def update(
        self, port: int, *, visibility: str | None = None, name: str | Unset | None = UNSET
    ) -> dict[str, Any]:
        """``name=None``: none any more. What is open there may end."""
        body = given(visibility=visibility)
        if not isinstance(name, Unset):
            body["name"] = name
        changed: dict[str, Any] = self._http.call("PATCH", f"{self._path}/{port:d}", json=body)
        return changed

    def delete(self, port: int) -> None:
        """At once, also for what is open there. Raises NotFoundError."""
        self._http.call("DELETE", f"{self._path}/{port:d}")

    def ensure(self, port: int) -> dict[str, Any]:
        """As it is shown; privately where it was not."""
        try:
            return self.get(port)
        except RoostError as failure:
            if failure.code != "PORT_NOT_FOUND":
                raise
        try:
            return self.create(port)
        except RoostError as failure:
            if failure.code != "ALREADY_EXISTS":
                raise
            return self.get(port)

    def link(self, port: int, ttl: float | timedelta = 3600) -> dict[str, Any]:
        """{url, expires_at}: opens the port in a browser, for whoever has it. ``ttl``: seconds, at most a week."""
        seconds = int(ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)
        made: dict[str, Any] = self._http.call(
            "POST", f"{self._path}/{port:d}/links", json={"ttl_seconds": seconds}
        )
        return made

    def end_links(self, port: int) -> None:
        """No link made so far opens the port any more."""
        self._http.call("DELETE", f"{self._path}/{port:d}/links")


class PreviewTransport(httpx.HTTPTransport):
    """To the preview of one port, with the daemon's key and to nobody else with it. Names below ``localhost`` are
    looked for where the daemon is: browsers know them, resolvers do not."""

    def __init__(self, preview: str, daemon: str, key: str) -> None:
        super().__init__(verify=preview.startswith("https:"))
        self._host = urlsplit(preview).hostname
        self._daemon = httpx.URL(daemon)
        self._key = key

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        headers = request.headers
        if url.host == self._host:
            headers = httpx.Headers([*headers.multi_items(), ("X-Roost-Preview-Token", self._key)])
        if url.host.endswith(".localhost"):
            there = self._daemon
            url = url.copy_with(scheme=there.scheme, host=there.host, port=there.port)
        sent = httpx.Request(
            request.method,
            url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        return super().handle_request(sent)
