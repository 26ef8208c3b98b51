"""Files through the whole serving side, against a real agent."""

from __future__ import annotations

import base64
import gzip
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attack.record import case
from tests.unit.api.kit import Served, events


@pytest.fixture
def files(served: Served) -> str:
    return f"/v1/machines/{served.machine()}/files"


async def test_written_read_and_ranged(served: Served, files: str, tmp_path: Path) -> None:
    path = {"path": f"{tmp_path}/new/dir/f.bin"}
    content = os.urandom(2_500_000)
    wrote = await served.http.put(files, params={**path, "mode": "0640"}, content=content)
    assert wrote.status_code == 200, wrote.text
    assert (wrote.json()["size"], wrote.json()["mode"]) == (len(content), "0640")
    whole = await served.http.get(files, params=path)
    assert whole.content == content and whole.headers["x-roost-mode"] == "0640"
    head = await served.http.head(files, params=path)
    assert head.headers["content-length"] == str(len(content)) and head.content == b""
    assert head.headers["etag"] == whole.headers["etag"]
    size = len(content)
    for asked, want, told in (
        ("bytes=0-9", content[:10], f"bytes 0-9/{size}"),
        ("bytes=2499990-", content[-10:], f"bytes 2499990-2499999/{size}"),
        ("bytes=-5", content[-5:], f"bytes {size - 5}-{size - 1}/{size}"),
        ("bytes=10-99999999", content[10:], f"bytes 10-{size - 1}/{size}"),
        ("bytes=-99999999", content, f"bytes 0-{size - 1}/{size}"),
    ):
        part = await served.http.get(files, params=path, headers={"range": asked})
        assert (part.status_code, part.headers["content-range"]) == (206, told)
        assert part.content == want
    for asked in (
        "bytes=2500000-",
        "bytes=9999999-10000000",
        "bytes=-0",
        "bytes=18446744073709551615-",
        f"bytes={'9' * 5000}-",
    ):
        beyond = await served.http.get(files, params=path, headers={"range": asked})
        assert beyond.status_code == 416, asked
        assert beyond.json()["error_code"] == "RANGE_NOT_SATISFIABLE"
        assert beyond.headers["content-range"] == f"bytes */{size}"
    for asked in ("lines=1-2", "bytes=5-2", "bytes=0-1,3-4", "bytes=-", "nonsense"):
        plain = await served.http.get(files, params=path, headers={"range": asked})
        assert plain.status_code == 200, asked


async def test_ways_to_write(served: Served, files: str, tmp_path: Path) -> None:
    path = {"path": f"{tmp_path}/f"}

    async def put(content: bytes, **query: object) -> int:
        answer = await served.http.put(files, params={**path, **query}, content=content)
        return answer.status_code

    assert await put(b"one") == 200
    assert await put(b" two", append=True) == 200
    assert await put(b"ONE", offset=0) == 200
    assert (tmp_path / "f").read_bytes() == b"ONE two"
    assert await put(b"x", create_new=True) == 409
    assert await put(b"x", append=True, offset=1) == 422
    assert await put(b"x", mode="0999") == 422
    assert await put(b"", sync=True) == 200
    assert (tmp_path / "f").read_bytes() == b""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"y" * 50_001

    answer = await served.http.put(files, params=path, content=chunks())
    assert answer.json()["size"] == 50 * 50_001


async def test_the_tree(served: Served, files: str, tmp_path: Path) -> None:
    root = str(tmp_path / "t")
    made = await served.http.post(f"{files}/mkdir", json={"path": f"{root}/a/b"})
    assert made.status_code == 201 and made.json()["kind"] == "directory"
    for name in ("x", "y", "z"):
        await served.http.put(files, params={"path": f"{root}/{name}"}, content=b"1")
    page = (await served.http.get(f"{files}/list", params={"path": root, "limit": 2})).json()
    assert [each["name"] for each in page["items"]] == ["a", "x"]
    cursor = page["next_cursor"]
    rest = (await served.http.get(f"{files}/list", params={"path": root, "cursor": cursor})).json()
    assert [each["name"] for each in rest["items"]] == ["y", "z"] and rest["next_cursor"] is None
    moved = await served.http.post(
        f"{files}/move", json={"source": f"{root}/x", "destination": f"{root}/y"}
    )
    assert moved.json()["error_code"] == "FILE_EXISTS"
    moved = await served.http.post(
        f"{files}/move", json={"source": f"{root}/x", "destination": f"{root}/y", "overwrite": True}
    )
    assert moved.status_code == 200
    changed = await served.http.patch(
        files, json={"path": f"{root}/y", "mode": "0600", "mtime": "2020-01-01T00:00:00Z"}
    )
    assert changed.json()["mtime"] == "2020-01-01T00:00:00.000Z"
    old = await served.http.patch(
        files, json={"path": f"{root}/y", "mtime": "0001-01-01T00:00:00Z"}
    )
    assert old.status_code == 422
    os.symlink("/nowhere", f"{root}/link")
    link = await served.http.get(
        f"{files}/stat", params={"path": f"{root}/link", "follow": "false"}
    )
    assert link.json()["link_target"] == "/nowhere"
    full = await served.http.delete(files, params={"path": root})
    assert full.json()["error_code"] == "DIRECTORY_NOT_EMPTY"
    gone = await served.http.delete(files, params={"path": root, "recursive": "true"})
    assert gone.status_code == 204 and not os.path.exists(root)


@case(21)
@pytest.mark.parametrize(
    "query",
    [
        "path=relative", "path=", "path=%00", "path=/a%00b", "path=/%ff%fe", "path=/%c0%af",
        "path=/%ed%a0%80", "path=/a&path=/b", "", "path=/a&path_b64=Lw==", "path_b64=***",
        "path_b64=YQ==", "path=/" + "a" * 5000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["GET", "HEAD", "PUT", "DELETE", "STAT", "LIST", "TAR", "WATCH"])
async def test_path_games(served: Served, files: str, query: str, call: str) -> None:
    suffix = {"STAT": "/stat", "LIST": "/list", "TAR": "/tar", "WATCH": "/watch"}.get(call, "")
    method = "GET" if suffix else call
    answer = await served.http.request(
        method, f"{files}{suffix}?{query}", content=b"x" if call == "PUT" else None
    )
    assert answer.status_code == 422, (answer.status_code, answer.text)


@case(21)
async def test_bytes_that_are_not_text(served: Served, files: str, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    name = base64.b64encode(raw).decode()
    wrote = await served.http.put(files, params={"path_b64": name}, content=b"x")
    assert wrote.json()["path_b64"] == name and os.path.exists(raw)
    listed = await served.http.get(f"{files}/list", params={"path": str(tmp_path)})
    found = [each for each in listed.json()["items"] if "caf" in each["name"]]
    assert found[0]["path_b64"] == name


@case(23)
async def test_kinds_that_are_refused(served: Served, files: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, code in (
        (f"{tmp_path}/fifo", "FILE_KIND_REFUSED"),
        ("/dev/null", "FILE_KIND_REFUSED"),
        (str(tmp_path), "IS_A_DIRECTORY"),
        (f"{tmp_path}/none", "FILE_NOT_FOUND"),
    ):
        got = await served.http.get(files, params={"path": path})
        assert got.json()["error_code"] == code, path
        head = await served.http.head(files, params={"path": path})
        assert head.status_code == got.status_code


async def test_tar_both_ways(served: Served, files: str, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("a", "d/b"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"hello"))
    plain = data.getvalue()
    to = {"path": str(tmp_path / "in")}
    done = await served.http.put(f"{files}/tar", params=to, content=plain)
    assert done.status_code == 200, done.text
    assert done.json()["bytes"] == 10
    gz = {"content-encoding": "gzip"}
    packed = gzip.compress(plain[:3000]) + gzip.compress(plain[3000:])
    done = await served.http.put(f"{files}/tar", params=to, content=packed, headers=gz)
    assert done.status_code == 200, done.text
    for content, status in ((b"not gzip", 400), (gzip.compress(plain)[:-9], 400)):
        broken = await served.http.put(f"{files}/tar", params=to, content=content, headers=gz)
        assert broken.status_code == status, broken.text
    odd = await served.http.put(
        f"{files}/tar", params=to, content=b"", headers={"content-encoding": "br"}
    )
    assert odd.status_code == 422
    out = await served.http.get(f"{files}/tar", params=to)
    with tarfile.open(fileobj=io.BytesIO(out.content)) as tar:
        assert "d/b" in [name.removeprefix("./") for name in tar.getnames()]
    missing = await served.http.get(f"{files}/tar", params={"path": "/nowhere"})
    assert missing.status_code == 404


@case(25)
async def test_a_gzip_bomb_is_cut(served: Served, files: str, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(300 << 20), 9)
    answer = await served.http.put(
        f"{files}/tar",
        params={"path": str(tmp_path / "in")},
        content=bomb,
        headers={"content-encoding": "gzip"},
    )
    assert answer.status_code in (400, 413, 422), answer.text


async def test_watching(served: Served, files: str, tmp_path: Path) -> None:
    url = f"{files}/watch"
    async with served.http.stream("GET", url, params={"path": str(tmp_path)}) as answer:
        assert answer.status_code == 200
        found = events(answer.aiter_lines())
        assert (await anext(found))[0] == "ready"
        (tmp_path / "n").write_text("x")
        name, data = await anext(found)
        assert name == "created" and data["path"] == f"{tmp_path}/n"
    missing = await served.http.get(url, params={"path": "/nowhere"})
    assert missing.status_code == 404
