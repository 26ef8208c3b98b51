"""``roost volume``, and the options of a machine that has one."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from roost.cli.machines import complete_mount
from roost.cli.volume import complete_volume
from tests.unit.client.stub import MACHINE_ID, Answer, Stub, machine, wire

Capture = pytest.CaptureFixture[str]
VOLUME = {
    "volume_id": "v" * 26, "name": "data", "size_gib": 5, "raw_written": True,
    "attachments": [{"machine_id": MACHINE_ID, "path": "/data", "read_only": True}],
    "created_at": "2026-11-21T01:00:00.000Z",
}  # fmt: skip


@pytest.fixture
def volumes(stub: Stub) -> Stub:
    stub.on("POST", "/v1/volumes", lambda _: Answer(VOLUME, 201))
    stub.on("GET", "/v1/volumes", lambda _: {"items": [VOLUME], "next_cursor": None})
    stub.on("GET", "/v1/volumes/data", lambda _: VOLUME)
    stub.on("DELETE", f"/v1/volumes/{'v' * 26}", lambda _: Answer(None, 204))
    return stub


def test_made_listed_shown_deleted(
    volumes: Stub, roost: Callable[..., int], capsys: Capture
) -> None:
    assert roost("volume", "create", "data", "--size", "5") == 0
    assert capsys.readouterr().out == f"{'v' * 26}\n"
    assert volumes.seen[-1].json == {"name": "data", "size_gib": 5}
    for name in ("ls", "list"):
        assert roost("volume", name) == 0
        out = capsys.readouterr().out
        assert "microVMs" in out
        assert f"{MACHINE_ID} (ro)" in out
    assert roost("volume", "ls", "-q") == 0
    assert capsys.readouterr().out == "data\n"
    assert roost("volume", "show", "data") == 0
    assert f"{MACHINE_ID} at /data, read-only" in capsys.readouterr().out
    assert roost("volume", "show", "data", "--json") == 0
    assert json.loads(capsys.readouterr().out) == VOLUME
    assert roost("volume", "rm", "data") == 0
    assert capsys.readouterr().out == "data\n"
    assert roost("volume", "delete", "data", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"items": [VOLUME]}


def test_what_is_wrong_is_said(stub: Stub, roost: Callable[..., int], capsys: Capture) -> None:
    stub.on("GET", "/v1/volumes/data", lambda _: VOLUME)
    stub.on(
        "DELETE",
        f"/v1/volumes/{'v' * 26}",
        lambda _: Answer(wire("VOLUME_IN_USE", "a machine has it"), 409),
    )
    assert roost("volume", "rm", "data") == 1
    assert "a machine has it" in capsys.readouterr().err
    assert roost("create", "--volume", "data") == 1
    assert "NAME:/path" in capsys.readouterr().err
    assert roost("volume", "create", "data", "--size", "0") == 2


def test_a_machine_with_one(stub: Stub, roost: Callable[..., int], capsys: Capture) -> None:
    has = [{"volume_id": "v" * 26, "name": "data", "path": "/data", "read_only": True}]
    ends = {"expiry": "sleep", "autowake": False, "expires_at": "2027-01-01T00:00:00Z"}
    made = machine(volumes=has, run_as="user:staff", **ends)
    stub.on("POST", "/v1/machines", lambda _: Answer(made, 201))
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: made)
    asked = (
        "--volume",
        "data:/data:ro",
        "--expiry",
        "sleep",
        "--no-autowake",
        "--run-as",
        "user:staff",
    )
    assert roost("create", *asked) == 0
    body = stub.seen[-1].json
    assert body["volumes"] == [{"name": "data", "path": "/data", "read_only": True}]
    assert (body["expiry"], body["autowake"], body["run_as"]) == ("sleep", False, "user:staff")
    capsys.readouterr()
    assert roost("show", MACHINE_ID) == 0
    out = capsys.readouterr().out
    for told in ("data at /data, read-only", "by roost wake alone", "then it sleeps", "user:staff"):
        assert told in out


def test_what_it_used(stub: Stub, roost: Callable[..., int], capsys: Capture) -> None:
    sample = {
        "at": "2026-11-21T01:00:00.000Z", "cpu_count": 2, "cpu_used_pct": 12.34, "memory_used_bytes": 1 << 30,
        "memory_total_bytes": 2 << 30, "memory_cache_bytes": 0, "disk_used_bytes": None, "disk_total_bytes": None,
    }  # fmt: skip
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: machine())
    stub.on("GET", f"/v1/machines/{MACHINE_ID}/metrics", lambda _: {"items": [sample]})
    assert roost("metrics", MACHINE_ID) == 0
    assert "12.3 % of 2" in capsys.readouterr().out
    assert roost("metrics", MACHINE_ID, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"items": [sample]}


def test_completion(volumes: Stub) -> None:
    assert complete_volume("da") == ["data"]
    assert complete_mount("da") == ["data:/"]
    assert complete_mount("data:/d") == []
