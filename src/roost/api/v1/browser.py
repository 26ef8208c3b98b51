"""The browser of a machine over HTTP. Its CDP itself goes through ``preview`` (WebSocket); what clients ask before that
is answered here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes, shapes
from roost.api.v1.keys import SECRET
from roost.api.v1.services import Services, key_id, tenant
from roost.gateway.respond import Json
from roost.services.browser import TEXT, Page

PageId = Annotated[str | None, Query(max_length=64)]
PICTURE: dict[int | str, Any] = {
    200: {
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/png", "image/jpeg")
        }
    }
}
# What a machine draws is shown, never run.
INERT = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/browser", "browser")

    @r.post("/goto", response_model=answers.BrowserPage)
    async def goto(request: Request, machine_id: str, body: bodies.Goto) -> Response:
        """Opens an address, in the page used last or in a new one."""
        page = await s.browser.goto(
            tenant(request),
            machine_id,
            body.url,
            wait_until=body.wait_until,
            timeout_s=body.timeout_ms / 1000,
            page_id=body.page_id,
        )
        return Json(_page(page))

    @r.get("/pages", response_model=answers.BrowserPages)
    async def pages(request: Request, machine_id: str) -> Response:
        found = await s.browser.pages(tenant(request), machine_id)
        return Json({"items": [_page(each) for each in found]})

    @r.get("/screenshot", response_class=Response, responses=PICTURE)
    async def screenshot(
        request: Request,
        machine_id: str,
        full_page: bool = False,
        format: Literal["png", "jpeg"] = "png",
        quality: Annotated[int | None, Query(ge=1, le=100)] = None,
        page_id: PageId = None,
    ) -> Response:
        picture = await s.browser.screenshot(
            tenant(request),
            machine_id,
            full_page=full_page,
            format=format,
            quality=quality,
            page_id=page_id,
        )
        return Response(picture.data, media_type=picture.kind, headers=INERT)

    @r.get("/text", response_model=answers.BrowserText)
    async def text(
        request: Request,
        machine_id: str,
        limit: Annotated[int, Query(ge=1, le=TEXT)] = 100_000,
        page_id: PageId = None,
    ) -> Response:
        """What is to be read on the page."""
        page, found, cut = await s.browser.text(
            tenant(request), machine_id, limit=limit, page_id=page_id
        )
        return Json({**_page(page), "text": found, "truncated": cut})

    @r.post("/eval", response_model=answers.BrowserValue)
    async def eval_(request: Request, machine_id: str, body: bodies.Evaluate) -> Response:
        """What a JavaScript expression is in the page, as JSON."""
        value = await s.browser.eval(
            tenant(request),
            machine_id,
            body.expression,
            timeout_s=body.timeout_ms / 1000,
            page_id=body.page_id,
        )
        return Json({"value": value})

    @r.post("/click", status_code=204, response_class=Response)
    async def click(request: Request, machine_id: str, body: bodies.ClickElement) -> Response:
        await s.browser.click(tenant(request), machine_id, body.selector, page_id=body.page_id)
        return Response(status_code=204)

    @r.post("/fill", status_code=204, response_class=Response)
    async def fill(request: Request, machine_id: str, body: bodies.FillElement) -> Response:
        await s.browser.fill(
            tenant(request), machine_id, body.selector, body.text, page_id=body.page_id
        )
        return Response(status_code=204)

    @r.post("/connect", status_code=201, response_model=answers.BrowserLink)
    async def connect(
        request: Request, machine_id: str, body: bodies.ConnectBrowser | None = None
    ) -> Response:
        """A CDP address that needs no key: whoever has it has the browser, until it expires."""
        ttl = 3600 if body is None else body.ttl_seconds
        link = await s.browser.connect(tenant(request), machine_id, key_id(request) or "", ttl)
        made = {"url": _host(request) + link.path, "expires_at": shapes.time(link.expires_at)}
        return Json(made, 201, SECRET)

    # Clients end the path with a slash or not.
    for end in ("", "/"):

        @r.get(f"/cdp/json{end}", include_in_schema=False)
        @r.get(f"/cdp/json/list{end}", include_in_schema=False)
        async def list_(request: Request, machine_id: str) -> Response:
            return await told(request, machine_id, "list")

        @r.get(f"/cdp/json/version{end}", include_in_schema=not end, name="version")
        async def version(request: Request, machine_id: str) -> Response:
            """As Chromium's own, its addresses leading through here: ``connect_over_cdp`` with a key in a header."""
            return await told(request, machine_id, "version")

        @r.get(f"/cdp/json/protocol{end}", include_in_schema=False)
        async def protocol(request: Request, machine_id: str) -> Response:
            return await told(request, machine_id, "protocol")

    async def told(request: Request, machine_id: str, what: str) -> Response:
        base = f"{_host(request)}/v1/machines/{machine_id}/browser/cdp"
        return Json(await s.browser.told(tenant(request), machine_id, what, base))

    return r


def _host(request: Request) -> str:
    """Where the caller reached the daemon, for a WebSocket."""
    scheme = "wss" if request.url.scheme == "https" else "ws"
    near = request.client is not None and request.client.host in ("127.0.0.1", "::1")
    if near and request.headers.get("x-forwarded-proto", "").lower() == "https":
        scheme = "wss"  # a proxy on this host says
    return f"{scheme}://{request.url.netloc}"


def _page(page: Page) -> shapes.Object:
    return {"page_id": page.id, "url": page.url, "title": page.title, "status": page.status}
