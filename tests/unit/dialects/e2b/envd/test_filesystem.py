from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from roost.dialects.e2b.envd import filesystem, watchers
from roost.dialects.e2b.envd.entries import permissions, timestamp
from roost.dialects.e2b.envd.place import Place
from roost.services.files import FileInfo
from tests.unit.api.kit import Served
from tests.unit.dialects.e2b.envd.kit import Sandbox

F = "/filesystem.Filesystem/"


def info(**kw: Any) -> FileInfo:
    plain: dict[str, Any] = {
        "path": b"/a", "name": b"a", "kind": "file", "size": 1, "mode": 0o644, "uid": 0, "gid": 0,
        "owner": "root", "group": "root", "mtime_ns": 0, "link_target": None, "target_kind": None,
    }  # fmt: skip
    return FileInfo(**{**plain, **kw})


async def test_stat(box: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "ü.txt"
    file.write_text("12345")
    file.chmod(0o640)
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    said = (await box.ok(F + "Stat", {"path": str(file)}))["entry"]
    assert said.pop("owner") and said.pop("group")
    assert said == {
        "name": "ü.txt",
        "type": "FILE_TYPE_FILE",
        "path": str(file),
        "size": "5",
        "mode": 0o640,
        "permissions": "-rw-r-----",
        "modifiedTime": "2023-11-14T22:13:20.123456789Z",
    }
    missing = await box.call(F + "Stat", {"path": str(tmp_path / "none")})
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The daemon's own files are beside it."""
    made = tmp_path / "place"
    made.mkdir()
    return made


async def test_links_are_told_with_what_they_lead_to(box: Sandbox, place: Path) -> None:
    tmp_path = place
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_text("x")
    (tmp_path / "d" / "file").chmod(0o751)
    (tmp_path / "one").symlink_to("d/two")
    (tmp_path / "d" / "two").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("/no/such")
    (tmp_path / "loop").symlink_to("loop")
    one = (await box.ok(F + "Stat", {"path": str(tmp_path / "one")}))["entry"]
    assert (one["type"], one["isSymlink"], one["mode"]) == ("FILE_TYPE_FILE", True, 0o751)
    assert one["symlinkTarget"] == str(tmp_path / "d" / "file")
    assert one["permissions"] == "Lrwxrwxrwx" and one["name"] == "one"
    for name in ("nowhere", "loop"):
        found = (await box.ok(F + "Stat", {"path": str(tmp_path / name)}))["entry"]
        assert (found["type"], found["isSymlink"]) == ("FILE_TYPE_SYMLINK", True)
    listed = (await box.ok(F + "ListDir", {"path": str(tmp_path), "depth": 1}))["entries"]
    assert [(e["name"], e["type"]) for e in listed] == [
        ("d", "FILE_TYPE_DIRECTORY"),
        ("loop", "FILE_TYPE_SYMLINK"),
        ("nowhere", "FILE_TYPE_SYMLINK"),
        ("one", "FILE_TYPE_FILE"),
    ]


async def test_list_goes_as_deep_as_asked(
    box: Sandbox, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = place
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "z").touch()
    (tmp_path / "x").touch()
    monkeypatch.setattr(filesystem, "PAGE", 1)

    async def names(depth: int) -> list[str]:
        asked = {"path": str(tmp_path), "depth": depth}
        found = (await box.ok(F + "ListDir", asked))["entries"]
        return [os.path.relpath(each["path"], tmp_path) for each in found]

    assert await names(0) == await names(1) == ["a", "x"]
    assert await names(2) == ["a", "a/b", "a/z", "x"]
    assert await names(9) == ["a", "a/b", "a/b/c", "a/z", "x"]
    monkeypatch.setattr(filesystem, "ENTRIES", 3)
    over = await box.call(F + "ListDir", {"path": str(tmp_path), "depth": 9})
    assert over.json()["code"] == "out_of_range"
    assert (await box.call(F + "ListDir", {"path": str(tmp_path / "x")})).json()["code"] == (
        "invalid_argument"
    )
    assert (await box.call(F + "ListDir", {"path": "/no/such"})).json()["code"] == "not_found"


async def test_make_move_remove(box: Sandbox, tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    said = (await box.ok(F + "MakeDir", {"path": str(made)}))["entry"]
    assert said["type"] == "FILE_TYPE_DIRECTORY" and said["permissions"] == "drwxr-xr-x"
    again = await box.call(F + "MakeDir", {"path": str(made)})
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")
    (made / "f").write_text("1")
    assert (await box.call(F + "MakeDir", {"path": str(made / "f")})).json()["code"] == (
        "invalid_argument"
    )
    to = tmp_path / "new" / "place" / "g"
    moved = (await box.ok(F + "Move", {"source": str(made / "f"), "destination": str(to)}))["entry"]
    assert moved["path"] == str(to) and to.read_text() == "1" and not (made / "f").exists()
    (tmp_path / "other").write_text("2")
    await box.ok(F + "Move", {"source": str(tmp_path / "other"), "destination": str(to)})
    assert to.read_text() == "2"
    missing = await box.call(F + "Move", {"source": "/no/such", "destination": str(to)})
    assert missing.json()["code"] == "not_found"
    await box.ok(F + "Remove", {"path": str(tmp_path / "a")})
    assert not (tmp_path / "a").exists()
    await box.ok(F + "Remove", {"path": str(tmp_path / "a")})
    assert (await box.call(F + "Remove", {"path": "/"})).status_code == 400


async def test_paths_are_a_users(box: Sandbox) -> None:
    for path in ("", "~", ".", "~/", "x/.."):
        assert (await box.ok(F + "Stat", {"path": path}))["entry"]["path"] == "/root", path
    assert (await box.ok(F + "Stat", {"path": "//tmp//"}))["entry"]["path"] == "/tmp"
    foreign = await box.call(F + "Stat", {"path": "~daemon/x"})
    assert foreign.json()["code"] == "invalid_argument"
    for bad in ("/a\0b", "/" + "a" * 5000):
        assert (await box.call(F + "Stat", {"path": bad})).status_code == 400


def seen(events: Any) -> list[tuple[str, str]]:
    return [(each["name"], each["type"].removeprefix("EVENT_TYPE_")) for each in events["events"]]


async def test_a_watcher_keeps_what_happens_until_it_is_asked(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    asked = {"path": str(tmp_path), "includeEntry": True}
    one = {"watcherId": (await box.ok(F + "CreateWatcher", asked))["watcherId"]}
    assert await box.ok(F + "GetWatcherEvents", one) == {"events": []}
    await box.http.post("/files", params={"path": f"{tmp_path}/old"}, content=b"1")
    await box.http.post("/files", params={"path": f"{tmp_path}/new"}, content=b"1")
    (tmp_path / "new").rename(tmp_path / "newer")
    (tmp_path / "newer").unlink()
    found: list[tuple[str, str]] = []
    entries: list[Any] = []
    async with asyncio.timeout(10):
        while ("newer", "REMOVE") not in found:
            said = await box.ok(F + "GetWatcherEvents", one)
            found += seen(said)
            entries += said["events"]
            await asyncio.sleep(0.02)
    assert found == [
        ("old", "CHMOD"),
        ("old", "WRITE"),
        ("new", "CREATE"),
        ("new", "CHMOD"),
        ("new", "WRITE"),
        ("new", "RENAME"),
        ("newer", "CREATE"),
        ("newer", "REMOVE"),
    ]
    assert entries[0]["entry"]["name"] == "old"
    await box.ok(F + "RemoveWatcher", one)
    gone = await box.call(F + "GetWatcherEvents", one)
    assert gone.json()["code"] == "not_found"


async def test_a_watcher_is_its_sandboxs_own(box: Sandbox, served: Served, tmp_path: Path) -> None:
    one = {"watcherId": (await box.ok(F + "CreateWatcher", {"path": str(tmp_path)}))["watcherId"]}
    other = Sandbox(served.url, served.machine())
    async with other.http:
        assert (await other.call(F + "GetWatcherEvents", one)).json()["code"] == "not_found"
        assert (await other.call(F + "RemoveWatcher", one)).json()["code"] == "not_found"
    for path, code in (("/no/such", "not_found"), ("/etc/passwd", "invalid_argument")):
        assert (await box.call(F + "CreateWatcher", {"path": path})).json()["code"] == code


async def test_watchers_are_bounded(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "EACH", 2)
    made = [(await box.ok(F + "CreateWatcher", {"path": str(tmp_path)})) for _ in range(2)]
    over = await box.call(F + "CreateWatcher", {"path": str(tmp_path)})
    assert over.json()["code"] == "resource_exhausted"
    await box.ok(F + "RemoveWatcher", made[0])
    await box.ok(F + "CreateWatcher", {"path": str(tmp_path)})
    monkeypatch.setattr(watchers, "ABANDONED_S", -1.0)
    await box.ok(F + "CreateWatcher", {"path": str(tmp_path)})


async def test_events_that_are_too_many_are_said_to_be_lost(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers, "EVENTS", 3)
    one = await box.ok(F + "CreateWatcher", {"path": str(tmp_path)})
    for each in range(40):
        (tmp_path / str(each)).touch()
    codes: list[str] = []

    async def lost() -> bool:
        answer = await box.call(F + "GetWatcherEvents", one)
        codes.append(answer.json().get("code", "ok"))
        return "data_loss" in codes

    async with asyncio.timeout(10):
        while not await lost():
            await asyncio.sleep(0.05)
    assert (await box.call(F + "GetWatcherEvents", one)).status_code == 200


async def test_a_watch_goes_on_after_a_sleep_and_ends_with_its_sandbox(
    box: Sandbox, served: Served, tmp_path: Path
) -> None:
    one = await box.ok(F + "CreateWatcher", {"path": str(tmp_path)})
    await served.machines.sleep("tenant-a", box.id)
    await asyncio.sleep(0.1)
    assert served.machines.machines[box.id].phase == "sleeping"  # a watcher wakes nothing
    await served.machines.wake("tenant-a", box.id)
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(10):
        at = 0
        while not found:
            at += 1
            (tmp_path / f"f{at}").touch()
            await asyncio.sleep(0.05)
            found = seen(await box.ok(F + "GetWatcherEvents", one))
    await served.machines.delete("tenant-a", box.id)
    served.machines.agents.drop(box.id)

    async def over() -> bool:
        answer = await box.call(F + "GetWatcherEvents", one)
        return answer.status_code != 200

    async with asyncio.timeout(10):
        while not await over():
            await asyncio.sleep(0.05)


def test_what_a_watcher_keeps_is_bounded_by_bytes() -> None:
    watcher = watchers.Watcher("w", Place("t", "m"), b"/", False)
    for _ in range(200):
        watcher.saw(watchers.Seen(b"n" * 4000, "EVENT_TYPE_WRITE"))
    assert watcher.lost and watcher.held <= watchers.BYTES
    assert watcher.held == sum(len(each.name) for each in watcher.events)


async def test_watch_dir_tells_as_it_happens(box: Sandbox, served: Served, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    stream = box.stream(F + "WatchDir", {"path": str(tmp_path), "recursive": True})
    assert (await anext(stream))[1] == {"start": {}}
    assert not served.machines.users[box.id]
    (tmp_path / "sub" / "f").touch()
    async with asyncio.timeout(10):
        said = (await anext(stream))[1]["filesystem"]
    assert said == {"name": "sub/f", "type": "EVENT_TYPE_CREATE"}
    await stream.aclose()
    wrong = await box.all(F + "WatchDir", {"path": "/etc/passwd"})
    assert wrong[0][1]["error"]["code"] == "invalid_argument"


def test_modes_as_go_writes_them() -> None:
    assert permissions(info()) == "-rw-r--r--"
    assert permissions(info(kind="directory", mode=0o1777)) == "dtrwxrwxrwx"
    assert permissions(info(mode=0o4755)) == "urwxr-xr-x"
    assert permissions(info(kind="other", mode=0)) == "?---------"


def test_times_that_no_calendar_has() -> None:
    assert timestamp(-5) == "1970-01-01T00:00:00.000000000Z"
    assert timestamp(2**70) == "9999-12-31T23:59:59.000000000Z"


async def test_nothing_watches_after_the_last(box: Sandbox, tmp_path: Path) -> None:
    one = await box.ok(F + "CreateWatcher", {"path": str(tmp_path)})
    await box.ok(F + "RemoveWatcher", one)
    assert not [each for each in asyncio.all_tasks() if "_keep" in repr(each.get_coro())]
