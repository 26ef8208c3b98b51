"""The browser of a machine, as functions: pages opened, read, clicked, filled in, looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from roost.tools._blocks import text
from roost.tools._errors import ToolFailure
from roost.tools._text import OUTPUT_CHARS

if TYPE_CHECKING:
    from roost.client._async._machine import AsyncMachine

FETCHED = 100_000


class AsyncBrowser:
    """``limit``: characters of a page that are shown at once."""

    def __init__(self, machine: AsyncMachine, *, limit: int = OUTPUT_CHARS) -> None:
        self._browser = machine.browser
        self._limit = limit

    async def run(self, name: str, given: Mapping[str, Any]) -> str | bytes:
        """One of ``roost.tools._functions.BROWSER``: text, or a picture."""
        if name == "open_page":
            page = await self._browser.goto(text(given, "url"))
            status = f" (status {page.status})" if page.status else ""
            return f"{page.title}{status} at {page.url}\n\n{await self.text()}"
        if name == "read_page":
            return await self.text()
        if name == "look_at_page":
            return await self._browser.screenshot()
        if name == "click_in_page":
            await self._browser.click(text(given, "selector"))
        elif name == "fill_in_page":
            await self._browser.fill(text(given, "selector"), text(given, "text"))
        else:
            raise ToolFailure(f"There is no function {name!r} here.")
        return "Done."

    async def text(self) -> str:
        """What a reader sees of the page."""
        found = await self._browser.text(limit=FETCHED)
        if len(found) <= self._limit:
            return found or "(the page has no text)"
        return f"{found[: self._limit]}\n[cut here: {len(found) - self._limit} characters more]"
