"""``roost mcp``: machines as tools for hosts of the Model Context Protocol, over stdio or HTTP."""

from __future__ import annotations

import socket
import sys
from typing import Annotated

import typer

from roost.cli._out import Json, print_json, say, usage_error
from roost.errors import error

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Streamable HTTP, until Ctrl-C, instead of stdio.")
    ] = False,
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="With --http; 0: any.")
    ] = 7677,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="With --http: to listen on.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str],
        typer.Option(
            "--allow-host", metavar="NAME", help="With --http: a Host that requests may name."
        ),
    ] = [],  # noqa: B006
    own_key: Annotated[
        bool,
        typer.Option(
            "--own-key", help="With --http, on the loopback: this command's key for who sends none."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Offer machines as tools to an agent's host, by the Model Context Protocol.

    Over stdio a host starts this command, and its key is ROOST_API_KEY or this host's own. Over HTTP each request brings
    its key (Authorization: Bearer ...), which counts for all it does.
    """
    if not http:
        if json or own_key or allow_host:
            raise usage_error("--own-key, --allow-host and --json go with --http.")
        _stdio()
        return
    from roost.client._config import is_loopback

    if own_key and not is_loopback(host):
        raise usage_error("--own-key would give this key to whoever reaches the port.")
    _http(host, port, [*([] if is_loopback(host) else [host]), *allow_host], own_key, json)


def _stdio() -> None:
    if sys.stdin.isatty():
        raise usage_error(
            "A host of the Model Context Protocol starts this command; for people there is --http."
        )
    from anyio import run

    from roost.mcp.callers import Callers
    from roost.mcp.server import stdio

    async def serve() -> None:
        callers = Callers()
        _ = callers.own  # without a key it says so now, not in every call
        await stdio(callers)

    run(serve)


def _http(host: str, port: int, hosts: list[str], own_key: bool, json: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as failure:
        raise error(
            "PORT_IN_USE", f"Cannot listen on {host}:{port}: {failure.strerror}. Choose --port."
        ) from failure
    from anyio import run

    from roost.mcp.callers import Callers
    from roost.mcp.server import PATH
    from roost.mcp.server import app as made
    from roost.mcp.server import http as serve

    async def serving() -> None:
        callers = Callers()
        if own_key:
            _ = callers.own
        served = made(callers, hosts, own_key=own_key)
        listener.listen(128)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}{PATH}"
        print_json({"url": url}) if json else say(url)
        sys.stdout.flush()
        await serve(served, listener)

    run(serving)
