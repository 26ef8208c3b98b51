"""The browser of a machine."""

from __future__ import annotations

import builtins
from datetime import timedelta
from typing import Any

from roost.client._async._http import AsyncHTTP
from roost.client._results import BrowserPage
from roost.client._wire import given

_MARGIN = 15.0  # a request's time above what it asks the browser for


class AsyncBrowser:
    """``machine.browser``, of a machine from the template ``browser``. Calls act on the page used last, or on
    ``page`` (its id). Raises UnsupportedError where the machine has none,
    MachineError BROWSER_DOWN where it is dead, TimeoutExpired.

    Whoever speaks CDP connects to ``cdp_url()``:

        browser = await playwright.chromium.connect_over_cdp(await m.browser.cdp_url())
    """

    def __init__(self, http: AsyncHTTP, machine_id: str) -> None:
        self._http = http
        self._path = f"/v1/machines/{machine_id}/browser"

    async def cdp_url(self, ttl: float | timedelta = 3600) -> str:
        """A WebSocket address of the whole browser for whoever has it, for ``ttl`` seconds (a day at most) or until the
        key that asked ends: keep it as you keep a key."""
        seconds = int(ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)
        made = await self._http.call("POST", f"{self._path}/connect", json={"ttl_seconds": seconds})
        return str(made["url"])

    @property
    def endpoint(self) -> str:
        """The same for clients that send ``headers``; it does not change while the machine lives:
        ``connect_over_cdp(m.browser.endpoint, headers=m.browser.headers)``."""
        return f"{self._http.config.url}{self._path}/cdp"

    @property
    def headers(self) -> dict[str, str]:
        """What ``endpoint`` wants: the key."""
        return {"Authorization": f"Bearer {self._http.config.api_key}"}

    async def goto(
        self,
        url: str,
        *,
        wait_until: str = "load",
        timeout: float = 30.0,
        page: str | None = None,
    ) -> BrowserPage:
        """Opens an address. ``wait_until``: load, domcontentloaded, none.

        Raises InvalidRequestError (no URL), MachineError NAVIGATION_FAILED (no such host, ...), TimeoutExpired."""
        body = given(url=url, wait_until=wait_until, timeout_ms=_ms(timeout), page_id=page)
        data = await self._http.call(
            "POST", f"{self._path}/goto", json=body, timeout=timeout + 4 * _MARGIN
        )
        return BrowserPage.from_json(data)

    async def screenshot(
        self,
        *,
        full_page: bool = False,
        format: str = "png",
        quality: int | None = None,
        page: str | None = None,
    ) -> bytes:
        """PNG or JPEG (``quality`` 1-100) of what is to be seen, or of the page at its full length."""
        params = given(
            full_page="true" if full_page else None, format=format, quality=quality, page_id=page
        )
        answer = await self._http.request("GET", f"{self._path}/screenshot", params=params)
        return answer.content

    async def text(self, *, limit: int = 100_000, page: str | None = None) -> str:
        """What is to be read on the page, its first ``limit`` characters."""
        params = given(limit=limit, page_id=page)
        return str((await self._http.call("GET", f"{self._path}/text", params=params))["text"])

    async def eval(self, expression: str, *, timeout: float = 30.0, page: str | None = None) -> Any:
        """What a JavaScript expression is in the page, as JSON; a promise is waited for. Raises InvalidRequestError
        where it threw."""
        body = given(expression=expression, timeout_ms=_ms(timeout), page_id=page)
        data = await self._http.call(
            "POST", f"{self._path}/eval", json=body, timeout=timeout + 4 * _MARGIN
        )
        return data["value"]

    async def click(self, selector: str, *, page: str | None = None) -> None:
        """The first element that a CSS selector finds. Raises NotFoundError."""
        await self._http.call(
            "POST", f"{self._path}/click", json=given(selector=selector, page_id=page)
        )

    async def fill(self, selector: str, text: str, *, page: str | None = None) -> None:
        """A field's text, over what is there. Raises NotFoundError."""
        body = given(selector=selector, text=text, page_id=page)
        await self._http.call("POST", f"{self._path}/fill", json=body)

    async def pages(self) -> builtins.list[BrowserPage]:
        """Those that are open, the one used last first."""
        data = await self._http.call("GET", f"{self._path}/pages")
        return [BrowserPage.from_json(item) for item in data["items"]]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
