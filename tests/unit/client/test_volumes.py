"""Volumes, ends in sleep, samples and lists from the SDK."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from roost import InvalidRequestError, Machine, Volume

from .stub import MACHINE_ID, Answer, Stub, machine

VOLUME = {
    "volume_id": "v" * 26, "name": "data", "size_gib": 5, "raw_written": False,
    "attachments": [{"machine_id": MACHINE_ID, "path": "/data", "read_only": True}],
    "created_at": "2026-11-21T01:00:00.000Z",
}  # fmt: skip


def test_a_volume(stub: Stub) -> None:
    stub.on("POST", "/v1/volumes", lambda _: Answer(VOLUME, 201))
    stub.on("GET", "/v1/volumes/data", lambda _: VOLUME)
    stub.on("GET", "/v1/volumes", lambda _: {"items": [VOLUME], "next_cursor": None})
    stub.on("DELETE", f"/v1/volumes/{'v' * 26}", lambda _: Answer(None, 204))
    made = Volume.create("data", size_gib=5)
    assert stub.seen[-1].json == {"name": "data", "size_gib": 5}
    Volume.create("data")
    assert stub.seen[-1].json == {"name": "data"}
    assert (made.id, made.name, made.size_gib, made.raw_written) == ("v" * 26, "data", 5, False)
    assert made.attachments == VOLUME["attachments"]
    assert made.created_at == datetime(2026, 11, 21, 1, tzinfo=UTC)
    assert Volume.get("data").to_json() == VOLUME
    (found,) = Volume.list()
    found.delete()
    assert stub.seen[-1].method == "DELETE"


def test_a_machine_takes_them(stub: Stub) -> None:
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    stub.on("PUT", "/v1/machines/by-key/k", lambda _: machine())
    stub.on("POST", f"/v1/machines/{MACHINE_ID}/fork", lambda _: {"items": [machine()]})
    made = Machine.create(
        volumes=["data:/data", "books:/b:ro", "c:/c:rw", {"name": "d", "path": "/d"}]
    )
    assert stub.seen[-1].json["volumes"] == [
        {"name": "data", "path": "/data", "read_only": False},
        {"name": "books", "path": "/b", "read_only": True},
        {"name": "c", "path": "/c", "read_only": False},
        {"name": "d", "path": "/d"},
    ]
    Machine.ensure("k", volumes=[], expiry="sleep", autowake=False, run_as="user")
    assert stub.seen[-1].json == {
        "template": "base",
        "volumes": [],
        "expiry": "sleep",
        "autowake": False,
        "run_as": "user",
    }
    made.fork(volumes=["data:/data:ro"], autowake=True)
    assert stub.seen[-1].json == {
        "volumes": [{"name": "data", "path": "/data", "read_only": True}],
        "autowake": True,
    }
    before = len(stub.seen)
    for bad in ("data", ":/data", "data:", "data:/x:rx", ""):
        with pytest.raises(InvalidRequestError):
            Machine.create(volumes=[bad])
    assert len(stub.seen) == before, "nothing was asked for"
    # Of a daemon that knows of none.
    assert (made.volumes, made.expiry, made.autowake) == ([], "destroy", True)
    assert made.run_as is None


def test_changes_samples_and_lists(stub: Stub) -> None:
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: machine())
    stub.on("PATCH", f"/v1/machines/{MACHINE_ID}", lambda _: machine())
    stub.on("GET", f"/v1/machines/{MACHINE_ID}/metrics", lambda _: {"items": [{"cpu_count": 1}]})
    stub.on("GET", "/v1/machines", lambda _: {"items": [], "next_cursor": None})
    m = Machine.get(MACHINE_ID)
    m.update(expiry="destroy", autowake=False, run_as="")
    assert stub.seen[-1].json == {"expiry": "destroy", "autowake": False, "run_as": ""}
    assert m.metrics(datetime(2026, 11, 21, tzinfo=UTC)) == [{"cpu_count": 1}]
    assert stub.seen[-1].query["start"] == "2026-11-21T00:00:00+00:00"
    Machine.list(
        phase=["running", "sleeping"], order="oldest", since=datetime(2026, 1, 1, tzinfo=UTC)
    )
    query = stub.seen[-1].query
    assert (query["order"], query["since"]) == ("oldest", "2026-01-01T00:00:00+00:00")
    Machine.list(phase="running")
    assert stub.seen[-1].query["phase"] == "running"
