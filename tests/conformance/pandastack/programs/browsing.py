"""A browsing session: a Playwright script written into the sandbox, run there, its screenshot read back."""

import struct

from pandastack import Sandbox

PAGE = "<title>Panda</title><body style='margin:0;background:#c81e1e'><h1 id=said>bamboo</h1>"
SCRIPT = """
from playwright.sync_api import sync_playwright

with sync_playwright() as p:
    browser = p.chromium.launch()
    page = browser.new_page(viewport={"width": 640, "height": 480})
    page.goto("http://127.0.0.1:8000/")
    print(page.title(), page.inner_text("#said"))
    page.screenshot(path="/work/shot.png")
    browser.close()
"""

with Sandbox.create(template="browser", ttl_seconds=900) as sandbox:
    sandbox.filesystem.write("/work/index.html", PAGE)
    sandbox.filesystem.write("/work/browse.py", SCRIPT)
    sandbox.exec("cd /work && nohup python3 -m http.server 8000 >/dev/null 2>&1 &")
    sandbox.exec(
        "until curl -fsS -o /dev/null http://127.0.0.1:8000/; do sleep 0.1; done",
        timeout_seconds=30,
    )
    result = sandbox.exec("python3 /work/browse.py", timeout_seconds=100, check=True)
    assert result.stdout == "Panda bamboo\n", result
    shot = sandbox.filesystem.read("/work/shot.png")

assert shot[:8] == b"\x89PNG\r\n\x1a\n", shot[:20]
assert struct.unpack(">II", shot[16:24]) == (640, 480)
print("browsing: done")
