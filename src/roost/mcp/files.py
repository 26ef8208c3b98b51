"""Files of machines."""

from __future__ import annotations

from typing import Annotated

from mcp_types import CallToolResult
from pydantic import Field

from roost.mcp import shapes
from roost.mcp.tool import Call, MachineName, Path, meant, picture, tool
from roost.tools._async._editor import AsyncEditor
from roost.tools._errors import ToolFailure
from roost.tools._pictures import kind_of, size_of
from roost.tools._text import numbered

TEXT = 50_000
PICTURE_BYTES = 5 * 2**20


@tool("read_file", "Read a file", reads=True)
async def read_file(
    call: Call,
    machine: MachineName,
    path: Path,
    first_line: Annotated[int, Field(ge=1)] = 1,
    max_lines: Annotated[int, Field(ge=1, le=10_000)] = 2000,
) -> shapes.Text:
    """Lines of a text file, numbered, at most 50,000 characters; next_line says where to go on. Pictures are shown by
    read_picture."""
    target = await meant(call, machine)
    page = await AsyncEditor(target, limit=TEXT).page(path, first_line, first_line + max_lines - 1)
    return shapes.Text(
        path=path,
        content=numbered(page.lines, page.first),
        first_line=page.first,
        last_line=page.last,
        next_line=page.following,
    )


@tool("read_picture", "Look at a picture", reads=True)
async def read_picture(
    call: Call, machine: MachineName, path: Path
) -> Annotated[CallToolResult, shapes.Picture]:
    """Shows a picture file: PNG, JPEG, GIF or WebP of at most 5 MiB."""
    target = await meant(call, machine)
    data = await target.files.read(path, length=PICTURE_BYTES + 1)
    if len(data) > PICTURE_BYTES:
        raise ToolFailure(f"{path} is above 5 MiB: make it smaller first.")
    kind = kind_of(data)
    if kind is None:
        raise ToolFailure(f"{path} is no PNG, JPEG, GIF or WebP.")
    width, height = size_of(data)
    about = shapes.Picture(path=path, format=kind, bytes=len(data), width=width, height=height)
    return picture(data, kind, about)


@tool("write_file", "Write a file", destroys=True, again=True)
async def write_file(
    call: Call,
    machine: MachineName,
    path: Path,
    content: str,
    executable: bool = False,
) -> shapes.Written:
    """Makes or replaces a text file whole, with the directories above it."""
    target = await meant(call, machine)
    info = await target.files.write(path, content, mode=0o755 if executable else None)
    return shapes.Written(path=info.path, bytes=info.size)


@tool("edit_file", "Edit a file", destroys=True)
async def edit_file(
    call: Call,
    machine: MachineName,
    path: Path,
    old_text: Annotated[str, Field(description="What is there, exactly, with all blanks")],
    new_text: Annotated[str, Field(description="What shall be there instead; empty: nothing")],
    replace_all: Annotated[bool, Field(description="However often it is there")] = False,
) -> shapes.Edited:
    """Replaces a piece of a text file, which must be in it just once unless replace_all."""
    editor = AsyncEditor(await meant(call, machine))
    around, count = await editor.replace(path, old_text, new_text, every=replace_all)
    return shapes.Edited(path=path, replaced=count, around=around)


@tool("list_files", "List a directory", reads=True)
async def list_files(
    call: Call,
    machine: MachineName,
    path: Path,
    limit: Annotated[int, Field(ge=1, le=1000)] = 200,
) -> shapes.Entries:
    """What lies in a directory."""
    target = await meant(call, machine)
    found = await target.files.list(path, limit=limit + 1)
    entries = [
        shapes.Entry(
            path=each.path,
            kind=each.kind,
            size=each.size,
            mode=f"{each.mode:04o}",
            modified=each.mtime.isoformat(timespec="seconds"),
        )
        for each in found[:limit]
    ]
    return shapes.Entries(path=path, entries=entries, more=len(found) > limit)
