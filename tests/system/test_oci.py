"""Images from elsewhere as templates, and templates and snapshots as files, on a real daemon."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost import Machine, Snapshot, Template
from roost.errors import RoostError
from tests.attack.record import case
from tests.oci_images import Image, archive, digest, directory, entry, link, tar
from tests.system.conftest import REGISTRY, Daemon, leftovers

pytestmark = pytest.mark.usefixtures("daemon")
USER, PASSWORD = "robin", "a-password-of-tests"
LOGIN = {REGISTRY: {"username": USER, "password": PASSWORD}}
PROGRAM = '#include <stdio.h>\nint main(void) { puts("out of nothing"); return 0; }\n'


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One that needs nothing of its root."""
    directory = tmp_path_factory.mktemp("program")
    (directory / "hello.c").write_text(PROGRAM)
    argv = ["gcc", "-static", "-O1", "-o", "hello", "hello.c"]
    subprocess.run(argv, cwd=directory, check=True)
    return (directory / "hello").read_bytes()


@pytest.fixture
def made() -> Iterator[list[str]]:
    """Names of templates, which are gone afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        Template.get(name).delete()


def image(program: bytes) -> Image:
    """Three layers, packed in three ways, of which the second takes away of the first."""
    first = [
        directory("bin"),
        entry("bin/hello", program, mode=0o4755),
        entry("gone", "x"),
        directory("d"),
        entry("d/old", "old"),
        link("data", "/d"),
    ]
    second = [
        entry(".wh.gone"),
        entry("d/new", "new", uid=1234, gid=4321, mode=0o640),
        entry("d/.wh..wh..opq"),
        entry("data/through", "a link"),
        entry("dev/sda", "no device"),
        entry(".roost/agent", "no agent"),
    ]
    return (
        Image().layer(tar(first)).layer(tar(second), "+zstd").layer(tar([entry("last", "3")]), "")
    )


def written(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def notes(heard: list[dict[str, Any]]) -> str:
    return "".join(each.get("text", "") for each in heard if each.get("stream") == "note")


@pytest.mark.parametrize("driver", ["gvisor", "runc"])
def test_a_layout_in_a_context(
    driver: str, program: bytes, tmp_path: Path, made: list[str]
) -> None:
    ours = image(program)
    config = {
        "Env": ["GREETING=hi"],
        "WorkingDir": "/d",
        "ExposedPorts": {"80/tcp": {}},
        "Entrypoint": ["/bin/hello"],
    }
    # Each time its own: a layer that was made before is found.
    own = tar([entry("driver", os.urandom(16))])
    ours.layer(own)
    written(tmp_path / "images/x", ours.layout(ours.manifest(config)))
    heard: list[dict[str, Any]] = []
    name = f"layout-{driver}"
    template = Template.build(
        name, dockerfile="FROM oci:images/x\n", context=tmp_path, driver=driver, on_log=heard.append
    )
    made.append(name)
    assert "unpacking layer 4 of 4" in notes(heard)
    assert template.config["env"] == {"GREETING": "hi"}
    assert template.config["workdir"] == "/d"
    assert template.config["ports"] == [80]
    assert "start" not in template.config  # what an image starts a template does not
    machine = Machine.create(template=name, driver=driver)
    try:
        assert machine.exec(["/bin/hello"]).stdout == "out of nothing\n"
        listed = {info.path for info in machine.files.list("/")}
        assert {"/last", "/data", "/driver"} <= listed
        assert "/gone" not in listed
        assert {info.path for info in machine.files.list("/d")} == {"/d/new", "/d/through"}
        new = machine.files.stat("/d/new")
        assert (new.mode & 0o7777, new.owner, new.group) == (0o640, "1234", "4321")
        assert machine.files.stat("/bin/hello").mode & 0o7777 == 0o4755
        with pytest.raises(RoostError, match="/bin/sh") as failure:
            machine.exec("echo there is no shell")
        assert failure.value.code == "COMMAND_NOT_FOUND"
    finally:
        machine.destroy()

    # The same layers and one more: what is here is not unpacked again.
    more = image(program).layer(own).layer(tar([entry("more", "5")]))
    written(tmp_path / "images/y", more.layout(more.manifest()))
    heard.clear()
    Template.build(
        name, dockerfile="FROM oci:images/y\n", context=tmp_path, driver=driver, on_log=heard.append
    )
    assert "4 of 5 layers are here" in notes(heard)
    assert "unpacking layer 4" not in notes(heard)


BOMB = gzip.compress(bytes(200 << 20), 9)


@case(24)
@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([entry("../../../../tmp/roost-oci-escaped", "x")], "leads upwards"),
        ([entry("d/../../tmp/roost-oci-escaped", "x")], "leads upwards"),
        ([link("out", "/"), link("stolen", "out/etc/shadow", hard=True)], "hard link to something"),
        ([link("a", "b/x"), link("b", "a/x"), entry("a/f", "x")], "too many links"),
        ([entry(".wh...")], "no such whiteout"),
    ],
)
def test_layers_that_are_refused(entries: Any, match: str, tmp_path: Path) -> None:
    hostile = Image().layer(tar(entries))
    refused(hostile, tmp_path, match)
    assert not Path("/tmp/roost-oci-escaped").exists()


def refused(hostile: Image, tmp_path: Path, match: str) -> None:
    written(tmp_path, hostile.layout(hostile.manifest()))
    with pytest.raises(RoostError, match=match) as failure:
        Template.build("refused", dockerfile="FROM oci:.\n", context=tmp_path)
    assert failure.value.code == "VALIDATION_FAILED"
    assert failure.value.details["line"] == 1
    assert not [t for t in Template.list() if t.name == "refused"]


@case(25)
def test_a_bomb_and_a_lie(tmp_path: Path) -> None:
    bomb = Image()
    bomb.layers.append(bomb.blob(BOMB, "application/vnd.oci.image.layer.v1.tar+gzip"))
    refused(bomb, tmp_path / "bomb", "cannot be unpacked")
    lie = Image().layer(tar([entry("a", "true")]))
    good = lie.layers[0]["digest"]
    lie.blobs[good] = bytes(reversed(lie.blobs[good]))
    refused(lie, tmp_path / "lie", "not what its digest says")


# --- registries -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's, on loopback, for one who knows the password."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry (scripts/test installs it)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import crypt
    root = tmp_path_factory.mktemp("registry")
    salt = crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)
    (root / "htpasswd").write_text(f"{USER}:{crypt.crypt(PASSWORD, salt)}\n")
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(root / "data")}},
        "http": {"addr": REGISTRY},
        "auth": {"htpasswd": {"realm": "tests", "path": str(root / "htpasswd")}},
    }
    (root / "config.yml").write_text(json.dumps(config))  # YAML holds JSON
    with (root / "log").open("wb") as out:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(root / "config.yml")], stdout=out, stderr=out
        )
    try:
        for _ in range(200):
            try:
                httpx.get(f"http://{REGISTRY}/v2/", trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield REGISTRY
    finally:
        process.terminate()
        process.wait(20)


def push(registry: str, ours: Image, name: str, tmp_path: Path) -> None:
    written(tmp_path, ours.layout(ours.manifest({"Env": ["FROM=registry"]})))
    argv = [
        *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
        *("--dest-creds", f"{USER}:{PASSWORD}", f"oci:{tmp_path}", f"docker://{registry}/{name}"),
    ]
    subprocess.run(argv, check=True, timeout=120)


def test_a_registry(
    registry: str, program: bytes, tmp_path: Path, made: list[str], daemon: Daemon
) -> None:
    ours = image(program).layer(tar([entry("big", os.urandom(3 << 20))]))
    push(registry, ours, "team/hello:v1", tmp_path)
    from_it = f"FROM docker://{registry}/team/hello:v1\n"
    heard: list[dict[str, Any]] = []
    template = Template.build("fetched", dockerfile=from_it, credentials=LOGIN, on_log=heard.append)
    made.append("fetched")
    assert template.config["env"] == {"FROM": "registry"}
    with pytest.raises(RoostError, match="give credentials") as failure:
        Template.build("no", dockerfile=from_it)
    assert failure.value.code == "VALIDATION_FAILED"
    wrong = {registry: {"username": USER, "password": "not-the-password"}}
    with pytest.raises(RoostError, match="does not give team/hello to these"):
        Template.build("no", dockerfile=from_it, credentials=wrong)
    with pytest.raises(RoostError, match=r"There is no docker://.*team/other"):
        Template.build(
            "no", dockerfile=from_it.replace("team/hello", "team/other"), credentials=LOGIN
        )
    # What is said, kept or stored never has the password; the cell's directory is gone.
    kept = [path for path in (daemon.data_dir).rglob("*") if path.is_file()]
    small = [
        path for path in kept if path.stat().st_size < (64 << 20) and "images" not in path.parts
    ]
    assert small
    for path in small:
        assert PASSWORD.encode() not in path.read_bytes(), path
    assert PASSWORD not in json.dumps(heard)
    assert not list((daemon.data_dir / "pool/tmp").iterdir())


@pytest.mark.parametrize(
    "place", ["127.0.0.1:1/x", "localhost:7676/x", "169.254.169.254/latest", "10.0.0.1:5000/x"]
)
def test_private_addresses_are_the_operators(place: str) -> None:
    with pytest.raises(RoostError, match="ROOST_REGISTRIES_PRIVATE") as failure:
        Template.build("no", dockerfile=f"FROM docker://{place}\n")
    assert failure.value.code == "FORBIDDEN"


# --- files ----------------------------------------------------------------------------------------


def test_a_template_goes_out_and_comes_in(tmp_path: Path, made: list[str]) -> None:
    """base itself: an image that other tools read, and a template again, on a container, with nobody trusted."""
    one = tmp_path / "base.tar"
    count = Template.get("base").export(one)
    assert count == one.stat().st_size
    argv = ["skopeo", "--insecure-policy", "inspect", f"oci-archive:{one}"]
    read = json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout)
    assert read["Os"] == "linux"
    assert len(read["Layers"]) == 1
    template = Template.load(one, "base-again:v1")
    made.append("base-again:v1")
    assert template.tags == ["base-again:v1"]
    before = Template.get("base").config
    assert template.config["env"] == dict(before.get("env") or {})
    machine = Machine.create(template="base-again:v1", driver="gvisor")
    try:
        told = machine.exec(
            "grep -c . /etc/passwd; cat /etc/hostname; test -u /bin/su && echo setuid"
        )
        users, hostname, setuid = told.stdout.split()
        assert int(users) > 10
        assert setuid == "setuid"
        assert hostname != "base"
    finally:
        machine.destroy()


def test_a_snapshot_goes_out_and_comes_in(tmp_path: Path, daemon: Daemon) -> None:
    machine = Machine.create(driver="runc", env={"KEPT": "yes"})
    try:
        machine.exec("echo kept > /root/kept; head -c 5000000 /dev/urandom > /root/random")
        total = machine.exec("sha256sum < /root/random").stdout
        snapshot = machine.snapshot("goes-out")
    finally:
        machine.destroy()
    path = tmp_path / "snapshot"
    heard: list[int] = []
    try:
        assert snapshot.export(path, progress=heard.append) == sum(heard)
    finally:
        snapshot.delete()
    again = Snapshot.load(path, name="came-in", trusted=True)
    try:
        assert not again.memory
        machine = Machine.create(snapshot="came-in")
        try:
            assert machine.exec("cat /root/kept; echo $KEPT").stdout == "kept\nyes\n"
            assert machine.exec("sha256sum < /root/random").stdout == total
        finally:
            machine.destroy()
        with pytest.raises(RoostError) as failure:
            Snapshot.load(path, name="came-in", trusted=True)
        assert failure.value.code == "ALREADY_EXISTS"
    finally:
        again.delete()
    # Whom nobody vouches for: blocks that the host does not mount.
    try:
        stranger = Snapshot.load(path)
        assert stranger.to_json()["driver"] == "qemu"
        stranger.delete()
    except RoostError as refused:
        assert refused.code == "UNSUPPORTED"  # noqa: PT017
        assert "--trusted" in refused.message  # noqa: PT017
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(RoostError, match="cannot be imported"):
        Snapshot.load(path, trusted=True)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RoostError, match="cannot be imported"):
        Snapshot.load(path, trusted=True)
    assert not list((daemon.data_dir / "pool/tmp").iterdir())
    assert not [s for s in Snapshot.list() if s.name == "came-in"]


def test_a_daemon_that_is_killed_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """In the midst of unpacking; and what was kept by then is there for the next build."""
    big = Image().layer(tar([entry("first", digest(b"killed"))]))
    big.layer(tar([entry(f"many/{n}", os.urandom(2000)) for n in range(20_000)]))
    whole = tmp_path / "whole.tar"
    whole.write_bytes(archive(big.layout(big.manifest())))
    heard: list[str] = []

    def kill(event: dict[str, Any]) -> None:
        heard.append(str(event.get("text", "")))
        if "unpacking layer 2" in heard[-1]:
            time.sleep(0.3)
            daemon.stop(signal.SIGKILL)

    with pytest.raises(RoostError):
        Template.load(whole, "killed", on_log=kill)
    daemon.start()
    deadline = time.monotonic() + 60
    while (left := leftovers(daemon)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left
    assert not list((daemon.data_dir / "pool/tmp").iterdir())
    heard.clear()
    Template.load(whole, "killed", on_log=lambda event: heard.append(str(event.get("text", ""))))
    assert any("1 of 2 layers are here" in each for each in heard)
    Template.get("killed").delete()
