"""Text files of a machine, looked at and changed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from roost.errors import NotFoundError
from roost.tools._errors import ToolFailure
from roost.tools._text import OUTPUT_CHARS, Page, Pager, around, inserted, numbered, replaced

if TYPE_CHECKING:
    from roost.client._async._machine import AsyncMachine

EDIT_BYTES = 4 * 2**20
SCAN_BYTES = 256 * 2**20
ENTRIES = 500
UNDO = 20


class AsyncEditor:
    """Paths are absolute. Raises ToolFailure, and RoostError as ``machine.files``."""

    def __init__(self, machine: AsyncMachine, *, limit: int = OUTPUT_CHARS) -> None:
        self._files = machine.files
        self._limit = limit
        # (path, what was there; None: nothing), newest last.
        self._undo: deque[tuple[str, str | None]] = deque(maxlen=UNDO)

    async def page(self, path: str, first: int = 1, last: int | None = None) -> Page:
        """Lines ``first`` to ``last`` of a text file, as far as they fit."""
        if first < 1 or (last is not None and last < first):
            raise ToolFailure(f"Lines are counted from 1; {first} to {last} are none.")
        pager = Pager(first, last, self._limit)
        seen = 0
        source = self._files.read_stream(path)
        try:
            async for piece in source:
                seen += len(piece)
                if not pager.feed(piece):
                    break
                if seen > SCAN_BYTES:
                    raise ToolFailure(f"Line {first} is not in the first 256 MiB: use a command.")
        finally:
            await source.aclose()  # type: ignore[attr-defined]
        return pager.end()

    async def view(self, path: str, lines: tuple[int, int | None] | None = None) -> str:
        """A file's lines, numbered, or what lies in a directory, two levels deep and without hidden names."""
        if (await self._files.stat(path)).is_dir:
            if lines is not None:
                raise ToolFailure("A directory has no lines: leave view_range out.")
            return await self._tree(path)
        page = await self.page(path, *(lines or (1, None)))
        if not page.lines:
            return "[the file is empty]"
        shown = numbered(page.lines, page.first)
        if page.following is not None and (
            lines is None or lines[1] is None or page.last < lines[1]
        ):
            shown += f"\n[cut here: the next line is {page.following}]"
        return shown

    async def create(self, path: str, text: str) -> str:
        """Makes or replaces a file, with the directories above it."""
        try:
            before = await self._text(path)
        except NotFoundError:
            await self._write(path, text, None)
            return f"Made {path}."
        except ToolFailure:  # no text: it cannot be had back
            await self._files.write(path, text)
        else:
            await self._write(path, text, before)
        return f"Replaced {path}."

    async def replace(
        self, path: str, old: str, new: str, *, every: bool = False
    ) -> tuple[str, int]:
        """``old``, which must be in the file just once unless ``every``, by ``new``: the lines around it, how often."""
        before = await self._text(path)
        after, count, line = replaced(before, old, new, every=every)
        await self._write(path, after, before)
        return around(after, line, new.count("\n") + 1), count

    async def insert(self, path: str, line: int, text: str) -> str:
        """After that line; 0: at the beginning. The lines around it."""
        before = await self._text(path)
        after = inserted(before, line, text)
        await self._write(path, after, before)
        return around(after, line + 1, text.count("\n") + 1)

    async def undo(self, path: str) -> str:
        """Takes back the last change of this file by this editor."""
        for at in range(len(self._undo) - 1, -1, -1):
            name, before = self._undo[at]
            if name == path:
                del self._undo[at]
                if before is None:
                    await self._files.remove(path)
                    return f"{path} is gone again."
                await self._files.write(path, before)
                return f"{path} is as it was before the last change."
        raise ToolFailure(f"No change of {path} is known that could be taken back.")

    async def _write(self, path: str, text: str, before: str | None) -> None:
        await self._files.write(path, text)
        self._undo.append((path, before))

    async def _text(self, path: str) -> str:
        raw = await self._files.read(path, length=EDIT_BYTES + 1)
        if len(raw) > EDIT_BYTES:
            raise ToolFailure(f"{path} is above 4 MiB: change it with a command.")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ToolFailure(f"{path} is not UTF-8: change it with a command.") from None
        if "\0" in text:
            raise ToolFailure(f"{path} is no text file: it has NUL bytes.")
        return text

    async def _tree(self, path: str) -> str:
        names = [path]
        for entry in await self._files.list(path, limit=ENTRIES):
            if entry.name.startswith("."):
                continue
            names.append(entry.path + ("/" if entry.is_dir else ""))
            if entry.is_dir and len(names) < ENTRIES:
                below = await self._files.list(entry.path, limit=ENTRIES - len(names) + 1)
                names += [
                    each.path + ("/" if each.is_dir else "")
                    for each in below
                    if not each.name.startswith(".")
                ]
        shown = "\n".join(names[: ENTRIES + 1])
        return shown + (f"\n[only the first {ENTRIES} are shown]" if len(names) > ENTRIES else "")
