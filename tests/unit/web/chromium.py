"""A real Chromium without a screen, driven as a person would: by mouse and keys, over its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.services.cdp import Session
from tests.unit.services.door import Through

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-default-apps",
    "--metrics-recording-only",
    "--remote-debugging-port=0",
    "about:blank",
]
KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), " ": (" ", 32)}


@dataclass
class Chromium:
    port: int

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path) -> Iterator[Chromium]:
        """With a profile of its own in the directory. Skips the test where there is none."""
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("needs Debian's package chromium: scripts/test installs it")
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={directory}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(directory / "stderr").open("wb"),
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        )
        try:
            told = directory / "DevToolsActivePort"
            deadline = time.monotonic() + 60
            while not (told.exists() and "\n" in told.read_text()):
                assert process.poll() is None and time.monotonic() < deadline, "it does not start"
                time.sleep(0.02)
            yield cls(int(told.read_text().split()[0]))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    @contextlib.asynccontextmanager
    async def tab(self, url: str) -> AsyncIterator[Tab]:
        base = f"http://127.0.0.1:{self.port}/json"
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            about = (await http.put(f"{base}/new?about:blank")).json()
            stream = Through(*await asyncio.open_connection("127.0.0.1", self.port))
            path = f"/devtools/page/{about['id']}"
            async with Session.open(stream, self.port, path) as session:
                tab = Tab(session)
                for each in ("Page", "Runtime", "Network", "Log"):
                    await session.call(f"{each}.enable")
                await tab.goto(url)
                yield tab
            await http.get(f"{base}/close/{about['id']}")


class Tab:
    """``requests``: of all it asked for, (URL, headers). ``wrong``: what it complained of."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        self.wrong: list[str] = []
        session.heard = self._heard

    def _heard(self, method: str, params: Mapping[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append((params["request"]["url"], params["request"]["headers"]))
        elif method == "Runtime.exceptionThrown":
            self.wrong.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["source"] != "network":
            self.wrong.append(str(params["entry"]["text"]))

    async def goto(self, url: str) -> None:
        await self.session.call("Page.navigate", {"url": url})
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def js(self, expression: str) -> Any:
        said = await self.session.call(
            "Runtime.evaluate",
            {"expression": expression, "returnByValue": True, "awaitPromise": True},
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, expression: str, timeout: float = 30.0) -> Any:
        try:
            async with asyncio.timeout(timeout):
                while not (found := await self.js(expression)):
                    await asyncio.sleep(0.02)
                return found
        except TimeoutError:
            shown = await self.js("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{shown}") from None

    async def says(self, text: str, where: str = "body") -> str:
        """Waits until a visible element's text has it; the whole text."""
        at = json.dumps(where)
        return str(
            await self.until(
                f"[...document.querySelectorAll({at})].filter(e => e.checkVisibility())"
                f".map(e => e.innerText).find(t => t.includes({json.dumps(text)}))"
            )
        )

    async def click(self, selector: str) -> None:
        look = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        heard = (
            f"document.querySelector({json.dumps(selector)})"
            ".addEventListener('click', () => window.heard = true, {capture: true, once: true})"
        )
        await self.js(f"window.heard = false, {heard}")
        for _ in range(10):  # names come late and lines wrap: what was pressed was beside it, then
            at, before = await self.js(look), None
            while at != before:
                await asyncio.sleep(0.05)
                at, before = await self.js(look), at
            for kind in ("mousePressed", "mouseReleased"):
                await self.session.call(
                    "Input.dispatchMouseEvent",
                    {"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1},
                )
            if await self.js("window.heard"):
                return
        raise AssertionError(f"never pressed: {selector}")

    async def type(self, text: str) -> None:
        await self.session.call("Input.insertText", {"text": text})

    async def press(self, key: str) -> None:
        text, number = KEYS[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": number}
        await self.session.call(
            "Input.dispatchKeyEvent", {"type": "keyDown", "text": text, **about}
        )
        await self.session.call("Input.dispatchKeyEvent", {"type": "keyUp", **about})

    async def enter(self, key: str) -> None:
        """Types a key into the form and opens the list with it."""
        await self.until("document.activeElement.id === 'key'")
        await self.type(key)
        await self.press("Enter")
