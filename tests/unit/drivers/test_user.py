"""A machine of one user: what is taken away from a container's bundle, and the account that any image is given."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.drivers import account, confined, oci, seccomp
from roost.drivers.account import with_group, with_user
from roost.drivers.interface import Root, Size, StartSpec, Volume
from roost.drivers.user import UserDriver
from roost.errors import MachineError
from roost.host.cgroups import Limits
from roost.network.addresses import Plan
from roost.settings import Settings

START = StartSpec(
    machine_id="m1",
    hostname="box",
    size=Size(0.5, 512, 10),
    root=Root(image=Path("/pool/m1.ext4")),
    slot=Plan("10.201.0.0/16", Path("/run/roost")).slot(7).public(),
    agent_token="s3cret",
    linux_id="0" * 32,
    env={"A": "b", "HOME": "/elsewhere"},
    volumes=(
        Volume(Path("/pool/a.ext4"), "/home/user/data", False),
        Volume(Path("/pool/b.ext4"), "/models", True),
    ),
)


def _bundle(start: StartSpec = START) -> dict[str, Any]:
    made = oci.spec(
        start,
        limits=Limits(0.5, 512 << 20, 100),
        cgroup="/roost/m1",
        environment={},
        seccomp=seccomp.profile(),
        network_namespace=None,
    )
    return confined.bundle(made, rootfs=Path("/r"), volumes=["/home/user/data"])


def test_it_runs_as_one_user_that_can_become_no_other() -> None:
    process = _bundle()["process"]
    assert process["user"] == {"uid": 1000, "gid": 1000}
    assert not any(process["capabilities"].values())
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}
    assert process["noNewPrivileges"] is True
    assert "HOME=/home/user" in process["env"]
    assert "HOME=/elsewhere" not in process["env"]


def test_only_its_home_and_what_ends_with_it_can_be_written() -> None:
    made = _bundle()
    assert made["root"]["readonly"] is True
    mounts = {each["destination"]: each for each in made["mounts"]}
    assert "/sys" not in mounts
    writable = {
        path
        for path, each in mounts.items()
        if "ro" not in each["options"] and each["type"] not in ("proc", "devpts", "mqueue")
    }
    assert writable == {"/dev", "/dev/shm", "/run", "/tmp", "/home/user", "/home/user/data"}
    assert mounts["/home/user"]["source"] == "/r/home/user"
    assert {"uid=1000", "gid=1000"} <= set(mounts["/run"]["options"])
    for path in (writable | {"/models"}) - {"/dev"}:
        assert {"nodev", "nosuid"} <= set(mounts[path]["options"]), path
    order = [each["destination"] for each in made["mounts"]]
    assert order.index("/home/user") < order.index("/home/user/data")


def test_its_agent_says_so_once_more() -> None:
    args = _bundle()["process"]["args"]
    told = [args[at + 1] for at, word in enumerate(args) if word == "--writable"]
    assert told == ["/home/user", "/home/user/data", "/tmp", "/run", "/dev", "/proc"]
    assert args[args.index("--workdir") + 1] == "/home/user"


def test_an_unrestricted_one_has_the_same_boundary_and_no_guardrail() -> None:
    made = oci.spec(
        START,
        limits=Limits(1, 1, 1),
        cgroup="/x",
        environment={},
        seccomp=None,
        network_namespace=None,
    )
    free = confined.bundle(made, rootfs=Path("/r"), guarded=False)
    assert "--writable" not in free["process"]["args"]
    assert free["root"]["readonly"] is True
    assert free["linux"] == confined.bundle(made, rootfs=Path("/r"))["linux"]


def test_it_is_refused_more_system_calls_than_a_container() -> None:
    rules = _bundle()["linux"]["seccomp"]
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in rules["syscalls"] for name in rule["names"]}
    for name in [
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "pidfd_getfd",
        "chroot",
        "setgroups",
        "sethostname",
        "mount",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "perf_event_open",
        "io_uring_setup",
        "userfaultfd",
        "open_by_handle_at",
    ]:
        assert name not in allowed, name
    assert set(seccomp.ALLOWED_WITHOUT_ROOT) < set(seccomp.ALLOWED)
    assert {"execve", "clone", "socket", "landlock_restrict_self", "seccomp"} <= allowed


def test_a_container_loses_nothing_by_it() -> None:
    made = oci.spec(
        START,
        limits=Limits(1, 1, 1),
        cgroup="/x",
        environment={},
        seccomp=seccomp.profile(),
        network_namespace=None,
    )
    before = repr(made)
    confined.bundle(made, rootfs=Path("/r"))
    assert repr(made) == before


def test_it_claims_no_more_than_an_isolated_workspace(tmp_path: Path) -> None:
    what = UserDriver(Settings(data_dir=tmp_path, run_dir=tmp_path)).capabilities()
    assert what.level == 1
    assert what.claim.startswith("isolated workspace")
    assert "sandbox" not in f"{what.claim} {what.boundary}".lower()
    assert not what.memory_snapshot
    assert what.egress_enforced


PASSWD = "root:x:0:0:root:/root:/bin/bash\nnode:x:1000:1000::/home/node:/bin/sh\n"
OURS = "user:x:1000:1000::/home/user:/bin/sh"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", [OURS]),
        ("root:x:0:0::/root:/bin/sh\n", ["root:x:0:0::/root:/bin/sh", OURS]),
        # Of two names for a number the first is its name.
        (PASSWD, [*PASSWD.splitlines()[:1], OURS, *PASSWD.splitlines()[1:]]),
        # What the image knows of it is kept, its home is the machine's.
        (
            "user:x:1000:1000:U:/elsewhere:/bin/zsh\nlast:x:5:5::/:/x",
            ["user:x:1000:1000:U:/home/user:/bin/zsh", "last:x:5:5::/:/x"],
        ),
        ("user:x:7:7::/home/user:/bin/bash\n", [OURS]),
        ("user:broken\n\n", [OURS, ""]),
    ],
)
def test_any_image_gets_the_account(before: str, after: list[str]) -> None:
    made = with_user(before, "/bin/sh")
    assert made.splitlines() == after
    assert with_user(made, "/bin/sh") == made


def test_and_a_group_of_its_number() -> None:
    assert with_group("root:x:0:\n") == "root:x:0:\nuser:x:1000:\n"
    assert with_group("node:x:1000:\n") == "node:x:1000:\n"
    assert with_group("user:x:7:\n") == "user:x:1000:\n"


def _image(at: Path) -> Path:
    for each in ("etc", "usr/local/bin", "bin"):
        (at / each).mkdir(parents=True)
    (at / "etc/passwd").write_text(PASSWD)
    (at / "etc/group").write_text("root:x:0:\n")
    (at / "bin/bash").touch()
    return at


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_the_image_is_given_home_account_and_helper(tmp_path: Path) -> None:
    root = _image(tmp_path / "root")
    account.prepare(root)
    home = (root / "home/user").stat()
    assert (home.st_uid, home.st_gid) == (1000, 1000)
    assert (root / "etc/passwd").read_text().splitlines()[1] == OURS.replace("/bin/sh", "/bin/bash")
    assert (root / "usr/local/bin/roost").stat().st_mode & 0o777 == 0o755
    (root / "usr/local/bin/roost").write_text("mine")
    account.prepare(root)
    assert (root / "usr/local/bin/roost").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_place_to_work_is_its_own_where_the_template_gave_it(tmp_path: Path) -> None:
    root = _image(tmp_path / "root")
    account.prepare(root)
    assert account.homes(root, 1000) == ["/home/user"]
    (root / "workspace").symlink_to("/root")
    assert account.homes(root, 1000) == ["/home/user"]
    (root / "workspace").unlink()
    (root / "workspace").mkdir()
    assert account.homes(root, 1000) == ["/home/user"], "it is root's"
    os.chown(root / "workspace", 1000, 1000)
    assert account.homes(root, 1000) == ["/home/user", "/workspace"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_links_of_a_hostile_image_lead_nowhere(tmp_path: Path) -> None:
    root, outside = _image(tmp_path / "root"), tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("host")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to(outside / "passwd")
    (root / "usr/local/bin").rmdir()
    (root / "usr/local/bin").symlink_to(outside)
    account.prepare(root)
    assert (outside / "passwd").read_text() == "host"
    assert sorted(p.name for p in outside.iterdir()) == ["passwd"]
    (root / "home/user").rmdir()
    (root / "home/user").symlink_to(outside)
    with pytest.raises(MachineError, match="cannot be made"):
        account.prepare(root)
    assert outside.stat().st_uid == 0


def test_without_volumes_there_is_only_the_home() -> None:
    made = oci.spec(
        replace(START, volumes=()),
        limits=Limits(1, 1, 1),
        cgroup="/x",
        environment={},
        seccomp=None,
        network_namespace=None,
    )
    mounts = confined.bundle(made, rootfs=Path("/r"))["mounts"]
    assert mounts[-1]["destination"] == "/home/user"
