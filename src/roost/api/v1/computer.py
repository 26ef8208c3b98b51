"""Screen, mouse, keyboard, windows and clipboard of a machine over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from roost.api.v1 import answers, bodies, routes
from roost.api.v1.browser import INERT
from roost.api.v1.parse import invalid
from roost.api.v1.services import Services, tenant
from roost.gateway.respond import Json

PICTURE: dict[int | str, Any] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


def router(s: Services) -> APIRouter:
    r = routes.router("/v1/machines/{machine_id}/computer", "computer")
    done = Response(status_code=204)

    @r.get("", response_model=answers.Screen)
    async def screen(request: Request, machine_id: str) -> Response:
        """Its size, and where the pointer is."""
        return Json(asdict(await s.computer.screen(tenant(request), machine_id)))

    @r.get("/screenshot", response_class=Response, responses=PICTURE)
    async def screenshot(
        request: Request,
        machine_id: str,
        scale: Annotated[float, Query(ge=0.05, le=1)] = 1.0,
        cursor: bool = True,
        region: Annotated[
            str | None,
            Query(
                pattern=r"^\d{1,5},\d{1,5},\d{1,5},\d{1,5}$", description="left,top,right,bottom"
            ),
        ] = None,
    ) -> Response:
        part = None if region is None else _region(region)
        data = await s.computer.screenshot(
            tenant(request), machine_id, scale=scale, cursor=cursor, region=part
        )
        return Response(data, media_type="image/png", headers=INERT)

    @r.post("/move", status_code=204, response_class=Response)
    async def move(request: Request, machine_id: str, body: bodies.MovePointer) -> Response:
        await s.computer.move(tenant(request), machine_id, body.x, body.y)
        return done

    @r.post("/click", status_code=204, response_class=Response)
    async def click(
        request: Request, machine_id: str, body: bodies.Click | None = None
    ) -> Response:
        asked = body or bodies.Click.model_validate({})
        await s.computer.click(
            tenant(request),
            machine_id,
            asked.x,
            asked.y,
            button=asked.button,
            count=asked.count,
            modifiers=asked.modifiers,
        )
        return done

    @r.post("/drag", status_code=204, response_class=Response)
    async def drag(request: Request, machine_id: str, body: bodies.Drag) -> Response:
        await s.computer.drag(
            tenant(request),
            machine_id,
            body.x,
            body.y,
            body.to_x,
            body.to_y,
            button=body.button,
            modifiers=body.modifiers,
        )
        return done

    @r.post("/button", status_code=204, response_class=Response)
    async def button(request: Request, machine_id: str, body: bodies.PressButton) -> Response:
        """Presses a mouse button, or lets it go."""
        await s.computer.press(tenant(request), machine_id, body.button, body.down)
        return done

    @r.post("/scroll", status_code=204, response_class=Response)
    async def scroll(request: Request, machine_id: str, body: bodies.Scroll) -> Response:
        await s.computer.scroll(
            tenant(request),
            machine_id,
            body.x,
            body.y,
            dx=body.dx,
            dy=body.dy,
            modifiers=body.modifiers,
        )
        return done

    @r.post("/type", status_code=204, response_class=Response)
    async def type_(request: Request, machine_id: str, body: bodies.TypeText) -> Response:
        await s.computer.type(tenant(request), machine_id, body.text)
        return done

    @r.post("/key", status_code=204, response_class=Response)
    async def key(request: Request, machine_id: str, body: bodies.PressKeys) -> Response:
        await s.computer.key(tenant(request), machine_id, body.keys, hold_ms=body.hold_ms)
        return done

    @r.get("/windows", response_model=answers.Windows)
    async def windows(request: Request, machine_id: str) -> Response:
        found = await s.computer.windows(tenant(request), machine_id)
        shown = [
            {"window_id": w.id, **{k: v for k, v in asdict(w).items() if k != "id"}} for w in found
        ]
        return Json({"items": shown})

    @r.post("/focus", status_code=204, response_class=Response)
    async def focus(request: Request, machine_id: str, body: bodies.FocusWindow) -> Response:
        await s.computer.focus(tenant(request), machine_id, body.window_id)
        return done

    @r.get("/clipboard", response_model=answers.Clipboard)
    async def clipboard(request: Request, machine_id: str) -> Response:
        return Json({"text": await s.computer.clipboard(tenant(request), machine_id)})

    @r.put("/clipboard", status_code=204, response_class=Response)
    async def set_clipboard(
        request: Request, machine_id: str, body: bodies.SetClipboard
    ) -> Response:
        await s.computer.set_clipboard(tenant(request), machine_id, body.text)
        return done

    return r


def _region(text: str) -> tuple[int, int, int, int]:
    left, top, right, bottom = (int(each) for each in text.split(","))
    if left >= right or top >= bottom:
        raise invalid("region", "is left,top,right,bottom, right and bottom the larger ones")
    return left, top, right, bottom
