from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from roost import InvalidRequestError
from roost.cli._places import Local, Remote, Standard, parse
from tests.unit.client.stub import MACHINE_ID, Answer, Stub, wire
from tests.unit.client.test_files import info

Roost = Callable[..., int]
FILES = f"/v1/machines/{MACHINE_ID}/files"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("-", Standard()),
        ("a.txt", Local(Path("a.txt"))),
        ("./m:/x", Local(Path("./m:/x"))),
        ("/abs:/x", Local(Path("/abs:/x"))),
        ("dir/m:/x", Local(Path("dir/m:/x"))),
        (":/x", Local(Path(":/x"))),
        ("m:/x", Remote("m", PurePosixPath("/x"), False)),
        ("m:/", Remote("m", PurePosixPath("/"), True)),
        ("m:/dir/", Remote("m", PurePosixPath("/dir"), True)),
        ("m:./x", Remote("m", PurePosixPath("x"), False)),
        ("m:./dir/", Remote("m", PurePosixPath("dir"), True)),
        ("user:42:/x:/y", Remote("user:42", PurePosixPath("/x:/y"), False)),
        ("a@b.c:/x y", Remote("a@b.c", PurePosixPath("/x y"), False)),
    ],
)
def test_places(text: str, place: object) -> None:
    assert parse(text) == place


@pytest.mark.parametrize("text", ["m:", "m:rel/path", "m:~/x"])
def test_a_relative_path_in_a_machine_says_what_to_write(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="m:/"):
        parse(text)


def test_a_local_file_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").write_text("")
    assert parse("a:b") == Local(Path("a:b"))


@pytest.fixture
def files(stub: Stub) -> dict[str, Any]:
    """What lies in the machine by path: bytes, or a tar of a directory as ("dir", bytes)."""
    lies: dict[str, Any] = {"/w": ("dir", b"")}

    def stat(request: Any) -> Any:
        found = lies.get(request.query["path"])
        if found is None:
            return Answer(wire("FILE_NOT_FOUND"), 404)
        kind = "directory" if isinstance(found, tuple) else "file"
        return info(request.query["path"], kind)

    def put(request: Any) -> Any:
        lies[request.query["path"]] = request.body
        return info(request.query["path"], size=len(request.body))

    def put_tar(request: Any) -> Any:
        lies[request.query["path"]] = ("dir", request.body)
        with tarfile.open(fileobj=io.BytesIO(request.body)) as tar:
            return {"entries": len(tar.getnames()), "bytes": 0}

    stub.on("GET", f"{FILES}/stat", stat)
    stub.on("PUT", FILES, put)
    stub.on("GET", FILES, lambda r: Answer(lies[r.query["path"]]))
    stub.on("POST", f"{FILES}/mkdir", lambda r: info(r.json["path"], "directory"))
    stub.on("PUT", f"{FILES}/tar", put_tar)
    stub.on("GET", f"{FILES}/tar", lambda r: Answer(lies[r.query["path"]][1]))
    return lies


def test_files_up(files: dict[str, Any], roost: Roost, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    for target, path in (
        ("/w", "/w/a"),
        ("/w/", "/w/a"),
        ("/w/b", "/w/b"),
        ("/new/", "/new/a"),
        ("/new/c", "/new/c"),
    ):
        files.pop(path, None)
        assert roost("cp", tmp_path / "a", f"user-42:{target}") == 0
        assert files[path] == b"x", target


def test_files_down(
    files: dict[str, Any], roost: Roost, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    files["/w/a"] = b"y"
    assert roost("cp", "user-42:/w/a", tmp_path) == 0
    assert (tmp_path / "a").read_bytes() == b"y"
    assert roost("cp", "user-42:/w/a", tmp_path / "b") == 0
    assert (tmp_path / "b").read_bytes() == b"y"
    assert roost("cp", "user-42:/w/a", "-") == 0
    assert capsysbinary.readouterr().out == b"y"
    assert roost("cp", "user-42:/w/missing", tmp_path) == 1


def test_trees_both_ways(
    files: dict[str, Any], roost: Roost, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "project/src").mkdir(parents=True)
    (tmp_path / "project/src/m.py").write_text("code")
    assert roost("cp", tmp_path / "project", "user-42:/w/") == 0
    assert files["/w/project"][0] == "dir"
    assert roost("cp", tmp_path / "project", "user-42:/elsewhere") == 0
    assert "/elsewhere" in files
    (tmp_path / "back").mkdir()
    assert roost("cp", "--json", "user-42:/w/project", tmp_path / "back") == 0
    assert json.loads(capsys.readouterr().out) == {"entries": 2, "bytes": 4, "skipped": []}
    assert (tmp_path / "back/project/src/m.py").read_text() == "code"
    assert roost("cp", "user-42:/w/project", tmp_path / "named") == 0
    assert (tmp_path / "named/src/m.py").read_text() == "code"


def test_between_machines(files: dict[str, Any], roost: Roost) -> None:
    files["/w/a"] = b"y"
    assert roost("cp", "user-42:/w/a", "user-42:/w/b") == 0
    assert files["/w/b"] == b"y"


def test_neither_side_in_a_machine(roost: Roost, stub: Stub) -> None:
    assert roost("cp", "a", "b") == 2
    assert roost("cp", "/does/not/exist", "user-42:/x") == 1
