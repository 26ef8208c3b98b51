"""How a function becomes a tool: its hints for the host, its errors for the model."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from roost import AsyncMachine
from roost.errors import RoostError
from roost.mcp.callers import Callers, client_of, machine_of
from roost.tools._blocks import encoded
from roost.tools._errors import ToolFailure, told

P = ParamSpec("P")
R = TypeVar("R")

Call = Context[Callers, Any]
MachineName = Annotated[
    str, Field(description="Id, key or name of the machine", min_length=1, max_length=128)
]
Path = Annotated[
    str, Field(description="Absolute path in the machine", min_length=1, max_length=4096)
]

# What a model can do about it; errors that say it themselves are not here.
REMEDIES = {
    "AUTH_INVALID": "The key is no key of this daemon's, or no longer: `roost key show` on its host.",
    "FORBIDDEN": "The key's role does not allow it.",
    "MACHINE_NOT_FOUND": "list_machines shows those there are.",
    "EXECUTION_NOT_FOUND": "exec says the id of what it ran.",
    "FILE_NOT_FOUND": "list_files shows what there is.",
    "IS_A_DIRECTORY": "list_files shows what is in it.",
    "PORT_NOT_FOUND": "expose_port shows it outside.",
    "CAPACITY_EXCEEDED": "Let a machine sleep (sleep_machine) or destroy one, or try again later.",
    "STORAGE_FULL": "Destroy a machine (destroy_machine), or try again later.",
    "QUOTA_EXCEEDED": "Destroy a machine (destroy_machine), or ask an admin for more.",
    "DAEMON_UNREACHABLE": "Start it with `roost up`, or set ROOST_URL.",
}


@dataclass(frozen=True, slots=True)
class Made:
    """A tool that is to be registered."""

    run: Callable[..., Awaitable[Any]]
    name: str
    annotations: ToolAnnotations

    def add(self, server: MCPServer[Any]) -> None:
        about = " ".join((self.run.__doc__ or "").split())
        server.add_tool(self.run, self.name, description=about, annotations=self.annotations)


MADE: list[Made] = []


def tool(
    name: str,
    title: str,
    *,
    reads: bool = False,
    destroys: bool = False,
    again: bool = False,
    world: bool = False,
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """``reads``: it changes nothing; ``destroys``: what it takes away may not come back; ``again``: doing it twice is doing
    it once; ``world``: it may reach beyond the machines."""

    def made(run: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        @functools.wraps(run)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                return await run(*args, **kwargs)
            except ToolFailure as failure:
                return _failed(told(failure))
            except RoostError as failure:
                return _failed(told(advised(failure)), failure)

        annotations = ToolAnnotations(
            title=title,
            read_only_hint=reads,
            destructive_hint=destroys,
            idempotent_hint=again or reads,
            open_world_hint=world,
        )
        MADE.append(Made(guarded, name, annotations))
        return run

    return made


async def meant(call: Call, name: str) -> AsyncMachine:
    """The one that is meant, with the caller's key."""
    context = call.request_context
    return await machine_of(client_of(context.request, context.lifespan_context), name)


def picture(data: bytes, format: str, about: BaseModel) -> CallToolResult:
    """For the model to see, with what is known of it."""
    image = ImageContent(type="image", data=encoded(data), mime_type=f"image/{format}")
    text = TextContent(type="text", text=about.model_dump_json())
    return CallToolResult(content=[image, text], structured_content=about.model_dump(mode="json"))


def advised(failure: RoostError) -> RoostError:
    if "remedy" not in failure.details and failure.code in REMEDIES:
        failure.details["remedy"] = REMEDIES[failure.code]
    return failure


def _failed(text: str, failure: RoostError | None = None) -> CallToolResult:
    # No structured content: hosts would hold it against the tool's schema.
    meta = {"roost/error": failure.to_wire()} if failure is not None else None
    content: list[Any] = [TextContent(type="text", text=text)]
    return CallToolResult(content=content, is_error=True, _meta=meta)
