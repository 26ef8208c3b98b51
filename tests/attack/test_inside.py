"""29-32: a machine's root floods, stalls and lies on the way to its daemon."""

from __future__ import annotations

import json
import time

from .record import case, untested
from .rung import Rung

pytestmark = untested("workspace", reason="nothing is asked from inside of it")

HOSTILE = """
import json, os, socket, sys, threading, time
PATH = "/run/roost/socket"
counts = {}
begun = time.monotonic()
flooded = threading.Event()

def ask(raw, wait=20):
    s = socket.socket(socket.AF_UNIX); s.settimeout(wait)
    try:
        s.connect(PATH); s.sendall(raw); said = b""
        while piece := s.recv(65536): said += piece
        return said
    except OSError:
        return b""
    finally:
        s.close()

def get(path, *fields, body=b""):
    head = [f"GET {path} HTTP/1.1", "host: roost", f"content-length: {len(body)}", *fields, "", ""]
    return "\\r\\n".join(head).encode() + body

def flood():
    while not flooded.is_set():
        said = ask(get("/v1/status"))
        status = said.split()[1].decode() if said else "none"
        counts[status] = counts.get(status, 0) + 1
        lasted = time.monotonic() - begun
        if lasted > 30 or lasted > 5 and "429" in counts: flooded.set()

def stall():
    held = []
    for _ in range(40):
        s = socket.socket(socket.AF_UNIX); s.settimeout(1)
        try:
            s.connect(PATH); s.sendall(b"GET /v1/sta"); held.append(s)
        except OSError:
            s.close()
    flooded.wait()
    for s in held: s.close()

threads = [threading.Thread(target=flood) for _ in range(12)] + [threading.Thread(target=stall)]
for t in threads: t.start()
for t in threads: t.join()
lasted = time.monotonic() - begun
time.sleep(4)
noise = [b"\\0" * 4096, b"GET " + b"/" * 20000, os.urandom(9000),
         b"POST /v1/ports HTTP/1.1\\r\\ncontent-length: 16000\\r\\n\\r\\n" + b"[" * 16000,
         b"POST /v1/ports HTTP/1.1\\r\\ncontent-length: 999999999\\r\\n\\r\\n",
         b"POST /v1/ports HTTP/1.1\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n"]
said = [ask(each, 12)[:16].decode(errors="replace") for each in noise]
other = sys.argv[1]
claims = [get("/v1/status", f"x-machine-id: {other}"), get(f"/v1/machines/{other}"),
          get(f"/v1/status?machine_id={other}"), get("/v1/status", f"authorization: Bearer roost_{'0' * 64}")]
claimed = []
for each in claims:
    time.sleep(0.3)
    claimed.append(ask(each).partition(b"\\r\\n\\r\\n")[2].decode(errors="replace"))
print(json.dumps({"lasted": lasted, "counts": counts, "noise": said, "claimed": claimed}))
"""


@case(30, 32)
def test_a_flood_is_its_own_loss_and_nobody_is_another(rung: Rung) -> None:
    machine, neighbour = rung.machine, rung.neighbour
    machine.files.write(f"{rung.home}/hostile.py", HOSTILE)
    started = machine.start(["python3", f"{rung.home}/hostile.py", neighbour.id])
    for _ in range(5):
        said = neighbour.exec("roost --json status", timeout=30)
        assert json.loads(said.stdout)["machine_id"] == neighbour.id
        time.sleep(0.5)
    done = started.wait(timeout=200)
    assert done.ok, done
    told = json.loads(done.stdout)
    answered = told["counts"].get("200", 0)
    assert told["counts"].get("429", 0) > 0, told
    assert answered <= 30 + 10 * (told["lasted"] + 1), told
    assert all(not each or each.startswith("HTTP/1.1 4") for each in told["noise"]), told["noise"]
    for claim in told["claimed"]:
        assert neighbour.id not in claim or "error_code" in claim, claim
    assert json.loads(told["claimed"][0])["machine_id"] == machine.id
    assert (
        json.loads(machine.exec("roost --json status", timeout=30).stdout)["machine_id"]
        == machine.id
    )


@case(31)
def test_root_that_ends_its_socket_harms_itself_alone(rung: Rung) -> None:
    machine = rung.machine
    machine.exec("mv /run/roost/socket /run/roost/away; ln -s /run/roost/away /run/roost/socket")
    assert machine.exec("roost status", timeout=30).ok  # a link of its own making leads to its own
    machine.exec("rm /run/roost/socket; mkdir /run/roost/socket")
    refused = machine.exec("roost status", timeout=30)
    assert refused.exit_code == 3 and "/run/roost/socket" in refused.stderr
    machine.exec("rmdir /run/roost/socket; mv /run/roost/away /run/roost/socket")
    assert machine.exec("roost status", timeout=30).ok
    assert rung.neighbour.exec("roost status", timeout=30).ok
