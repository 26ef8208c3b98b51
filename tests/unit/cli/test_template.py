"""``roost template`` on Dockerfiles, and the SDK beneath it."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost import MachineError, Template
from roost.cli._build import secrets
from tests.unit.client.stub import BREAK, Answer, Request, Stub, sse, wire

Roost = Callable[..., int]
Out = pytest.CaptureFixture[str]
BUILD = "b" * 26
READY = {
    "name": "mine",
    "template_id": "t" * 26,
    "status": "ready",
    "digest": "sha256:1",
    "tags": ["mine:latest"],
}


def build(status: str, **more: Any) -> dict[str, Any]:
    return {"build_id": BUILD, "status": status, "template_id": READY["template_id"], **more}


def event(name: str, place: int, **data: Any) -> bytes:
    return sse(name, data).replace(b"event:", f"id: {place}\nevent:".encode(), 1)


LOG = [
    event("step", 10, step=1, steps=2, line=1, instruction="FROM base", status="cached"),
    event("step", 20, step=2, steps=2, line=2, instruction="RUN x", status="running"),
    event("log", 30, step=2, stream="stdout", text="hello\nwor"),
    event("log", 40, step=2, stream="stdout", text="ld\n"),
    event("step", 50, step=2, status="done", duration_ms=1234),
]
END = event("end", 60, status="succeeded", template_id=READY["template_id"])


@pytest.fixture
def builder(stub: Stub) -> Stub:
    stub.on("GET", "/v1/templates/[^/]+", lambda _: Answer(wire("TEMPLATE_NOT_FOUND", "none"), 404))
    stub.on("GET", f"/v1/templates/{READY['template_id']}", lambda _: READY)
    stub.on("POST", "/v1/builds", lambda _: Answer(build("waiting"), 201))
    stub.on("PUT", f"/v1/builds/{BUILD}/context", lambda _: build("queued"))
    stub.on("GET", f"/v1/builds/{BUILD}", lambda _: build("succeeded"))
    stub.on("DELETE", f"/v1/builds/{BUILD}", lambda _: build("cancelled"))
    stub.on("GET", f"/v1/builds/{BUILD}/stream", lambda _: iter([*LOG, END]))
    return stub


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "Dockerfile").write_text("FROM base\nCOPY a /a\n")
    (root / "roost.toml").write_text('start = "x"\n')
    (root / ".dockerignore").write_text("b\n")
    (root / "a").write_text("1")
    (root / "b").write_text("2")
    monkeypatch.chdir(root)
    return root


def sent(stub: Stub) -> dict[str, Any]:
    (request,) = [r for r in stub.seen if (r.method, r.path) == ("POST", "/v1/builds")]
    return dict(request.json)


def test_a_directory_is_sent(builder: Stub, roost: Roost, tree: Path, capsys: Out) -> None:
    (tree / "s").write_text("hush-hush")
    args = ("-t", "mine:v1", "--build-arg", "A=1", "--secret", "id=k,src=s", "--keep-failed")
    assert roost("template", "build", "mine", ".", *args) == 0
    seen = capsys.readouterr()
    assert seen.out == "mine ready sha256:1\n"
    assert seen.err.splitlines() == [
        "[1/2] FROM base (cached)", "[2/2] RUN x", "hello", "world", "[2] done in 1.2 s",
    ]  # fmt: skip
    body = sent(builder)
    assert body["tags"] == ["mine", "mine:v1"]
    assert body["dockerfile"].startswith("FROM base")
    assert body["roost_toml"] == 'start = "x"\n'
    assert (body["build_args"], body["secrets"]) == ({"A": "1"}, {"k": "hush-hush"})
    assert body["keep_failed"]
    (upload,) = [r for r in builder.seen if r.method == "PUT"]
    with tarfile.open(fileobj=io.BytesIO(upload.body)) as tar:
        names = tar.getnames()
    assert "a" in names
    assert "b" not in names


@pytest.mark.parametrize(
    ("line", "tags"),
    [
        (("mine",), ["mine"]),
        (("mine", "."), ["mine"]),
        ((".", "-t", "x:1"), ["x:1"]),
        (("-t", "x", "-f", "Dockerfile"), ["x"]),
    ],
)
def test_ways_to_say_it(
    builder: Stub, roost: Roost, tree: Path, line: tuple[str, ...], tags: list[str]
) -> None:
    assert roost("template", "build", *line, "--json") == 0
    assert sent(builder)["tags"] == tags


def test_json_alone_is_on_stdout(builder: Stub, roost: Roost, tree: Path, capsys: Out) -> None:
    assert roost("template", "build", "mine", "--json") == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out) == READY
    assert seen.err == ""


def test_a_name_is_needed(builder: Stub, roost: Roost, tree: Path) -> None:
    assert roost("template", "build", ".") == 2
    assert roost("template", "build") == 2


def test_a_failure_says_what_it_said_and_where_to_look(
    builder: Stub, roost: Roost, tree: Path, capsys: Out
) -> None:
    details = {"step": 2, "output": "gcc: no\ncc1: no", "machine_id": "m" * 26}
    failure = wire("TEMPLATE_BUILD_FAILED", "Step 2 of 2 failed") | {"details": details}
    builder.on("GET", f"/v1/builds/{BUILD}", lambda _: build("failed", error=failure))
    assert roost("template", "build", "mine", "--json") == 1
    assert "\ngcc: no\ncc1: no\n---\n" in capsys.readouterr().err
    assert roost("template", "build", "mine") == 1
    seen = capsys.readouterr().err
    assert "Step 2 of 2 failed" in seen
    assert f"roost shell {'m' * 26}" in seen
    with pytest.raises(MachineError) as caught:
        Template.build("mine", tree)
    assert caught.value.details["output"] == "gcc: no\ncc1: no"


@pytest.mark.parametrize("shown", [(), ("--plain",), ("--json",)])
def test_a_shipped_recipe_that_fails_says_what_it_said(
    stub: Stub, roost: Roost, capsys: Out, shown: tuple[str, ...]
) -> None:
    failure = wire("TEMPLATE_BUILD_FAILED", "Step 2 of 9 failed") | {
        "details": {"output": "E: no such package\nE: sorry"}
    }
    said = [sse("progress", {"stage": "2/9", "percent": 1, "message": "RUN apt"})]
    stub.on("GET", "/v1/templates/agent", lambda _: {**READY, "shipped": True})
    stub.on("POST", "/v1/templates/agent/build", lambda _: iter([*said, sse("error", failure)]))
    assert roost("template", "build", "agent", "--force", *shown) == 1
    err = capsys.readouterr().err
    assert "\nE: no such package\nE: sorry\n" in err
    assert "Step 2 of 9 failed" in err


def test_the_error_of_a_shipped_recipe_keeps_its_code(
    stub: Stub, roost: Roost, capsys: Out
) -> None:
    stub.on("GET", "/v1/templates/agent", lambda _: {**READY, "shipped": True})
    full = sse("error", wire("STORAGE_FULL", "the pool is full"))
    stub.on("POST", "/v1/templates/agent/build", lambda _: iter([full]))
    assert roost("template", "build", "agent", "--force") == 1
    assert "STORAGE_FULL" in capsys.readouterr().err
    assert roost("template", "build", "agent", "--force", "--keep-failed") == 2


def test_a_log_that_breaks_off_is_taken_up_again(builder: Stub, tree: Path) -> None:
    asked: list[str] = []

    def stream(request: Request) -> Iterator[Any]:
        asked.append(request.query["after"])
        yield from [*LOG[:2], BREAK] if len(asked) == 1 else [*LOG[2:], END]

    builder.on("GET", f"/v1/builds/{BUILD}/stream", stream)
    heard: list[dict[str, Any]] = []
    made = Template.build("mine", tree, on_log=heard.append)
    assert made.tags == ["mine:latest"]
    assert asked == ["0", "20"]
    assert [each["event"] for each in heard] == ["step", "step", "log", "log", "step", "end"]


def test_who_is_interrupted_cancels(builder: Stub, roost: Roost, tree: Path, capsys: Out) -> None:
    def hear(each: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Template.build("mine", tree, on_log=hear)
    assert [r.path for r in builder.seen if r.method == "DELETE"] == [f"/v1/builds/{BUILD}"]


def test_text_instead_of_a_file(builder: Stub, tmp_path: Path) -> None:
    builder.on("POST", "/v1/builds", lambda _: Answer(build("queued"), 201))
    Template.build("mine", dockerfile="FROM base\nRUN x\n")
    assert sent(builder)["dockerfile"] == "FROM base\nRUN x\n"
    assert not [r for r in builder.seen if r.method == "PUT"]


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    (tmp_path / "f").write_text("v1")
    monkeypatch.setenv("TOKEN", "v2")
    given = [f"type=secret,id=a,src={tmp_path}/f", "id=b,env=TOKEN", "id=TOKEN"]
    assert secrets(given) == {"a": "v1", "b": "v2", "TOKEN": "v2"}
    for wrong in ("src=x", "id=nope", "id=a,foo=b"):
        with pytest.raises(typer.Exit):
            secrets([wrong])


def test_passwords_of_registries(
    builder: Stub, roost: Roost, tree: Path, tmp_path: Path, capsys: Out
) -> None:
    login = base64.b64encode(b"me:pass:word").decode()
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {"r.example:5000": {"auth": login}, "other": {}}}))
    assert roost("template", "build", "mine", "--authfile", str(file)) == 0
    known = {"r.example:5000": {"username": "me", "password": "pass:word"}}
    assert sent(builder)["credentials"] == known
    for wrong in ("", "[]", '{"auths": {"h": {"auth": "no"}}}', '{"auths": {}, "credsStore": "x"}'):
        file.write_text(wrong)
        assert roost("template", "build", "mine", "--authfile", str(file)) == 2
    assert "pass:word" not in capsys.readouterr().err


def test_ls_rm_tag_gc(stub: Stub, roost: Roost, capsys: Out) -> None:
    named = {**READY, "tags": ["mine:latest", "mine:v1"], "size_bytes": 1 << 20}
    stub.on("GET", "/v1/templates", lambda _: {"items": [named], "next_cursor": None})
    stub.on("GET", "/v1/templates/mine", lambda _: named)
    stub.on("POST", f"/v1/templates/{READY['template_id']}/tags", lambda _: named)
    answer = {"removed": ["mine:v1"], "deleted": False}
    stub.on("DELETE", "/v1/templates/mine%3Av1", lambda _: answer)
    stub.on("DELETE", "/v1/templates/mine:v1", lambda _: answer)
    done = {"dry_run": True, "templates": ["x"], "layers": 2, "builds": 3, "bytes": 1 << 30}
    stub.on("POST", "/v1/templates/gc", lambda _: done)
    assert roost("template", "ls") == 0
    assert "mine, mine:v1" in capsys.readouterr().out
    assert roost("template", "tag", "mine", "other") == 0
    assert roost("template", "rm", "mine:v1") == 0
    assert "not its name any more" in capsys.readouterr().out
    assert roost("template", "gc", "--dry-run", "--older-than", "2h") == 0
    assert "1 templates, 2 layers" in capsys.readouterr().out
    assert stub.seen[-1].query == {"older_than": "7200", "dry_run": "true"}
    assert roost("template", "gc", "--older-than", "soon") == 2
