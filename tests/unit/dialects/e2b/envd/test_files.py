from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from roost.dialects.e2b.envd import metadata, parts
from roost.dialects.e2b.envd.accounts import parsed
from roost.dialects.e2b.envd.parts import Parts, boundary
from roost.dialects.e2b.envd.refusals import Refused
from tests.unit.api.kit import Served
from tests.unit.dialects.e2b.envd.kit import Sandbox, basic

F = "/filesystem.Filesystem/"


async def get(box: Sandbox, path: Any, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await box.http.get("/files", params={"path": str(path)}, headers=named)


async def test_down(box: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "a b.txt"
    file.write_bytes(b"0123456789")
    answer = await get(box, file)
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["content-length"] == "10"
    assert answer.headers["content-security-policy"] == "sandbox"
    part = await get(box, file, range="bytes=2-4")
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    for none in ("bytes=99-", "bytes=-0"):
        assert (await get(box, file, range=none)).status_code == 416
    packed = await get(box, file, accept_encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip" and packed.content == b"0123456789"
    plain = await get(box, file, accept_encoding="gzip, deflate, br")
    assert "content-encoding" not in plain.headers


async def test_what_cannot_be_had(box: Sandbox, tmp_path: Path) -> None:
    missing = await get(box, "/no/such")
    assert missing.status_code == 404
    assert missing.json() == {"code": 404, "message": "path '/no/such' does not exist"}
    directory = await get(box, tmp_path)
    assert directory.status_code == 400
    assert directory.json()["message"] == f"path '{tmp_path}' is a directory"
    nobody = await box.http.get("/files", params={"path": "/etc/passwd", "username": "none"})
    assert (nobody.status_code, nobody.json()["code"]) == (401, 401)
    for path in ("/dev/null", "/a\0"):
        assert (await get(box, path)).status_code == 400
    assert (await box.http.put("/files", params={"path": "/x"})).status_code == 405


async def test_up_raw(box: Sandbox, tmp_path: Path) -> None:
    to = tmp_path / "new" / "f"
    answer = await box.http.post(
        "/files",
        params={"path": str(to)},
        content=b"\0\xff raw",
        headers={"content-type": "application/octet-stream"},
    )
    assert answer.json() == [{"name": "f", "type": "file", "path": str(to)}]
    assert to.read_bytes() == b"\0\xff raw"
    packed = await box.http.post(
        "/files",
        params={"path": str(to)},
        content=gzip.compress(b"y" * 3_000_000),
        headers={"content-type": "application/octet-stream", "content-encoding": "gzip"},
    )
    assert packed.status_code == 200 and to.read_bytes() == b"y" * 3_000_000
    torn = await box.http.post(
        "/files",
        params={"path": str(to)},
        content=gzip.compress(os.urandom(9999))[:-20],
        headers={"content-encoding": "gzip"},
    )
    assert torn.status_code == 400 and to.stat().st_size == 3_000_000
    assert (await box.http.post("/files", content=b"x")).status_code == 400
    directory = await box.http.post("/files", params={"path": str(tmp_path)}, content=b"x")
    assert directory.status_code == 400 and "is a directory" in directory.json()["message"]


async def test_up_as_a_form(box: Sandbox, tmp_path: Path) -> None:
    big = os.urandom(2_500_000)
    files = [
        ("file", (f'{tmp_path}/a/ü "q".bin', big)),
        ("note", ("passed over", b"x")),
        ("file", (f"{tmp_path}/b", b"")),
    ]
    answer = await box.http.post("/files", files=files)
    assert [each["path"] for each in answer.json()] == [f'{tmp_path}/a/ü "q".bin', f"{tmp_path}/b"]
    assert (tmp_path / "a" / 'ü "q".bin').read_bytes() == big
    assert (tmp_path / "b").read_bytes() == b""
    one = await box.http.post(
        "/files", params={"path": f"{tmp_path}/c"}, files=[("file", ("other", b"c"))]
    )
    assert one.json()[0]["path"] == f"{tmp_path}/c" and (tmp_path / "c").read_bytes() == b"c"
    two = await box.http.post(
        "/files",
        params={"path": f"{tmp_path}/c"},
        files=[("file", ("x", b"1")), ("file", ("y", b"2"))],
    )
    assert two.status_code == 400


async def test_forms_that_are_none(box: Sandbox, tmp_path: Path) -> None:
    head = {"content-type": "multipart/form-data; boundary=B"}
    part = b'--B\r\ncontent-disposition: form-data; name="file"; filename="' + bytes(tmp_path / "x")
    for body in (
        b"",
        b"nothing of the kind",
        part + b'"\r\n\r\nhalf',
        b'--B\r\ncontent-disposition: form-data; name="file"\r\n\r\nx\r\n--B--\r\n',
        b"--B\r\nx: " + b"y" * 20_000 + b"\r\n\r\n--B--\r\n",
        b'--B\r\ncontent-disposition: form-data; name="file"; filename="\xff"\r\n\r\nx\r\n--B--\r\n',
    ):
        answer = await box.http.post("/files", content=body, headers=head)
        assert answer.status_code == 400, body[:80]
        assert answer.json()["code"] == 400
    assert not (tmp_path / "x").exists()
    unbound = await box.http.post(
        "/files", content=b"x", headers={"content-type": "multipart/form-data"}
    )
    assert unbound.status_code == 400


async def test_a_form_has_so_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_PARTS", 2)
    one = b'--B\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n'

    async def pieces() -> Any:
        for byte in one * 3 + b"--B--\r\n":
            yield bytes((byte,))

    found = []
    with pytest.raises(Refused):
        async for each in Parts(pieces(), b"B").all():
            found.append((each.filename, b"".join([piece async for piece in each.data])))
    assert found == [("f", b"x")]
    with pytest.raises(Refused):
        boundary("multipart/form-data; boundary=" + "x" * 300)
    assert boundary("text/plain") is None and boundary("") is None


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the machine keeps what was noted: the agent here is one of this host."""
    file = tmp_path / "kept" / "notes.json"
    monkeypatch.setattr(metadata, "FILE", bytes(file))
    return file


async def test_metadata_goes_with_its_file(box: Sandbox, tmp_path: Path, noted: Path) -> None:
    async def of(path: Path) -> Any:
        return (await box.ok(F + "Stat", {"path": str(path)}))["entry"].get("metadata")

    to = tmp_path / "d" / "m"
    said = {"X-Metadata-Owner": "Me", "x-metadata-a.b": ""}
    answer = await box.http.post("/files", params={"path": str(to)}, content=b"x", headers=said)
    assert answer.json()[0]["metadata"] == {"owner": "Me", "a.b": ""}
    assert await of(to) == {"owner": "Me", "a.b": ""}
    listed = (await box.ok(F + "ListDir", {"path": str(to.parent)}))["entries"]
    assert listed[0]["metadata"] == {"owner": "Me", "a.b": ""}
    await box.ok(F + "Move", {"source": str(to.parent), "destination": str(tmp_path / "e")})
    assert await of(tmp_path / "e" / "m") == {"owner": "Me", "a.b": ""}
    assert noted.stat().st_mode & 0o777 == 0o600
    await box.http.post("/files", params={"path": f"{tmp_path}/e/m"}, content=b"y")
    assert await of(tmp_path / "e" / "m") is None
    await box.http.post("/files", params={"path": f"{tmp_path}/e/m"}, content=b"y", headers=said)
    await box.ok(F + "Remove", {"path": str(tmp_path / "e")})
    assert json.loads(noted.read_text()) == {}
    bad = {"X-Metadata-a": b"\xff"}
    refused = await box.http.post("/files", params={"path": str(to)}, content=b"x", headers=bad)
    assert refused.status_code == 400 and not to.exists()


async def test_metadata_is_the_machines_and_bounded(
    box: Sandbox, served: Served, tmp_path: Path, noted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted.parent.mkdir()
    noted.write_text(json.dumps({f"{tmp_path}/f": {"a": "1", "b": 2}, "x": 3}))
    (tmp_path / "f").touch()
    said = await box.ok(F + "Stat", {"path": f"{tmp_path}/f"})
    assert said["entry"]["metadata"] == {"a": "1"}
    await served.machines.sleep("tenant-a", box.id)
    noted.write_text("[" * 100_000)
    said = await box.ok(F + "Stat", {"path": f"{tmp_path}/f"})
    assert "metadata" not in said["entry"]
    monkeypatch.setattr(metadata, "MAX_BYTES", 100)
    full = await box.http.post(
        "/files", params={"path": f"{tmp_path}/g"}, content=b"x", headers={"x-metadata-a": "1" * 99}
    )
    assert full.status_code == 429


async def test_composed(box: Sandbox, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name * 3)
    asked = {
        "source_paths": [f"{tmp_path}/a", f"{tmp_path}/b", f"{tmp_path}/a"],
        "destination": f"{tmp_path}/b",
    }
    answer = await box.http.post("/files/compose", json=asked)
    assert answer.json() == {"name": "b", "type": "file", "path": f"{tmp_path}/b"}
    assert (tmp_path / "b").read_text() == "aaabbbaaa" and not (tmp_path / "a").exists()
    missing = await box.http.post("/files/compose", json=asked)
    assert missing.status_code == 404 and (tmp_path / "b").read_text() == "aaabbbaaa"
    for bad in ({"source_paths": [], "destination": "/x"}, {"destination": "/x"}):
        assert (await box.http.post("/files/compose", json=bad)).status_code == 400


async def test_paths_below_home_and_owners(box: Sandbox, served: Served, tmp_path: Path) -> None:
    name = f".roost-test-{tmp_path.name}"
    try:
        answer = await box.http.post("/files", params={"path": name}, content=b"x")
        assert answer.json()[0]["path"] == f"/root/{name}"
        assert (await get(box, f"~/{name}")).content == b"x"
    finally:
        (Path("/root") / name).unlink(missing_ok=True)
    to = tmp_path / "made" / "f"
    answer = await box.http.post(
        "/files", params={"path": str(to), "username": "daemon"}, content=b"x"
    )
    assert answer.status_code == 200
    assert (to.stat().st_uid, to.stat().st_gid) == (1, 1)
    assert to.parent.stat().st_uid == 1
    said = await box.http.post(
        "/files", params={"path": f"{tmp_path}/g"}, content=b"x", headers=basic("daemon")
    )
    assert said.status_code == 200 and (tmp_path / "g").stat().st_uid == 1


def test_users_as_a_machine_may_write_them() -> None:
    table = parsed(
        b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/bash\n"
        b"user:x:0:0::/evil:/bin/sh\nbad:x:-1:0::/:/bin/sh\nrel:x:7:7::home:/bin/sh\n"
        b"\xff:x:8:8::/h:/bin/sh\nshort:x:1\n" + b"x" * 100 + b":x:9:9::/h:/bin/sh\n"
    )
    assert sorted(table) == ["rel", "root", "user", "\ufffd"]
    assert (table["user"].uid, table["user"].home) == (1000, "/home/user")
    assert table["rel"].home == "/"


async def test_health_metrics_and_environment(box: Sandbox, served: Served) -> None:
    assert (await box.http.get("/health")).status_code == 204
    assert (await box.http.get("/envs")).json() == {}
    await served.machines.sleep("tenant-a", box.id)
    asleep = await box.http.get("/health")
    assert (asleep.status_code, asleep.json()["message"]) == (502, "The sandbox was not found")
    assert served.machines.machines[box.id].phase == "sleeping"
