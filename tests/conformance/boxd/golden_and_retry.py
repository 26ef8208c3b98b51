"""The user's program, as they would run it against the hosted service: only the address and the key differ."""

# A server with its state in memory: a turn is counted in the process, not on the disk.
SERVER = """
import http.server
turns = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global turns
        if self.path == "/turn":
            turns += 1
            said = str(turns)
        else:
            said = open("/srv/plan").read().strip() + ": turn " + str(turns) + open("/srv/note").read() + "\\n"
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
ASK = "python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/turn').read().decode())\""


def main(boxd):
    machines = boxd.machines

    def run(machine, command):
        said = machines.exec(machine.id, command)
        assert said.exit_code == 0, said
        return said.stdout

    # Prepared once.
    golden = machines.create(
        "golden", vcpu=1, memory="512M", disk="4G", labels={"program": "golden"}
    )
    machines.wait_until_ready(golden.id)
    machines.files.upload(golden.id, "/srv/server.py", SERVER)
    machines.files.upload(golden.id, "/srv/note", "")
    machines.files.upload(golden.id, "/srv/plan", "no plan")
    run(golden, "nohup python3 /srv/server.py > /srv/log 2>&1 &")
    run(
        golden,
        "for i in $(seq 300); do curl -fso /dev/null localhost:8000/ && exit 0; sleep .2; done; exit 1",
    )
    machines.proxies.set_port(golden.name, 8000)

    # A fork for each task; the server runs on in each, where it was.
    first = machines.fork(golden.id, "attempt-1")
    second = machines.fork(golden.id, "attempt-2")
    machines.files.upload(first.id, "/srv/plan", "plan A")
    machines.files.upload(second.id, "/srv/plan", "plan B")

    # Turns, with nothing running between them.
    turns = [int(run(first, ASK))]
    machines.pause(first.id)
    assert machines.get(first.id).status == "suspended"
    machines.resume(first.id)
    turns.append(int(run(first, ASK)))
    run(second, ASK)

    # An instant before the step that may destroy all.
    boxd.snapshots.create(first.id, "attempt-1")
    lost = machines.exec(first.id, "rm -rf / --no-preserve-root 2>/dev/null; ls /srv/server.py")

    # It did: go on from before it, another way.
    retry = machines.create(
        "attempt-1-retry", from_snapshot="attempt-1", labels={"program": "golden"}
    )
    machines.files.upload(retry.id, "/srv/note", ", retried")
    machines.proxies.set_port(retry.name, 8000)
    machines.delete(first.id)
    again = machines.create("attempt-1", from_snapshot="attempt-1", labels={"program": "golden"})
    machines.proxies.set_port(again.name, 8000)

    attempts = {}
    for each in (again, retry, second):
        (own,) = machines.proxies.list(each.name)
        attempts[each.name] = own.domain
    return {"turns": turns, "lost": lost.exit_code, "attempts": attempts}
