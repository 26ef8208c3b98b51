"""21-28: what the API reads and writes for somebody outside is the machine's, whatever its programs put in the way."""

from __future__ import annotations

import base64
import io
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from roost import Machine, RoostError
from tests.system.conftest import Daemon

from .record import case, untested
from .rung import Rung, until

HANGS_S = 60.0


@pytest.fixture(scope="package")
def api(led: Daemon) -> Iterator[httpx.Client]:
    with led.http(timeout=HANGS_S) as http:
        yield http


@pytest.fixture
def canary(canaries: dict[Path, bytes]) -> tuple[Path, bytes]:
    """A file of the host's that everybody there may read and write, and what is in it."""
    return next((path, said) for path, said in canaries.items() if "open" in str(path))


class Files:
    """The machine's, as anybody calls them."""

    def __init__(self, http: httpx.Client, rung: Rung) -> None:
        self.http, self.rung = http, rung
        self.base = f"/v1/machines/{rung.machine.id}/files"

    def every(self, path: str | bytes) -> Iterator[tuple[str, httpx.Response]]:
        """All that reads; then what writes and deletes."""
        where = (
            {"path": path}
            if isinstance(path, str)
            else {"path_b64": base64.b64encode(path).decode()}
        )
        for name, method, more in (
            ("read", "GET", ""),
            ("stat", "GET", "/stat"),
            ("list", "GET", "/list"),
            ("tar", "GET", "/tar"),
            ("write", "PUT", ""),
            ("remove", "DELETE", ""),
        ):
            body = b"written" if name == "write" else None
            yield name, self.http.request(method, f"{self.base}{more}", params=where, content=body)


@pytest.fixture
def files(api: httpx.Client, rung: Rung) -> Files:
    return Files(api, rung)


def kept(answers: Iterator[tuple[str, httpx.Response]], canary: tuple[Path, bytes]) -> None:
    path, content = canary
    for name, answer in answers:
        assert answer.status_code < 500, (name, answer.request.url, answer.text)
        assert content not in answer.content, (name, answer.request.url)
        assert path.read_bytes() == content, (name, answer.request.url)


@case(21)
def test_no_path_leads_to_the_host(
    rung: Rung, files: Files, canary: tuple[Path, bytes], led: Daemon
) -> None:
    path, _ = canary
    home = rung.home
    up = "/.." * 12
    for each in (
        str(path),
        f"{home}{up}{path}",
        f"..{up}{path}",
        f"//{path}",
        f"/./{path}",
        f"{home}/%2e%2e{up.replace('..', '%2e%2e')}{path}",
        f"/proc/1/root{path}",
        f"/proc/self/root{path}",
        f"/proc/self/cwd{up}{path}",
        f"/proc/{led.pid}/root{path}",
        f"/dev/fd/0/../../..{path}",
        f"~{up}{path}",
    ):
        kept(files.every(each), canary)
    for odd in (
        b"",
        b"\0",
        f"{home}/a\0{path}".encode(),
        b"/" + b"a" * 300,
        b"/" + b"a/" * 5000,
        f"{home}/".encode() + b"\xed\xa0\x80",
        f"{home}/".encode() + b"\xc0\xae\xc0\xae/\xc0\xae\xc0\xae",
        b"..\\..\\..\\" + str(path).encode(),
    ):
        kept(files.every(odd), canary)


@case(22)
def test_no_link_leads_to_the_host(rung: Rung, files: Files, canary: tuple[Path, bytes]) -> None:
    """As the last part of a path, on the way, in a circle, to nowhere; to what the agent itself has open."""
    path, _ = canary
    home = f"{rung.home}/links"
    rung.machine.exec(
        f"rm -rf {home}; mkdir {home} && cd {home} && ln -s {path} last && ln -s {path.parent} way && ln -s / root"
        f" && ln -s ../../../../../../../../../..{path} up && ln -s loop loop && ln -s /proc/1/root proc"
        f" && ln -s /proc/1/cwd cwd && ln -s /nowhere/at/all dangling && mkdir in && ln -s {path} in/last",
        check=True,
    )
    for each in (
        "last",
        "way/canary",
        f"root{path}",
        "up",
        "loop",
        f"proc{path}",
        f"cwd{path}",
        "dangling",
        "in",
    ):
        kept(files.every(f"{home}/{each}"), canary)
    for source, destination in (("last", "moved"), ("in", "way/in"), ("way/canary", "stolen")):
        body = {"source": f"{home}/{source}", "destination": f"{home}/{destination}"}
        answer = files.http.post(f"{files.base}/move", json=body)
        told = answer.status_code < 500 or answer.json()["error_code"] == "UNSUPPORTED"
        assert told, answer.text  # nothing is moved from one file system to another
    assert canary[0].read_bytes() == canary[1]
    assert list(path.parent.iterdir()) == [path]


@case(22)
def test_no_link_that_is_swapped_meanwhile(
    rung: Rung, files: Files, canary: tuple[Path, bytes]
) -> None:
    """A directory that is a link to the host's every other moment, while it is read, written, listed and deleted."""
    path, content = canary
    place = f"{rung.home}/swap"
    swapper = (
        f"n=0; rm -rf {place}; mkdir {place}; cd {place}; mkdir real; echo mine >real/canary; ln -s {path.parent} link; "
        f"ln -s real x; rm -f {place}-enough; touch {place}-begun; end=$(($(date +%s) + 240)); "
        f"while [ ! -e {place}-enough ] && [ $(date +%s) -lt $end ]; do "
        "for i in 1 2 3 4 5 6 7 8 9; do ln -sfn real x; ln -sfn link x; rm x; mv real x; mv x real; "
        "test -e real/canary || { mkdir -p real; echo mine >real/canary; }; done; n=$((n + 1)); done; echo $n"
    )
    rung.machine.exec(f"rm -f {place}-begun")
    running = rung.machine.start(swapper)
    until(lambda: rung.machine.exec(f"test -e {place}-begun").ok)
    asked = 0

    def ask(n: int) -> None:
        kept(files.every(f"{place}/x/canary"), canary)
        kept(
            iter([("list", files.http.get(f"{files.base}/list", params={"path": f"{place}/x"}))]),
            canary,
        )

    with ThreadPoolExecutor(4) as pool:
        end = time.monotonic() + 6
        while time.monotonic() < end:
            list(pool.map(ask, range(8)))
            asked += 8
    rung.machine.exec(f"touch {place}-enough")
    assert asked and int(running.wait(timeout=60).stdout) > 0, (asked, running)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@case(22)
def test_no_link_is_followed_by_a_copy(rung: Rung, canary: tuple[Path, bytes]) -> None:
    """Neither one that stands there nor one that is swapped for a file while the machine is copied."""
    path, content = canary
    place = f"{rung.home}/copied"
    running = rung.machine.start(
        f"rm -rf {place}; mkdir -p {place}/d; cd {place}; ln -s {path} last; ln -s {path.parent} way; echo mine >d/canary; "
        "end=$(($(date +%s) + 20)); while [ $(date +%s) -lt $end ]; do "
        f"mv d e; ln -s {path.parent} d; rm d; mv e d; rm -f f; ln -s {path} f; rm f; echo mine >f; done"
    )
    until(lambda: rung.machine.exec(f"test -e {place}/d/canary").ok)
    try:
        for _ in range(1 if rung.name == "qemu" else 4):
            child = rung.machine.fork()
            assert isinstance(child, Machine)
            with child:
                # What a copy left as a link is its programs' to follow: files alone.
                found = child.exec(
                    "cd ~/copied; find . -type f -exec cat {} + | base64 -w0; echo; readlink way last"
                )
                assert content not in base64.b64decode(found.check().stdout.split("\n")[0])
                assert found.stdout.split()[-2:] == [str(path.parent), str(path)], (
                    "links are copied as links"
                )
    finally:
        running.kill()
    assert path.read_bytes() == content


@case(23)
def test_what_is_no_file_is_refused_at_once(rung: Rung, files: Files) -> None:
    home = f"{rung.home}/odd"
    rung.machine.exec(
        f"rm -rf {home}; mkdir {home}; cd {home}; mkfifo fifo; ln -s fifo to-fifo; mknod null c 1 3; mknod zero c 1 5; "
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('socket')\""
    )
    for each in ("fifo", "to-fifo", "socket", "/dev/zero", "/dev/tty", "/proc/kmsg", "zero"):
        path = each if each.startswith("/") else f"{home}/{each}"
        begun = time.monotonic()
        answer = files.http.get(files.base, params={"path": path})
        assert 400 <= answer.status_code < 500, (path, answer.status_code, answer.content[:200])
        assert time.monotonic() - begun < 10, path
    packed = files.http.get(f"{files.base}/tar", params={"path": home})
    assert packed.status_code < 500
    assert rung.machine.exec("echo on").stdout == "on\n"


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


@case(24)
@pytest.mark.parametrize(
    "trick", ["up", "absolute", "link", "hard link", "device", "deep", "setuid"]
)
def test_no_archive_leads_out_of_its_place(
    rung: Rung, files: Files, canary: tuple[Path, bytes], trick: str
) -> None:
    """Unpacked inside the machine: neither the host nor, beside the place, the machine itself is written to."""
    path, content = canary
    out = f"{rung.home}/beside"
    members = {
        "up": [member("../beside/slipped"), member(f"../../../../../../..{path}")],
        "absolute": [member(f"{out}/slipped"), member(str(path))],
        "link": [
            member("way", tarfile.SYMTYPE, out),
            member("way/slipped"),
            member("host", tarfile.SYMTYPE, str(path.parent)),
            member("host/canary"),
        ],
        "hard link": [
            member("soft", tarfile.SYMTYPE, str(path)),
            member("hard", tarfile.LNKTYPE, "soft"),
            member("hard"),
            member("theirs", tarfile.LNKTYPE, str(path)),
            member("theirs"),
        ],
        "device": [member("null", tarfile.CHRTYPE), member("pipe", tarfile.FIFOTYPE)],
        "deep": [member("a/" * 2000 + "x")],
        "setuid": [member("rootly", mode=0o6755), member("dir", tarfile.DIRTYPE, mode=0o2777)],
    }[trick]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for each in members:
            if each.isreg():
                each.size = 7
            tar.addfile(each, io.BytesIO(b"slipped") if each.isreg() else None)
    rung.machine.exec(f"rm -rf {out} {rung.home}/unpacked; mkdir {out} {rung.home}/unpacked")
    where = {"path": f"{rung.home}/unpacked"}
    answer = files.http.put(f"{files.base}/tar", params=where, content=packed.getvalue())
    assert answer.status_code < 500, answer.text
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    assert rung.machine.exec(f"ls -A {out}").stdout == ""
    if trick == "setuid":
        assert (
            rung.machine.exec("stat -c %a ~/unpacked/rootly ~/unpacked/dir").stdout == "755\n777\n"
        )


@case(24)
def test_an_archive_of_many_entries(rung: Rung, files: Files) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for n in range(1000):
            tar.addfile(member(f"many/{n}"))
    where = {"path": f"{rung.home}/many"}
    answer = files.http.put(f"{files.base}/tar", params=where, content=packed.getvalue())
    assert answer.status_code == 200 and answer.json()["entries"] >= 1000, answer.text
    rung.machine.exec("rm -rf ~/many")


@case(26)
def test_a_hostile_tree_stays_in_its_place(
    rung: Rung, tmp_path: Path, canary: tuple[Path, bytes]
) -> None:
    home = f"{rung.home}/hostile"
    rung.machine.exec(
        f"rm -rf {home}; mkdir {home}; cd {home}; echo x >good; ln -s {canary[0]} last; ln -s {canary[0].parent} way; "
        "ln -s .. up; mkfifo fifo; echo x >'-rf'; echo x >\"$(printf 'a\\nb')\"; echo x >\"$(printf '\\033[31m')\"; "
        "mkdir -p d/d/d; ln -s ../../../../outside d/d/d/out; chmod 4755 good"
    )
    place = tmp_path / "place"
    try:
        rung.machine.files.download(home, place)
    except RoostError as exc:
        assert exc.code != "INTERNAL", exc  # noqa: PT017
    assert (place / "good").read_bytes() == b"x\n", list(tmp_path.rglob("*"))
    assert {each.name for each in tmp_path.iterdir()} <= {"place"}
    for each in place.rglob("*"):
        assert each.resolve().is_relative_to(tmp_path), each
        assert not each.lstat().st_mode & 0o6000, each
    assert canary[0].read_bytes() == canary[1]


@case(27)
def test_a_file_that_grows_is_read_to_an_end(rung: Rung, files: Files) -> None:
    running = rung.machine.start(
        "echo begun >~/growing; timeout 200 sh -c 'while :; do head -c 65536 /dev/zero >>~/growing; sleep 0.01; done'"
    )
    try:
        size = "stat -c %s ~/growing || echo 0"
        until(lambda: int(rung.machine.exec(size).stdout) > 1 << 20)
        begun = time.monotonic()
        answer = files.http.get(files.base, params={"path": f"{rung.home}/growing"})
        assert answer.status_code == 200
        assert time.monotonic() - begun < 40, "it was followed for as long as it grew"
        assert 1 << 20 < len(answer.content) == int(answer.headers["content-length"])
        until(lambda: int(rung.machine.exec(size).stdout) > len(answer.content), 30)
    finally:
        running.kill()
        rung.machine.exec("rm -f ~/growing")


@case(28)
@untested("workspace", reason="names are the machine's on every rung: told on the others")
def test_names_and_output_come_as_data(rung: Rung, files: Files) -> None:
    home = f"{rung.home}/names"
    hostile = "\x1b]0;owned\x07<script>alert(1)</script>"
    rung.machine.exec(
        ["sh", "-c", f'mkdir -p {home}; touch "{home}/$1"', "-", hostile.replace("/", "_")]
    )
    listed = files.http.get(f"{files.base}/list", params={"path": home})
    assert listed.headers["content-type"].startswith("application/json")
    assert b"\x1b" not in listed.content
    read = files.http.get(files.base, params={"path": f"{home}/{hostile.replace('/', '_')}"})
    assert read.headers["content-type"] == "application/octet-stream", read.headers
    assert read.headers["x-content-type-options"] == "nosniff"
