"""A desktop of a few lines, with the names of ``m.computer``."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from roost.client._results import BrowserPage
from roost.errors import error


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + bytes(width) for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Desktop:
    """``done`` is what was asked of it; what is named in ``broken`` fails."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        self.width, self.height = width, height
        self.done: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        async def act(*args: Any, **options: Any) -> Any:
            if name in self.broken:
                raise error("PORT_CLOSED", "The display does not answer.")
            if name == "size":
                return self.width, self.height
            if name == "cursor":
                return 100, 50
            if name == "screenshot":
                left, top, right, bottom = options.get("region") or (0, 0, self.width, self.height)
                scale = options.get("scale", 1.0)
                return png(round((right - left) * scale), round((bottom - top) * scale))
            self.done.append((name, *args, *([options] if options else [])))
            return None

        return act


class Browser:
    """A page of a few lines, with the names of ``m.browser``."""

    def __init__(self, text: str = "") -> None:
        self.shown = text
        self.done: list[tuple[Any, ...]] = []

    async def goto(self, url: str) -> BrowserPage:
        self.done.append(("goto", url))
        return BrowserPage("p1", url, "Title", 200)

    async def text(self, *, limit: int) -> str:
        return self.shown[:limit]

    async def screenshot(self) -> bytes:
        return png(80, 60)

    async def pages(self) -> list[BrowserPage]:
        return [BrowserPage("p1", "http://here/", "Title", None)]

    async def click(self, selector: str) -> None:
        if selector == "#none":
            raise error("NOT_FOUND", "Nothing on the page is '#none'.")
        self.done.append(("click", selector))

    async def fill(self, selector: str, text: str) -> None:
        self.done.append(("fill", selector, text))
