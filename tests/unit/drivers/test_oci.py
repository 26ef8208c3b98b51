"""What a runtime is told: nothing of the host's is in it."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

from roost.drivers import oci, seccomp
from roost.drivers.interface import Root, Size, StartSpec, Volume
from roost.host.cgroups import Limits
from roost.network.addresses import Plan

SLOT = Plan("10.201.0.0/16", Path("/run/roost")).slot(7).public()
START = StartSpec(
    machine_id="m1",
    hostname="box",
    size=Size(0.5, 512, 10),
    root=Root(image=Path("/pool/m1.ext4")),
    slot=SLOT,
    agent_token="s3cret",
    linux_id="0" * 32,
    env={"A": "b"},
)


def _spec(**changes: object) -> dict[str, object]:
    arguments: dict[str, object] = {
        "limits": Limits(0.5, 512 << 20, 100),
        "cgroup": "/roost/m1",
        "environment": {},
        "seccomp": None,
        "network_namespace": str(SLOT.netns),
    }
    return oci.spec(START, **{**arguments, **changes})  # type: ignore[arg-type]


def test_no_mount_comes_from_the_host() -> None:
    for mount in _spec()["mounts"]:  # type: ignore[attr-defined]
        assert mount["type"] in {"proc", "tmpfs", "devpts", "mqueue", "sysfs"}
        assert not mount["source"].startswith("/")


def test_capabilities_leave_out_what_reaches_the_host() -> None:
    given = set(oci.CAPABILITIES)
    for name in (
        "SYS_ADMIN",
        "SYS_MODULE",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "NET_ADMIN",
        "AUDIT_WRITE",
        "DAC_READ_SEARCH",
        "BPF",
    ):
        assert f"CAP_{name}" not in given
    process = _spec()["process"]
    assert "inheritable" not in process["capabilities"]  # type: ignore[index]
    assert "ambient" not in process["capabilities"]  # type: ignore[index]


def test_the_token_is_in_the_environment_and_nowhere_else() -> None:
    spec = _spec()
    process = spec.pop("process")
    assert "s3cret" not in str(spec)
    assert "ROOST_AGENT_TOKEN=s3cret" in process["env"]  # type: ignore[index]
    assert "s3cret" not in str(process["args"])  # type: ignore[index]


def test_the_callers_environment_cannot_replace_the_token() -> None:
    evil = StartSpec(
        **{f: getattr(START, f) for f in StartSpec.__slots__}
        | {"env": {"ROOST_AGENT_TOKEN": "x", "A": "b"}}
    )
    spec = oci.spec(
        evil,
        limits=Limits(1, 1, 1),
        cgroup="/x",
        environment={},
        seccomp=None,
        network_namespace=None,
    )
    assert "ROOST_AGENT_TOKEN=s3cret" in spec["process"]["env"]


def test_the_file_limit_is_never_above_the_daemons() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert oci.file_limit() <= (hard if hard != resource.RLIM_INFINITY else oci.file_limit())


def test_limits_reach_the_runtime() -> None:
    resources = _spec()["linux"]["resources"]  # type: ignore[index]
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512}
    assert resources["memory"] == {"limit": 512 << 20}
    assert resources["pids"] == {"limit": 100}


def test_the_system_call_list_denies_by_default() -> None:
    profile = seccomp.profile()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = set(seccomp.ALLOWED)
    assert len(allowed) == len(seccomp.ALLOWED)
    for name in (
        "mount",
        "umount2",
        "unshare",
        "setns",
        "pivot_root",
        "bpf",
        "perf_event_open",
        "io_uring_setup",
        "userfaultfd",
        "keyctl",
        "add_key",
        "init_module",
        "finit_module",
        "kexec_load",
        "reboot",
        "open_by_handle_at",
        "clock_settime",
        "swapon",
        "open_tree",
        "move_mount",
        "fsopen",
        "syslog",
        "clone",
        "clone3",
        "socket",
        "socketcall",
        "socketpair",
    ):
        assert name not in allowed, name


def test_new_namespaces_are_not_to_be_had_by_clone() -> None:
    rules = [r for r in seccomp.profile()["syscalls"] if "clone" in r["names"]]
    assert [r["args"][0]["op"] for r in rules] == ["SCMP_CMP_MASKED_EQ"]
    assert rules[0]["args"][0]["value"] & 0x10000000  # CLONE_NEWUSER


def test_netlink_is_for_routes_and_sockets_only() -> None:
    rules = [r for r in seccomp.profile()["syscalls"] if "socket" in r["names"]]
    found = {tuple(a["value"] for a in r["args"]): r["action"] for r in rules}
    allowed = {arguments for arguments, action in found.items() if action == "SCMP_ACT_ALLOW"}
    assert allowed == {(1,), (2,), (10,), (16, 0), (16, 4)}
    assert found[16, 9] == "SCMP_ACT_ERRNO"


def test_pairs_of_sockets_are_unix_only() -> None:
    """Of others the kernel loads the module before it finds that there are none."""
    for allowed in (seccomp.ALLOWED, seccomp.ALLOWED_WITHOUT_ROOT):
        rules = [r for r in seccomp.profile(allowed)["syscalls"] if "socketpair" in r["names"]]
        assert [(r["action"], r["args"]) for r in rules] == [
            ("SCMP_ACT_ALLOW", [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}])
        ]


def test_volumes_are_mounted_last_and_each_as_asked(tmp_path: Path) -> None:
    both = (Volume(Path("/pool/v1"), "/data", False), Volume(Path("/pool/v2"), "/a/b", True))
    made = oci.spec(
        replace(START, volumes=both),
        limits=Limits(0.5, 512 << 20, 100),
        cgroup="/roost/m1",
        environment={},
        seccomp=None,
        network_namespace=None,
        places=oci.Places(tmp_path / "rootfs", tmp_path / "volumes"),
    )
    assert made["root"]["path"] == str(tmp_path / "rootfs")
    assert made["mounts"][-2:] == [
        {
            "destination": "/data",
            "type": "bind",
            "source": str(tmp_path / "volumes/0"),
            "options": ["bind", "nodev", "rw"],
        },
        {
            "destination": "/a/b",
            "type": "bind",
            "source": str(tmp_path / "volumes/1"),
            "options": ["bind", "nodev", "ro"],
        },
    ]
