"""The screen of a machine as a person at it: seen, clicked, typed at; and what happens when it cannot be."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from roost import Machine, RoostError, Window

pytestmark = pytest.mark.system

# A window that writes down what is done to it.
WATCHER = """
import json, sys
from Xlib import X, XK, display
d = display.Display(); s = d.screen()
w = s.root.create_window(0, 0, 400, 300, 0, s.root_depth, background_pixel=0x00c83c,
    event_mask=X.ButtonPressMask | X.ButtonReleaseMask | X.PointerMotionMask | X.KeyPressMask | X.ExposureMask)
w.set_wm_name('watcher'); w.map(); d.sync()
log = open('/tmp/seen', 'w', buffering=1)
while True:
    e = d.next_event()
    if e.type in (X.ButtonPress, X.ButtonRelease, X.MotionNotify, X.KeyPress):
        print(json.dumps([e.type, e.detail, e.root_x, e.root_y, e.state & 255]), file=log)
    if e.type == X.MappingNotify: d.refresh_keyboard_mapping(e)
"""
# Covers everything and takes the keyboard, as xlock and its like do.
LOCK = """
from Xlib import X, display
import time
d = display.Display(); r = d.screen().root; g = r.get_geometry()
w = r.create_window(0, 0, g.width, g.height, 0, X.CopyFromParent, override_redirect=True, background_pixel=0)
w.map(); d.sync(); time.sleep(0.3)
r.grab_keyboard(True, X.GrabModeAsync, X.GrabModeAsync, X.CurrentTime); d.sync()
open('/tmp/locked', 'w').close()
time.sleep(600)
"""
GRAB = """
from Xlib import display
import time
d = display.Display(); d.grab_server(); d.sync(); open('/tmp/grabbed', 'w').close(); time.sleep(60)
"""
PRESS, RELEASE, MOTION, KEY = 4, 5, 6, 2


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
        templates("desktop"), driver=request.param, vcpu=2, autosleep="never", timeout=900
    )
    try:
        machine.files.write("/tmp/watcher.py", WATCHER)
        machine.start("DISPLAY=:0 exec /usr/bin/python3 /tmp/watcher.py", keep_awake=False)
        until(lambda: window(machine, "watcher"))
        yield machine
    finally:
        machine.destroy()


def until(what: Callable[[], object], within_s: float = 30.0) -> object:
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)
    return found


def window(m: Machine, title: str) -> Window | None:
    return next((w for w in m.computer.windows() if title in w.title), None)


def focus(m: Machine, w: Window) -> None:
    m.computer.focus(w)
    # The window manager is waited for 3 s; it may have a keyboard's new maps to read first.
    until(lambda: [v.title for v in m.computer.windows() if v.focused] == [w.title])


def refused(call: Callable[[], object]) -> RoostError:
    with pytest.raises(RoostError) as caught:
        call()
    return caught.value


def seen(m: Machine) -> list[list[int]]:
    return [json.loads(line) for line in m.files.read_text("/tmp/seen").splitlines()]


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def inner(w: Window) -> tuple[int, int]:
    """The middle of a window."""
    return w.x + w.width // 2, w.y + w.height // 2


def test_it_is_seen(m: Machine) -> None:
    width, height = m.computer.size()
    w = window(m, "watcher")
    assert w is not None
    focus(m, w)
    x, y = inner(w)
    m.computer.move(x, y)
    assert m.computer.cursor() == (x, y)
    whole = picture(m.computer.screenshot())
    assert whole.size == (width, height) == (1280, 800)
    assert len(whole.getcolors(1 << 24) or []) > 8, "more than one colour"
    assert whole.getpixel((x + 60, y + 60)) == (0, 0xC8, 0x3C)
    bare = picture(m.computer.screenshot(cursor=False))
    assert bare.getpixel((x + 1, y + 2)) == (0, 0xC8, 0x3C) != whole.getpixel((x + 1, y + 2)), (
        "the pointer is drawn"
    )
    half = picture(m.computer.screenshot(scale=0.5))
    assert half.size == (640, 400) and half.getpixel(((x + 60) // 2, (y + 60) // 2)) == (
        0,
        0xC8,
        0x3C,
    )
    part = picture(m.computer.screenshot(region=(x + 20, y + 20, x + 50, y + 40), cursor=False))
    assert part.size == (30, 20) and part.getcolors() == [(600, (0, 0xC8, 0x3C))]


def test_the_mouse_does_what_it_is_told(m: Machine) -> None:
    w = window(m, "watcher")
    assert w is not None
    focus(m, w)
    x, y = inner(w)
    before = len(seen(m))
    m.computer.click(x, y)
    m.computer.double_click(x + 5, y)
    m.computer.click(x, y, button="right", modifiers="ctrl+shift")
    m.computer.scroll(x, y, dy=3)
    m.computer.scroll(dy=-1)
    m.computer.drag(x - 50, y, x + 50, y + 20)
    until(lambda: [RELEASE, 1, x + 50, y + 20] in [each[:4] for each in seen(m)])
    new = seen(m)[before:]
    presses = [each for each in new if each[0] == PRESS]
    assert [p[1] for p in presses] == [1, 1, 1, 3, 5, 5, 5, 4, 1]
    assert presses[0][2:4] == [x, y] and presses[1][2:4] == presses[2][2:4] == [x + 5, y]
    assert presses[3][4] & 5 == 5, "shift and control were held"
    dragged = [each for each in new if (each[0] == MOTION and each[4] == 0) or each[0] == MOTION]
    assert len({tuple(each[2:4]) for each in dragged}) > 8, "a drag moves"


def test_what_is_typed_is_what_is_read(m: Machine) -> None:
    terminal = window(m, "Terminal")
    assert terminal is not None
    focus(m, terminal)
    text = 'Grüße, ÆØÅ ñ € — 漢字かな 한글 🎉🦜 ~!@#$%^&*()_+{}|:<>?`-=[]\\;\',./ "ABC xyz"'
    m.computer.key("ctrl+c")
    m.computer.type("cat > /tmp/typed\n")
    time.sleep(0.5)
    m.computer.type(f"{text}\n")
    m.computer.key("ctrl+d")
    until(lambda: m.exec(["test", "-s", "/tmp/typed"]).ok)
    assert m.files.read_text("/tmp/typed") == f"{text}\n"
    many = "".join(chr(0x4E00 + n) for n in range(150))  # more than there are keys
    m.computer.type("cat > /tmp/many\n")
    time.sleep(0.5)
    m.computer.type(f"{many}\n")
    m.computer.key("ctrl+d")
    until(lambda: m.exec(["test", "-s", "/tmp/many"]).ok)
    assert m.files.read_text("/tmp/many") == f"{many}\n"


def test_windows_have_the_focus_one_at_a_time(m: Machine) -> None:
    for title in ("watcher", "Terminal", "watcher"):
        w = window(m, title)
        assert w is not None and w.width > 50 and w.height > 50
        focus(m, w)
    assert refused(lambda: m.computer.focus(1)).code == "NOT_FOUND"


def test_the_clipboard(m: Machine) -> None:
    text = "kopiert: 漢字 🎉\nsecond line"
    m.computer.set_clipboard(text)
    assert m.computer.clipboard() == text
    assert m.exec("DISPLAY=:0 xclip -o -selection clipboard").stdout == text
    long = "x" * 500_000
    m.computer.set_clipboard(long)
    assert m.computer.clipboard() == long


def test_by_the_command_line(m: Machine, tmp_path: Path) -> None:
    def roost(*args: str) -> str:
        command = [sys.executable, "-m", "roost.cli", *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    file = tmp_path / "screen.png"
    roost("screenshot", m.id, "-o", str(file), "--scale", "0.25")
    assert Image.open(file).size == (320, 200)
    roost("computer", "move", m.id, "33", "44")
    assert roost("computer", "size", m.id).strip() == "1280x800, pointer at 33,44"
    assert "watcher" in roost("computer", "windows", m.id)
    roost("computer", "clipboard", m.id, "--set", "from here")
    assert roost("computer", "clipboard", m.id).strip() == "from here"


def test_what_cannot_be_is_told(m: Machine) -> None:
    for x, y in ((1280, 5), (5, 800), (-1, 5), (1e9, 5), (5, 5000)):
        failure = refused(lambda x=x, y=y: m.computer.click(x, y))  # type: ignore[misc]
        assert failure.code == "VALIDATION_FAILED", (x, y)
    assert "1280x800" in refused(lambda: m.computer.move(1280, 5)).message
    failure = refused(lambda: m.computer.key("ctrl+Retrun"))
    assert failure.code == "VALIDATION_FAILED" and "Retrun" in failure.message
    assert refused(lambda: m.computer.type("x" * 10_001)).code == "VALIDATION_FAILED"


def test_a_locked_screen_and_one_that_hangs_say_so(m: Machine) -> None:
    m.files.write("/tmp/lock.py", LOCK)
    lock = m.start("DISPLAY=:0 exec /usr/bin/python3 /tmp/lock.py")
    until(lambda: m.exec(["test", "-e", "/tmp/locked"]).ok)
    try:
        assert refused(lambda: m.computer.click(5, 5)).code == "DISPLAY_LOCKED"
        assert refused(lambda: m.computer.type("x")).code == "DISPLAY_LOCKED"
        assert picture(m.computer.screenshot()).size == (1280, 800)
    finally:
        lock.kill()

    def clicks() -> bool:
        try:
            m.computer.click(5, 5)
        except RoostError as failure:
            if failure.code != "DISPLAY_LOCKED":
                raise
            return False
        return True

    until(clicks)


@pytest.mark.long
def test_a_server_that_is_grabbed_says_so(m: Machine) -> None:
    m.files.write("/tmp/grab.py", GRAB)
    grab = m.start("DISPLAY=:0 exec /usr/bin/python3 /tmp/grab.py")
    until(lambda: m.exec(["test", "-e", "/tmp/grabbed"]).ok)
    assert refused(lambda: m.computer.click(5, 5)).code in ("DISPLAY_DOWN", "DISPLAY_LOCKED")
    grab.kill()
    until(lambda: m.computer.size() == (1280, 800))


def test_a_helper_that_was_killed_is_started_again_and_a_dead_server_is_told(m: Machine) -> None:
    child = m.fork()
    assert isinstance(child, Machine)
    try:
        until(lambda: window(child, ""), 120)
        child.exec("pkill -9 -f '[r]oost-display'")
        assert child.computer.size() == (1280, 800)
        child.exec("pkill -9 -f '[r]oost-desktop'; pkill -9 Xvfb")
        failure = refused(lambda: child.computer.screenshot())
        assert failure.code == "DISPLAY_DOWN" and "X server" in failure.message
    finally:
        child.destroy()
