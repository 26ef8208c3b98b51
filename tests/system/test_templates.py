"""The shipped templates, used as their users do, and what they show looked at.

Each is built once a session, with runc, and kept with its layers for the next one. The normal run uses them on gVisor,
where what they start goes on from a bake; ``--long`` on runc, which boots, and in microVMs, too.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from roost import Machine

from .conftest import Daemon
from .pictures import Picture, close, png
from .screen import Screen

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
PATIENCE_S = 120.0
RED, GREEN, BLUE = (220, 30, 30), (30, 160, 60), (30, 60, 200)
# Three bands that nothing else has, and text.
PAGE = """<!doctype html><meta charset="utf-8"><title>Bands</title>
<style>body{margin:0;font:40px sans-serif} div{height:100px}</style>
<div style="background:rgb(220,30,30)"></div><div style="background:rgb(30,160,60)"></div>
<div style="background:rgb(30,60,200)"></div><p id="said">not yet</p>
<script>document.getElementById("said").textContent = "1 + 1 = " + (1 + 1)</script>"""
# As Playwright's documentation writes it, and nothing of ours in it.
SCRIPT = """
from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    browser = p.chromium.launch()
    page = browser.new_page(viewport={"width": 400, "height": 360})
    page.goto("http://localhost:8000/")
    print(page.title(), "|", page.inner_text("#said"))
    page.screenshot(path="/workspace/shot.png")
    browser.close()
    context = p.chromium.launch_persistent_context("/workspace/profile")
    context.new_page().goto("http://localhost:8000/")
    print(len(context.pages), "pages")
    context.close()
"""
# What cannot be drawn is a box, the same for all.
GLYPHS = """
import base64, json
from playwright.sync_api import sync_playwright
DRAW = '''text => { const c = document.createElement("canvas"); c.width = c.height = 80;
 const x = c.getContext("2d"); x.font = "60px sans-serif"; x.fillText(text, 5, 60); return c.toDataURL(); }'''
with sync_playwright() as p:
    page = p.chromium.launch().new_page()
    print(json.dumps({t: page.evaluate(DRAW, t) for t in ["\\u6f22", "\\u5b57", "\\u3042", "\\ud55c", "\\U0001f980", "\\U0001f600", "\\U000fabcd"]}))
"""


@pytest.fixture(scope="session")
def built(daemon: Daemon) -> Callable[[str], str]:
    """A template, built now unless this session or one before it did."""
    done: set[str] = set()

    def build(name: str) -> str:
        if name not in done:
            begun = time.monotonic()
            daemon.build_template(name)
            done.add(name)
            print(f"\n{name} was ready after {time.monotonic() - begun:.0f} s")
        return name

    return build


@pytest.fixture(
    params=[
        "gvisor",
        pytest.param("runc", marks=pytest.mark.long),
        pytest.param("qemu", marks=pytest.mark.long),
    ]
)
def rung(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(built: Callable[[str], str], rung: str) -> Iterator[Callable[[str], Machine]]:
    made: list[Machine] = []

    def create(template: str) -> Machine:
        made.append(Machine.create(built(template), driver=rung, autosleep="never"))
        return made[-1]

    yield create
    for each in made:
        each.destroy()


def run(m: Machine, command: str, timeout: float = 600) -> str:
    done = m.exec(command, timeout=timeout)
    assert done.ok, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.strip()


def until(what: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    begun = time.monotonic()
    while not (found := what()):
        assert time.monotonic() - begun < within_s, "it does not come"
        time.sleep(0.2)
    return found


def serve(m: Machine, page: str = PAGE) -> None:
    m.files.write("/workspace/www/index.html", page)
    m.start("exec python3 -m http.server -d /workspace/www 8000 >/dev/null 2>&1")
    until(lambda: "Bands" in m.exec("curl -s http://localhost:8000/").stdout)


def bands(seen: Picture, left: int, top: int) -> None:
    for n, wanted in enumerate((RED, GREEN, BLUE)):
        assert close(seen.at(left + 50, top + 50 + 100 * n), wanted), n


# --- agent -------------------------------------------------------------------------------------------


def test_agent_has_the_tools_of_its_trade(make: Callable[[str], Machine]) -> None:
    m = make("agent")
    m.files.write("/workspace/a.c", '#include <stdio.h>\nint main() { puts("compiled"); }\n')
    assert run(m, "cd /workspace && cc a.c -o a && ./a") == "compiled"
    assert run(m, """node -e 'console.log([1, 2, 3].map(n => n * n).join())'""") == "1,4,9"
    assert run(m, "npm --version").count(".") == 2
    assert run(m, "cd /workspace && rg -l puts") == "a.c"
    assert run(m, """echo '{"a": [1, 2]}' | jq -c .a""") == "[1,2]"
    assert run(m, "tmux new-session -d -s w 'sleep 60' && tmux ls").startswith("w: 1 windows")
    assert run(m, "cd /workspace && uv venv -q v && v/bin/python -c 'print(6 * 7)'") == "42"


# --- browser -----------------------------------------------------------------------------------------


def test_browser_runs_when_it_is_made_and_after_each_sleep(
    make: Callable[[str], Machine], rung: str
) -> None:
    m = make("browser")
    version = "curl -fsS http://localhost:9222/json/version"
    assert "Chrome/" in json.loads(run(m, version))["Browser"]
    (start,) = until(lambda: [e for e in m.executions.list() if e.name == "start"])
    assert start.command == ["roost-browser"] and start.running
    assert m.executions.get("start").id == start.id
    # It holds nobody awake, and goes on in children.
    child = m.fork()
    assert isinstance(child, Machine)
    assert "Chrome/" in run(child, version)
    child.destroy()
    m.sleep()
    m.wake()
    assert "Chrome/" in run(m, version)
    m.sleep(tier="stopped")
    m.wake()
    assert "Chrome/" in run(m, version)
    again = until(lambda: (found := m.executions.get("start")).id != start.id and found)
    assert again.running


def test_a_script_for_playwright_runs_as_it_is(make: Callable[[str], Machine]) -> None:
    m = make("browser")
    serve(m)
    m.files.write("/workspace/script.py", SCRIPT)
    said = run(m, "cd /workspace && python3 script.py")
    assert said.splitlines() == ["Bands | 1 + 1 = 2", "2 pages"]
    seen = png(m.files.read("/workspace/shot.png"))
    assert (seen.width, seen.height) == (400, 360)
    bands(seen, 0, 0)
    text = seen.colours(0, 300, 400, 60)
    assert text[(255, 255, 255)] > 10_000 and sum(n for c, n in text.items() if max(c) < 100) > 200
    # By a user who is not root, too, with an environment of another kind.
    run(m, "chown -R user /workspace/www && rm -rf /workspace/profile && chown user /workspace")
    assert (
        "Bands | 1 + 1 = 2"
        in m.exec("python3 script.py", user="user", cwd="/workspace", timeout=600).stdout
    )


def test_letters_of_the_east_and_pictures_of_faces_are_drawn(
    make: Callable[[str], Machine],
) -> None:
    drawn = json.loads(run(make("browser"), f"python3 - <<'EOF'\n{GLYPHS}\nEOF"))
    box = drawn.pop("\U000fabcd")
    assert all(each != box for each in drawn.values())
    assert len(set(drawn.values())) == len(drawn)


# --- desktop -----------------------------------------------------------------------------------------


def screen(daemon: Daemon, m: Machine) -> Screen:
    """As the viewer's page connects to it."""
    where = urlsplit(m.url(6080))
    sock = socket.create_connection(("127.0.0.1", urlsplit(daemon.url).port))
    headers = {"X-Roost-Preview-Token": daemon.key}
    return Screen(
        connect(
            f"ws://{where.netloc}/websockify", sock=sock, additional_headers=headers,
            subprotocols=["binary"], compression=None, max_size=None,
        )
    )  # fmt: skip


def test_desktop_shows_a_browser_and_a_terminal(
    daemon: Daemon, make: Callable[[str], Machine], rung: str
) -> None:
    m = make("desktop")
    with m.http(6080) as http:
        assert "vnc.html" in http.get("/").text
        assert "noVNC" in http.get("/vnc.html").text
    shown = screen(daemon, m)
    assert (shown.width, shown.height) == (1280, 800)
    until(lambda: close(shown.picture().at(4, 4), (0x3B, 0x52, 0x66)))  # the root window's
    assert len(shown.picture().colours()) > 50, "something is on it"
    serve(m)
    m.start("chromium --user-data-dir=/var/lib/roost/desktop http://localhost:8000/")

    def shows() -> Picture | None:
        now = shown.picture()
        found = now.colours()
        return now if all(found[each] > 20_000 for each in (RED, GREEN, BLUE)) else None

    until(shows)
    titles = run(m, 'xwininfo -root -tree | grep -o \'"[^"]*"\'')
    assert "Bands" in titles and "Terminal" in titles
    # What a person has open at the viewer's page: seen by the machine's other browser.
    m.files.write(
        "/workspace/view.py",
        "from playwright.sync_api import sync_playwright\n"
        "with sync_playwright() as p:\n"
        "    page = p.chromium.launch().new_page(viewport={'width': 1280, 'height': 800})\n"
        "    page.goto('http://localhost:6080/')\n"
        "    page.wait_for_selector('canvas', timeout=60000)\n"
        "    page.wait_for_timeout(5000)\n"
        "    page.screenshot(path='/workspace/view.png')\n",
    )
    run(m, "python3 /workspace/view.py")
    viewed = png(m.files.read("/workspace/view.png")).colours()
    for wanted in (RED, GREEN, BLUE):
        assert sum(n for c, n in viewed.items() if close(c, wanted)) > 15_000
    if rung != "runc":
        another = make("desktop")
        began = int(run(another, "stat -c %Y /tmp/.X0-lock"))
        assert another.created_at is not None
        assert began < another.created_at.timestamp(), "it goes on from a bake: it did not boot"


# --- code-interpreter --------------------------------------------------------------------------------


def test_code_interpreter_computes_and_draws(make: Callable[[str], Machine]) -> None:
    m = make("code-interpreter")
    assert run(m, "curl -fsS http://127.0.0.1:7114/ready") is not None
    m.files.write(
        "/workspace/plot.py",
        "import matplotlib; matplotlib.use('agg')\n"
        "import matplotlib.pyplot as plt, numpy as np, pandas as pd\n"
        "frame = pd.DataFrame({'x': np.arange(5), 'y': np.arange(5) ** 2})\n"
        "print(frame.y.sum())\n"
        "plt.figure(figsize=(4, 3), dpi=100); plt.plot(frame.x, frame.y, color='#ff0000', linewidth=5)\n"
        "plt.title('\\u6f22\\u5b57'); plt.savefig('/workspace/plot.png')\n",
    )
    done = m.exec("python3 /workspace/plot.py", timeout=300)
    assert done.ok and done.stdout.strip() == "30", done
    assert "Glyph" not in done.stderr, "a letter that no font has"
    seen = png(m.files.read("/workspace/plot.png"))
    assert (seen.width, seen.height) == (400, 300)
    found = seen.colours()
    assert found[(255, 255, 255)] > 60_000 and found[(255, 0, 0)] > 500
