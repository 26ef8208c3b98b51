"""One pool of keep-alive connections to the daemon; answers made typed.

What is tried again, and only this, each time with a warning on the logger ``roost.client``:

- a request whose established connection broke before an answer came: once. Every mutation carries an
  ``Idempotency-Key``, so the second sending cannot do the work twice;
- 429 and 503 that carry ``Retry-After``, while the sum of the waits stays within ``max_retry_wait``
  seconds (0 by default: never).

A body that is streamed is sent once; so is what answers with a stream of events, which the daemon
does not keep for a second asking.
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from roost.client import _tls as tls
from roost.client._config import Config
from roost.client._sync._io import sleep
from roost.client._wire import UNSET, Unset
from roost.errors import RoostError, error, from_wire

log = logging.getLogger("roost.client")

Params = Mapping[str, Any]
Content = bytes | Iterator[bytes]

# A dead peer is noticed within a minute, also while nothing is asked of it.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
_CONNECT_TIMEOUT = 10.0


class HTTP:
    def __init__(
        self,
        config: Config,
        *,
        timeout: float = 120.0,
        max_retry_wait: float = 0.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        from roost import __version__

        self.config = config
        self.timeout = timeout
        self.max_retry_wait = max_retry_wait
        trusted = tls.context(config.url)
        self._client = httpx.Client(
            base_url=config.url,
            headers={
                "Authorization": f"Bearer {config.api_key}",
                "User-Agent": f"roost-python/{__version__}",
            },
            timeout=httpx.Timeout(timeout, connect=_CONNECT_TIMEOUT),
            transport=transport
            or httpx.HTTPTransport(
                verify=trusted or False,  # the store of certificates only where it is used: 20 ms
                limits=httpx.Limits(max_keepalive_connections=64, keepalive_expiry=60.0),
                socket_options=_SOCKET_OPTIONS,
            ),
            follow_redirects=False,
        )

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of the answer; None where there is none. Options as ``request``."""
        response = self.request(method, path, **options)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as exc:
            raise error(
                "INTERNAL", f"{self.config.url} answered something that is not JSON; is it Roost?"
            ) from exc

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A whole answer with status < 300. Options: json, params, headers, content (bytes or an
        iterator), timeout (s; None waits for ever), once (never sent again). Raises RoostError."""
        return self._send(method, path, stream=False, **options)

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """An answer whose body the caller reads. Errors while it is read come out as RoostError."""
        response = self._send(method, path, stream=True, **options)
        try:
            yield response
        except httpx.TransportError as exc:
            raise self._broken(exc) from exc
        finally:
            response.close()

    def pages(self, path: str, params: Params, limit: int | None) -> Iterator[Any]:
        """Every item of a list, page after page, at most ``limit``."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            size = 500 if left is None else min(left, 500)
            query = {**params, "limit": size, **({"cursor": cursor} if cursor else {})}
            page = self.call("GET", path, params=query)
            yield from page["items"]
            cursor = page.get("next_cursor")
            left = None if left is None else left - len(page["items"])
            if not cursor:
                return

    def _send(
        self,
        method: str,
        path: str,
        *,
        stream: bool,
        json: Any = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        timeout: float | Unset | None = UNSET,
        once: bool = False,
    ) -> httpx.Response:
        sent = dict(headers or {})
        if method not in ("GET", "HEAD"):
            sent.setdefault("Idempotency-Key", uuid.uuid4().hex)
        limit = self.timeout if isinstance(timeout, Unset) else timeout
        deadline = time.monotonic() + (600.0 if limit is None else limit)
        replayable = not once and (content is None or isinstance(content, bytes))
        again = False
        waited = 0.0
        while True:
            request = self._client.build_request(
                method,
                path,
                json=json,
                params=params,
                headers=sent,
                content=content,
                timeout=httpx.Timeout(limit, connect=_CONNECT_TIMEOUT),
            )
            try:
                response = self._client.send(request, stream=stream)
            except httpx.TransportError as exc:
                if again or not replayable or not isinstance(exc, _BROKEN):
                    raise self._broken(exc, limit) from exc
                log.warning("%s %s: %s; sending it once more", method, path, type(exc).__name__)
                again = True
                continue
            if response.status_code < 300:
                return response
            failure = self._failure(response)
            pause = _retry_after(response)
            if again and failure.code == "IDEMPOTENCY_IN_PROGRESS" and time.monotonic() < deadline:
                sleep(0.25 if pause is None else min(pause, 5.0))
                continue
            if (
                replayable
                and response.status_code in (429, 503)
                and pause is not None
                and waited + pause <= self.max_retry_wait
            ):
                log.warning("%s %s: %s; again in %.1f s", method, path, failure.code, pause)
                waited += pause
                sleep(pause)
                continue
            raise failure

    def _failure(self, response: httpx.Response) -> RoostError:
        try:
            response.read()
            body = response.json()
        except (ValueError, httpx.TransportError):
            body = {}
        finally:
            response.close()
        return from_wire(response.status_code, body if isinstance(body, dict) else {})

    def _broken(self, exc: httpx.TransportError, limit: float | None = None) -> RoostError:
        url = self.config.url
        if isinstance(exc, (httpx.ConnectError, httpx.ConnectTimeout)):
            return error(
                "DAEMON_UNREACHABLE",
                f"No Roost daemon answers at {url} ({exc or type(exc).__name__}). Start it with "
                "`roost up` (or scripts/up), or set ROOST_URL.",
            )
        if isinstance(exc, httpx.TimeoutException):
            after = f" within {limit:g} s" if limit else ""
            return error("TIMEOUT", f"The daemon at {url} did not answer{after}.")
        return error(
            "DAEMON_UNREACHABLE",
            f"The connection to the daemon at {url} broke ({exc or type(exc).__name__}). Look at "
            "`roost logs --daemon`, then try again.",
        )


_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
