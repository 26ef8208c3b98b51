"""Screens, browsers and kernels through the API against the same done inside the machine.

What is measured inside is measured by a program in the machine that asks the same server there over its loopback, so both sides do
the same work but for the way there and back.
"""

from __future__ import annotations

import base64
import json

from bench.report import Report, ms, paired
from roost import Machine, RoostError

DRIVERS = ("gvisor", "runc", "qemu")
# Asks ``sys.argv``: port, path, body or "", how often; prints milliseconds, as JSON.
INSIDE = """
import http.client, json, sys, time
port, path, body, n = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
def once():
    begun = time.perf_counter()
    c = http.client.HTTPConnection('127.0.0.1', port)
    c.request('POST' if body else 'GET', path, body or None)
    c.getresponse().read(); c.close()
    return (time.perf_counter() - begun) * 1e3
once()
print(json.dumps([once() for _ in range(n)]))
"""
# The browser's own picture over CDP, in the machine, as little as it takes: standard library only.
CDP_INSIDE = """
import base64, http.client, json, os, socket, struct, sys, time
n = int(sys.argv[1])
def ask(s, f, number, method, params):
    data = json.dumps({'id': number, 'method': method, 'params': params}).encode()
    mask = os.urandom(4)
    head = bytes([0x81, 0x80 | len(data)]) if len(data) < 126 else bytes([0x81, 0xfe]) + struct.pack('>H', len(data))
    s.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))
    while True:
        a, b = f.read(2)
        size = b & 127
        if size == 126: size, = struct.unpack('>H', f.read(2))
        elif size == 127: size, = struct.unpack('>Q', f.read(8))
        said = json.loads(f.read(size))
        if said.get('id') == number: return said
def once():
    begun = time.perf_counter()
    c = http.client.HTTPConnection('127.0.0.1', 9222); c.request('GET', '/json/list')
    page = next(p for p in json.load(c.getresponse()) if p['type'] == 'page'); c.close()
    s = socket.create_connection(('127.0.0.1', 9222)); f = s.makefile('rb')
    s.sendall(('GET /devtools/page/%s HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n'
        'Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: %s\\r\\n\\r\\n' % (page['id'], base64.b64encode(os.urandom(16)).decode())).encode())
    while f.readline().strip(): pass
    said = ask(s, f, 1, 'Page.captureScreenshot', {'format': 'png', 'optimizeForSpeed': True})
    base64.b64decode(said['result']['data']); s.close()
    return (time.perf_counter() - begun) * 1e3
once()
print(json.dumps([once() for _ in range(n)]))
"""
PAGE = (
    "data:text/html;base64,"
    + base64.b64encode(
        b"<body style='margin:0;background:linear-gradient(red,blue)'><h1>"
        + b"some words on a page " * 60
        + b"</h1>"
    ).decode()
)


def run(report: Report, n: int) -> None:
    for driver in DRIVERS:
        for name, bench in (
            ("desktop", _desktop),
            ("browser", _browser),
            ("code-interpreter", _code),
        ):
            try:
                m = Machine.create(name, driver=driver, vcpu=2, autosleep="never")
            except RoostError as failure:
                print(f"   ({name}, {driver}: {failure.code}: {failure.message[:100]})")
                continue
            with m:
                m.files.write("/run/inside.py", INSIDE)
                m.files.write("/run/cdp.py", CDP_INSIDE)
                bench(report, n, m, driver)


def _inside(m: Machine, port: int, path: str, body: object = None) -> float:
    text = "" if body is None else json.dumps(body)
    said = m.exec(["python3", "/run/inside.py", str(port), path, text, "5"]).check().stdout
    return sorted(json.loads(said))[2]


def _desktop(report: Report, n: int, m: Machine, driver: str) -> None:
    ours, raw = paired(
        n,
        lambda: ms(m.computer.screenshot),
        lambda: _inside(m, 7113, "/screenshot"),
        block=5,
    )
    report.add(f"screenshot 1280x800, {driver}", "ms", ours, raw, bound=1.3)
    command = "DISPLAY=:0 scrot -o -z /run/raw.png" if m.exec("command -v scrot").ok else ""
    if command:
        own = [ms(lambda: m.exec(command).check()) for _ in range(n)]
        report.add(f"  an exec of scrot instead, {driver}", "ms", own)
    ours, raw = paired(
        n,
        lambda: ms(lambda: m.computer.click(640, 400)),
        lambda: _inside(m, 7113, "/click", {"x": 640, "y": 400}),
        block=5,
    )
    report.add(f"click, {driver}", "ms", ours, raw)
    report.add(
        f"type 40 characters, {driver}",
        "ms",
        [ms(lambda: m.computer.type("The quick brown fox jumps over a lazy do")) for _ in range(n)],
    )


def _browser(report: Report, n: int, m: Machine, driver: str) -> None:
    report.add(f"goto, {driver}", "ms", [ms(lambda: m.browser.goto(PAGE)) for _ in range(n)])
    ours, raw = paired(
        n,
        lambda: ms(m.browser.screenshot),
        lambda: sorted(json.loads(m.exec(["python3", "/run/cdp.py", "5"]).check().stdout))[2],
        block=5,
    )
    report.add(f"browser screenshot 1280x800, {driver}", "ms", ours, raw, bound=1.3)
    report.add(f"text, {driver}", "ms", [ms(m.browser.text) for _ in range(n)])


def _code(report: Report, n: int, m: Machine, driver: str) -> None:
    ours, raw = paired(
        n,
        lambda: ms(lambda: m.run_code("1 + 1")),
        lambda: ms(lambda: m.exec(["/bin/true"])),
        block=5,
    )
    report.add(f"run_code 1 + 1, against exec true, {driver}", "ms", ours, raw)
    plot = "import matplotlib.pyplot as p; p.plot([1, 2]); p.show()"
    report.add(
        f"run_code, a picture, {driver}", "ms", [ms(lambda: m.run_code(plot)) for _ in range(n)]
    )
