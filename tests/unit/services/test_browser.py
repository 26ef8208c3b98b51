"""The browser of a machine, where that is a Chromium, where it is dead, and where it is somebody who plays one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from roost.clock import SystemClock
from roost.errors import RoostError
from roost.services import browser, cdp
from roost.services.browser import Browser, check_url, rewritten
from tests.unit.services.door import Doors, helpers

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 100
Answers = dict[str, Any]


class Chromium:
    """Plays one. ``says``: a method's result, or a function of its params, or an exception's text for an error."""

    def __init__(self) -> None:
        self.says: Answers = {"Page.captureScreenshot": {"data": base64.b64encode(PNG).decode()}}
        self.pages: Any = [
            {"id": "B", "type": "background_page"},
            {"id": "P1", "type": "page", "url": "http://x/", "title": "x"},
        ]
        self.heard: list[tuple[str, Any]] = []
        self.events: dict[str, list[dict[str, Any]]] = {}  # before the answer to a method

    async def socket(self, ws: ServerConnection) -> None:
        async for text in ws:
            asked = json.loads(text)
            method = asked["method"]
            self.heard.append((method, asked["params"]))
            for event in self.events.get(method, []):
                await ws.send(json.dumps(event))
            said = self.says.get(method, {})
            if callable(said):
                said = said(asked["params"])
            if said is None:
                continue
            if isinstance(said, bytes):
                await ws.send(said.decode())
                continue
            if isinstance(said, str):
                await ws.send(json.dumps({"id": asked["id"], "error": {"message": said}}))
                continue
            await ws.send(json.dumps({"id": asked["id"], "result": said}))

    def http(self, connection: ServerConnection, request: Request) -> Response | None:
        assert request.headers["Host"].startswith("localhost")
        if request.path.startswith("/json/close/"):
            self.pages = [{"id": "NEW", "type": "page", "url": "about:blank", "title": ""}]
        bodies = {
            "/json/close/P1": "closed",
            "/json/list": self.pages,
            "/json/version": {"webSocketDebuggerUrl": "ws://localhost:1/devtools/browser/U-1"},
        }
        if request.path not in bodies:
            return None
        return connection.respond(200, json.dumps(bodies[request.path]))


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Chromium, Browser, Doors]]:
    chromium = Chromium()
    server = await serve(
        chromium.socket, "127.0.0.1", 0, process_request=chromium.http, max_size=None
    )
    doors = Doors()
    doors.port = next(iter(server.sockets)).getsockname()[1]
    try:
        yield chromium, Browser(helpers(doors), b"secret", SystemClock()), doors
    finally:
        server.close()


async def refused(call: Any) -> RoostError:
    with pytest.raises(RoostError) as caught:
        await call
    return caught.value


def loaded(loader: str = "L", name: str = "load") -> dict[str, Any]:
    return {"method": "Page.lifecycleEvent", "params": {"loaderId": loader, "name": name}}


def value(it: Any) -> dict[str, Any]:
    return {"result": {"value": it}}


async def test_goto_waits_for_its_own_page_to_load() -> None:
    async with running() as (chromium, b, _):
        chromium.says["Page.navigate"] = {"frameId": "F", "loaderId": "L"}
        chromium.events["Page.navigate"] = [loaded("OTHER"), loaded("L", "init")]
        where = {"url": "http://y/", "title": "why", "status": 200}
        chromium.says["Runtime.evaluate"] = value(where)
        with_late = asyncio.ensure_future(b.goto("t", "m", "http://y/", timeout_s=0.5))
        assert (await refused(with_late)).code == "TIMEOUT"
        chromium.events["Page.navigate"].append(loaded("L"))
        page = await b.goto("t", "m", "http://y/")
        assert (page.id, page.url, page.title, page.status) == ("P1", "http://y/", "why", 200)
        assert (await b.goto("t", "m", "http://y/", wait_until="none")).title == "why"


async def test_a_page_that_hangs_is_left_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "HUNG_S", 0.1)
    async with running() as (chromium, b, _):
        where = value({"url": "http://y/", "title": "", "status": 0})
        chromium.says["Runtime.evaluate"] = lambda _: (
            where if chromium.pages[0]["id"] == "NEW" else None
        )
        chromium.says["Page.navigate"] = {"frameId": "F", "loaderId": "L"}

        async def new(
            *_: str,
        ) -> browser.Page:  # its method is PUT, which this server does not know
            return browser.Page("NEW", "about:blank", "")

        monkeypatch.setattr(b, "_new", new)
        assert (await b.goto("t", "m", "http://y/", wait_until="none")).id == "NEW"


async def test_what_runs_on_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as (chromium, b, _):
        chromium.says["Runtime.evaluate"] = "Execution was terminated"
        assert (await refused(b.eval("t", "m", "while (1);", timeout_s=0.5))).code == "TIMEOUT"
        assert chromium.heard[-1][1]["timeout"] == 450


async def test_what_cannot_be_opened_says_why() -> None:
    async with running() as (chromium, b, _):
        chromium.says["Page.navigate"] = {"frameId": "F", "errorText": "net::ERR_NAME_NOT_RESOLVED"}
        failure = await refused(b.goto("t", "m", "http://nowhere.test/"))
        assert failure.code == "NAVIGATION_FAILED"
        assert "ERR_NAME_NOT_RESOLVED" in failure.message
        assert "egress" in failure.message
        chromium.says["Page.navigate"] = {"errorText": "<script>\x1b[31m"}
        assert "\x1b" not in (await refused(b.goto("t", "m", "http://nowhere.test/"))).message


@pytest.mark.parametrize(
    "url",
    ["example.org", "javascript:alert(1)", "http://", "http://[::1", "", "chrome://version", "http://a b/", "ftp://x/", "http://x/\n"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RoostError) as caught:
        check_url(url)
    assert caught.value.code == "VALIDATION_FAILED"


def test_addresses_are_taken() -> None:
    for url in ("https://example.org", "http://[::1]:8000/x?y#z", "data:text/html,<p>a b</p>", "about:blank", "file:///etc/hosts"):  # fmt: skip
        check_url(url)


async def test_pictures_are_pictures_and_cut_at_what_chromium_can() -> None:
    async with running() as (chromium, b, _):
        assert (await b.screenshot("t", "m")).data == PNG
        big = {"cssContentSize": {"x": 0, "y": 0, "width": 1280, "height": 1e9}}
        chromium.says["Page.getLayoutMetrics"] = big
        await b.screenshot("t", "m", full_page=True)
        clip = chromium.heard[-1][1]["clip"]
        assert (clip["width"], clip["height"]) == (1280, 16384)
        for wrong in ("", "no base64!", base64.b64encode(b"<svg/>").decode(), 7):
            chromium.says["Page.captureScreenshot"] = {"data": wrong}
            assert (await refused(b.screenshot("t", "m"))).code == "PORT_BAD_ANSWER"
        assert (await refused(b.screenshot("t", "m", format="jpeg"))).code == "PORT_BAD_ANSWER"


async def test_a_message_beyond_all_measure_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdp, "MESSAGE", 1000)
    async with running() as (chromium, b, _):
        chromium.says["Page.captureScreenshot"] = {"data": "A" * 5000}
        assert (await refused(b.screenshot("t", "m"))).code == "AGENT_LOST"


@pytest.mark.parametrize(
    "said", [b"[", b"[]", b"7", b'{"id": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"]
)
async def test_a_browser_that_talks_nonsense_is_refused(said: bytes) -> None:
    async with running() as (chromium, b, _):
        chromium.says["Page.captureScreenshot"] = said
        assert (await refused(b.screenshot("t", "m"))).code == "PORT_BAD_ANSWER"


async def test_what_the_browser_refuses_is_told_and_a_crash_is() -> None:
    async with running() as (chromium, b, _):
        chromium.says["Page.captureScreenshot"] = "Unable to capture"
        assert "Unable to capture" in (await refused(b.screenshot("t", "m"))).message
        chromium.events["Page.captureScreenshot"] = [
            {"method": "Inspector.targetCrashed", "params": {}}
        ]
        chromium.says["Page.captureScreenshot"] = None
        assert (await refused(b.screenshot("t", "m"))).code == "AGENT_LOST"


async def test_dialogs_do_not_stop_a_call() -> None:
    async with running() as (chromium, b, _):
        opening = {"method": "Page.javascriptDialogOpening", "params": {"message": "hello"}}
        chromium.events["Runtime.evaluate"] = [opening]
        chromium.says["Runtime.evaluate"] = None  # until somebody answered the dialog
        chromium.says["Page.handleJavaScriptDialog"] = (
            b'{"id": 1, "result": {"result": {"value": 1}}}'
        )
        assert await b.eval("t", "m", "alert(1)") == 1
        assert ("Page.handleJavaScriptDialog", {"accept": True}) in chromium.heard


async def test_elements() -> None:
    async with running() as (chromium, b, _):
        found: Callable[[Any], Any] = lambda p: value(None)  # noqa: E731
        chromium.says["Runtime.evaluate"] = found
        assert (await refused(b.click("t", "m", "#no"))).code == "NOT_FOUND"
        chromium.says["Runtime.evaluate"] = value("bad")
        assert (await refused(b.click("t", "m", "<<"))).code == "VALIDATION_FAILED"
        chromium.says["Runtime.evaluate"] = value([10, 20.5])
        await b.fill("t", "m", "input", "né 漢")
        assert chromium.heard[-1] == ("Input.insertText", {"text": "né 漢"})
        thrown = {"exceptionDetails": {"exception": {"description": "ReferenceError: x"}}}
        chromium.says["Runtime.evaluate"] = thrown
        failure = await refused(b.eval("t", "m", "x"))
        assert failure.code == "VALIDATION_FAILED"
        assert "ReferenceError" in failure.message


async def test_no_page_and_a_page_that_is_gone() -> None:
    async with running() as (chromium, b, _):
        assert (await refused(b.text("t", "m", page_id="NOPE"))).code == "NOT_FOUND"
        assert (await refused(b.text("t", "m", page_id="../x"))).code == "VALIDATION_FAILED"
        chromium.pages = []
        assert (await refused(b.text("t", "m"))).code == "INVALID_STATE"
        chromium.pages = {"no": "list"}
        assert (await refused(b.text("t", "m"))).code == "PORT_BAD_ANSWER"


async def test_links_lead_to_the_one_browser_until_they_expire() -> None:
    async with running() as (_, b, __):
        link = await b.connect("t", "m" * 26, "key-1", 60)
        path, _, token = link.path.partition("?token=")
        assert path == f"/v1/machines/{'m' * 26}/browser/cdp/devtools/browser/U-1"
        found = b.read("m" * 26, token)
        assert found is not None
        assert found == ("key-1", int(link.expires_at.timestamp()))
        assert b.read("n" * 26, token) is None
        assert b.read("m" * 26, token.replace("key-1", "key-2")) is None
        assert b.read("m" * 26, "") is None
        for ttl in (0, browser.LINK_MAX_S + 1):
            assert (await refused(b.connect("t", "m", "k", ttl))).code == "VALIDATION_FAILED"


def test_inner_addresses_lead_through_the_daemon() -> None:
    base = "wss://here/v1/machines/m/browser/cdp"
    said = [
        {"id": "P", "webSocketDebuggerUrl": "ws://localhost:9222/devtools/page/P", "devtoolsFrontendUrl": "https://elsewhere/?ws=localhost"},
        {"id": "Q", "webSocketDebuggerUrl": "ws://evil.example/else/where"},
        {"id": "R", "webSocketDebuggerUrl": 7},
    ]  # fmt: skip
    assert rewritten(said, base) == [
        {"id": "P", "webSocketDebuggerUrl": f"{base}/devtools/page/P"},
        {"id": "Q"},
        {"id": "R"},
    ]
    assert rewritten("text", base) == "text"


async def test_a_tenants_browsers_that_hang_hold_up_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(browser, "AT_ONCE", 1)
    async with running() as (chromium, b, _):
        said = chromium.says["Page.captureScreenshot"]
        chromium.says["Page.captureScreenshot"] = None
        hanging = asyncio.ensure_future(b.screenshot("one", "m"))
        async with asyncio.timeout(10):
            while not any(method == "Page.captureScreenshot" for method, _ in chromium.heard):
                await asyncio.sleep(0.01)
            chromium.says["Page.captureScreenshot"] = said
            assert (await b.screenshot("other", "n")).data == PNG
        hanging.cancel()
        await asyncio.wait({hanging})
