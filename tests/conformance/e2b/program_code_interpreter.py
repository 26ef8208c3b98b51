"""Code-interpreter style, as a user of E2B writes it: commands with callbacks, a watched directory, files by signed
URL, pause and resume, lists by metadata. Nothing in it knows of Roost: E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY do.
"""

import time
import urllib.error
import urllib.request
import uuid

from e2b import Sandbox, SandboxQuery, SandboxState

SCRIPT = """
import csv, statistics, sys, time
rows = list(csv.DictReader(open("/home/user/data.csv")))
for each in rows:
    print("row", each["name"], flush=True)
    time.sleep(0.05)
print("no such column", file=sys.stderr)
with open("/home/user/out/mean.txt", "w") as file:
    file.write(str(statistics.mean(float(each["value"]) for each in rows)))
"""


def main() -> None:
    job = uuid.uuid4().hex
    sandbox = Sandbox.create(
        timeout=600, metadata={"job": job, "user": "ada"}, envs={"LANG": "C.UTF-8"}
    )

    # Upload by a signed URL, as a browser would.
    boundary = uuid.uuid4().hex
    part = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="data.csv"\r\n\r\n'
    )
    data = "name,value\na,1\nb,2\nc,6\n"
    request = urllib.request.Request(
        sandbox.upload_url("/home/user/data.csv", use_signature_expiration=60),
        data=f"{part}{data}\r\n--{boundary}--\r\n".encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        method="POST",
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200, answer.status

    # Watch where the results will be.
    sandbox.files.make_dir("/home/user/out")
    watch = sandbox.files.watch_dir("/home/user/out")

    # Run it, hearing what it says while it runs.
    sandbox.files.write("/home/user/script.py", SCRIPT)
    out: list[str] = []
    err: list[str] = []
    result = sandbox.commands.run("python3 script.py", on_stdout=out.append, on_stderr=err.append)
    assert result.exit_code == 0
    assert "".join(out) == "row a\nrow b\nrow c\n" == result.stdout, out
    assert "".join(err) == "no such column\n"

    deadline = time.monotonic() + 10
    events = []
    while not any(each.name == "mean.txt" for each in events):
        assert time.monotonic() < deadline, events
        events += watch.get_new_events()
        time.sleep(0.1)
    watch.stop()

    # Download by a signed URL; one that has expired is none.
    with urllib.request.urlopen(sandbox.download_url("/home/user/out/mean.txt")) as answer:
        assert answer.read() == b"3.0"
    short = sandbox.download_url("/home/user/out/mean.txt", use_signature_expiration=1)
    time.sleep(2.5)
    try:
        urllib.request.urlopen(short)
        raise AssertionError("an expired URL was served")
    except urllib.error.HTTPError as refused:
        assert refused.code == 401 and b"expired" in refused.read()  # noqa: PT017

    # A kernel of sorts: a process whose variable must be there after the pause.
    kernel = sandbox.commands.run("python3 -i -q 2>&1", background=True, stdin=True)
    sandbox.commands.send_stdin(kernel.pid, "x = 41\n")
    time.sleep(0.5)
    sandbox.pause()
    paused = Sandbox.list(
        query=SandboxQuery(metadata={"job": job}, state=[SandboxState.PAUSED])
    ).next_items()
    assert [each.sandbox_id for each in paused] == [sandbox.sandbox_id]

    resumed = Sandbox.connect(sandbox.sandbox_id, timeout=300)
    running = Sandbox.list(query=SandboxQuery(metadata={"job": job, "user": "ada"})).next_items()
    assert [each.state for each in running] == [SandboxState.RUNNING]
    said: list[str] = []
    again = resumed.commands.connect(kernel.pid)
    resumed.commands.send_stdin(kernel.pid, "print('x is', x + 1)\nexit()\n")
    again.wait(on_stdout=said.append)
    assert "x is 42" in "".join(said), said
    assert resumed.files.read("/home/user/out/mean.txt") == "3.0"
    assert resumed.kill()
    assert not Sandbox.list(query=SandboxQuery(metadata={"job": job})).next_items()
    print("done")


if __name__ == "__main__":
    main()
