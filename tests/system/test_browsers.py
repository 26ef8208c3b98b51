"""Browsers of machines: looked at, driven over HTTP and by Playwright on this host, killed, forked."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from roost import AsyncMachine, Machine, RoostError

pytestmark = pytest.mark.system

PAGE = """<!doctype html><meta charset=utf-8><title>Two halves</title>
<style>html,body,h1{margin:0}div{height:400px}#a{background:#c81e1e}#b{background:#1e50c8}#long{height:2200px;background:#208040}</style>
<div id=a><h1 id=said>Grüße 漢字</h1><input id=field><button id=go onclick="said.textContent='pressed '+field.value">go</button></div>
<div id=b></div><div id=long></div>"""
SERVER = """
import http.server, time
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/slow': time.sleep(60)
        status = 404 if self.path == '/missing' else 200
        body = open('/tmp/page.html', 'rb').read()
        self.send_response(status); self.send_header('Content-Type', 'text/html'); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(('127.0.0.1', 8000), H).serve_forever()
"""


@pytest.fixture(
    scope="module",
    params=[
        "gvisor",
        pytest.param("runc", marks=pytest.mark.long),
        pytest.param("qemu", marks=pytest.mark.long),
    ],
)
def m(templates: Callable[[str], str], request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine.create(
        templates("browser"), driver=request.param, autosleep="never", timeout=900
    )
    try:
        machine.files.write("/tmp/page.html", PAGE)
        machine.files.write("/tmp/server.py", SERVER)
        machine.start(["python3", "/tmp/server.py"], keep_awake=False)
        for _ in range(100):
            if machine.exec(["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:8000/"]).ok:
                break
            time.sleep(0.2)
        yield machine
    finally:
        machine.destroy()


HERE = "http://127.0.0.1:8000/"


def refused(call: Callable[[], object]) -> RoostError:
    with pytest.raises(RoostError) as caught:
        call()
    return caught.value


def roost(*args: str) -> str:
    command = [sys.executable, "-m", "roost.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def near(one: object, other: tuple[int, int, int], by: int = 12) -> bool:
    assert isinstance(one, tuple)
    return all(abs(a - b) <= by for a, b in zip(one, other, strict=True))


def test_a_page_is_opened_read_and_seen(m: Machine) -> None:
    page = m.browser.goto(HERE)
    assert (page.url, page.title, page.status) == (HERE, "Two halves", 200)
    assert m.browser.goto(f"{HERE}missing").status == 404
    m.browser.goto(HERE)
    assert "Grüße 漢字" in m.browser.text()
    seen = picture(m.browser.screenshot())
    assert seen.size == (1280, 800)
    assert near(seen.getpixel((1000, 300)), (200, 30, 30)) and near(
        seen.getpixel((1000, 700)), (30, 80, 200)
    )
    whole = picture(m.browser.screenshot(full_page=True))
    assert whole.size[1] == 3000 and near(whole.getpixel((640, 2900)), (32, 128, 64))
    data = m.browser.screenshot(format="jpeg", quality=60)
    assert data.startswith(b"\xff\xd8\xff") and near(
        picture(data).getpixel((1000, 300)), (200, 30, 30)
    )
    m.browser.fill("#field", "né 漢 🎉")
    m.browser.click("#go")
    assert m.browser.eval("said.textContent") == "pressed né 漢 🎉"
    assert m.browser.eval("new Promise(done => setTimeout(() => done([1, null, 'x']), 50))") == [
        1,
        None,
        "x",
    ]


def test_what_cannot_be_is_told(m: Machine) -> None:
    assert refused(lambda: m.browser.goto("example.org")).code == "VALIDATION_FAILED"
    assert (
        refused(lambda: m.browser.goto("http://no-such-host.invalid/")).code == "NAVIGATION_FAILED"
    )
    assert "CONNECTION_REFUSED" in refused(lambda: m.browser.goto("http://127.0.0.1:8999/")).message
    begun = time.monotonic()
    assert refused(lambda: m.browser.goto(f"{HERE}slow", timeout=1.0)).code == "TIMEOUT"
    assert time.monotonic() - begun < 40
    assert m.browser.goto(HERE).status == 200, "the next is not held up"
    assert refused(lambda: m.browser.click("#no-such")).code == "NOT_FOUND"
    assert "boom" in refused(lambda: m.browser.eval("(() => { throw Error('boom') })()")).message
    assert m.browser.eval("alert('hello'), 7") == 7, "a dialog stops nobody"
    assert refused(lambda: m.browser.eval("while (true) {}", timeout=1.0)).code == "TIMEOUT"
    page = m.browser.goto(HERE)
    assert page.title == "Two halves", "a page that hangs is left by another address"


def test_playwright_on_this_host_drives_it(m: Machine) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        for browser in (
            p.chromium.connect_over_cdp(m.browser.cdp_url()),
            p.chromium.connect_over_cdp(m.browser.endpoint, headers=m.browser.headers),
        ):
            page = browser.contexts[0].new_page()
            page.goto(HERE)
            assert page.title() == "Two halves"
            page.fill("#field", "from outside")
            page.click("#go")
            assert page.inner_text("#said") == "pressed from outside"
            assert near(picture(page.screenshot()).getpixel((600, 300)), (200, 30, 30))
            big = page.evaluate("'x'.repeat(3e6)")
            assert len(big) == 3_000_000, "messages of any size pass"
            page.close()
            browser.close()


def test_by_the_command_line(m: Machine, tmp_path: Path) -> None:
    assert roost("browser", "goto", m.id, HERE).split()[0] == "200"
    assert "Grüße 漢字" in roost("browser", "text", m.id)
    assert "Two halves" in roost("browser", "pages", m.id)
    assert roost("browser", "eval", m.id, "6*7").strip() == "42"
    assert roost("browser", "cdp", m.id, "--ttl", "1m").startswith("ws://")
    file = tmp_path / "page.png"
    assert roost("screenshot", m.id, "-o", str(file)).strip() == str(file), (
        "it has no screen: the page"
    )
    assert Image.open(file).size == (1280, 800)


async def test_async_too(m: Machine) -> None:
    same = await AsyncMachine.get(m.id)
    page = await same.browser.goto(HERE)
    text, data = await asyncio.gather(same.browser.text(), same.browser.screenshot())
    assert page.title == "Two halves" and "Grüße" in text and data.startswith(b"\x89PNG")


def test_its_addresses_lead_through_the_daemon_and_to_nobody_else(m: Machine) -> None:
    request = urllib.request.Request(
        f"{m.browser.endpoint}/json/version", headers=m.browser.headers
    )
    said = json.load(urllib.request.urlopen(request))
    where = urllib.parse.urlsplit(m.browser.endpoint)
    assert said["webSocketDebuggerUrl"].startswith(
        f"ws://{where.netloc}{where.path}/devtools/browser/"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{m.browser.endpoint}/json/version")
    assert caught.value.code == 401
    assert re.search(r"\?token=\w+\.rlt_", m.browser.cdp_url(ttl=60))


def test_one_that_was_killed_is_started_again(m: Machine) -> None:
    m.browser.goto(HERE)
    m.exec("pkill -9 -f remote-debugging-port")
    deadline = time.monotonic() + 20
    while m.exec(["curl", "-s", "-o", "/dev/null", "http://127.0.0.1:9222/json/version"]).ok:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert m.browser.goto(HERE).title == "Two halves"


def test_it_goes_on_in_forks_that_keep_memory(m: Machine) -> None:
    m.browser.goto(HERE)
    m.browser.eval("globalThis.counter = 41")
    child = m.fork()
    assert isinstance(child, Machine)
    try:
        if not m.to_json()["memory_kept"]:
            assert child.browser.goto("about:blank").url == "about:blank", "a new one is started"
            return
        assert child.browser.eval("++counter") == 42
        assert m.browser.eval("counter") == 41
        assert picture(child.browser.screenshot()).size == (1280, 800)
        link = m.browser.cdp_url().replace(m.id, child.id)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(link.replace("ws://", "http://"))
        assert caught.value.code in (401, 405)
    finally:
        child.destroy()


def test_a_machine_without_one_says_which_has(daemon: object) -> None:
    with Machine.create(driver="runc", memory_mib=256) as bare:
        failure = refused(lambda: bare.browser.text())
        assert failure.code == "UNSUPPORTED" and "template browser" in failure.message
        assert refused(lambda: bare.computer.screenshot()).code == "UNSUPPORTED"
        assert refused(lambda: bare.run_code("1")).code == "UNSUPPORTED"
