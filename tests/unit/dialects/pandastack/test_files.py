"""Files, ports, code and templates as PandaStack's clients ask for them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.services.models import Build, Page
from tests.unit.api.kit import NOW, TENANT, Served
from tests.unit.preview.kit import inside


async def test_bytes_go_in_and_come_out(
    served: Served, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    at = f"/v1/sandboxes/{served.machine()}/fs"
    path = {"path": str(tmp_path / "deep" / "file.bin")}
    data = bytes(range(256)) * 30_000
    put = await http.put(at, params=path, content=data)
    assert put.status_code == 200 and put.json()["size"] == len(data)
    got = await http.get(at, params=path)
    assert got.content == data
    stat = (await http.get(f"{at}/stat", params=path)).json()
    assert (stat["name"], stat["is_dir"], stat["size"]) == ("file.bin", False, len(data))
    assert stat["mode"].startswith("-rw") and isinstance(stat["mtime"], int)
    (tmp_path / "deep" / "link").symlink_to(tmp_path / "deep")
    entries = (await http.get(f"{at}/dir", params={"path": str(tmp_path / "deep")})).json()
    assert [(e["name"], e["is_dir"]) for e in entries["entries"]] == [
        ("file.bin", False),
        ("link", True),
    ]
    assert (await http.delete(at, params=path)).status_code == 204
    for gone in (await http.get(at, params=path), await http.get(f"{at}/stat", params=path)):
        assert gone.status_code == 404 and list(gone.json()) == ["error"]
    assert (await http.delete(at, params={"path": str(tmp_path / "deep")})).status_code == 409
    whole = {"path": str(tmp_path / "deep"), "recursive": "true"}
    assert (await http.delete(at, params=whole)).status_code == 204
    for wrong in ({}, {"path": "relative"}):
        assert (await http.get(at, params=wrong)).status_code == 400


async def test_a_directory_of_many(served: Served, http: httpx.AsyncClient, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for n in range(600):
        (many / f"f{n:04}").touch()
    at = f"/v1/sandboxes/{served.machine()}/fs/dir"
    entries = (await http.get(at, params={"path": str(many)})).json()["entries"]
    assert len(entries) == 600


async def test_a_directory_of_too_many_is_cut(
    served: Served, http: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.dialects.pandastack.files.ENTRIES", 2)
    monkeypatch.setattr("roost.dialects.pandastack.files._PAGE", 1)
    for n in range(3):
        (tmp_path / f"f{n}").touch()
    at = f"/v1/sandboxes/{served.machine()}/fs/dir"
    said = (await http.get(at, params={"path": str(tmp_path)})).json()
    assert [each["name"] for each in said["entries"]] == ["f0", "f1"]
    assert said["truncated"] is True


async def test_ports_that_are_listened_on(served: Served, http: httpx.AsyncClient) -> None:
    mid = served.machine()
    async with inside() as server:
        said = (await http.get(f"/v1/sandboxes/{mid}/ports")).json()
        native = (await served.http.get(f"/v1/machines/{mid}/listening")).json()
    [mine] = [each for each in said if each["port"] == server.port]
    assert mine == {
        "port": server.port, "source": "detected", "listening": True, "addresses": ["127.0.0.1"],
        "proxy_url": f"/v1/sandboxes/{mid}/proxy/{server.port}/",
    }  # fmt: skip
    assert {"port": server.port, "addresses": ["127.0.0.1"]} in native["items"]
    assert native["next_cursor"] is None


async def test_a_port_by_its_path(served: Served, http: httpx.AsyncClient) -> None:
    mid = served.machine()
    async with inside() as server:
        answer = await http.post(f"/v1/sandboxes/{mid}/proxy/{server.port}/a?b=c", content=b"x")
        assert (answer.status_code, answer.text) == (200, "ok")
        assert server.heads[0].startswith(b"POST /a?b=c HTTP/1.1\r\n")
        assert b"pds_" not in server.heads[0]
    closed = await http.get(f"/v1/sandboxes/{mid}/proxy/1/")
    assert closed.status_code == 502 and list(closed.json()) == ["error"]
    async with served.client(None) as nobody:
        refused = await nobody.get(f"/v1/sandboxes/{mid}/proxy/{server.port}/")
        assert refused.status_code == 401 and list(refused.json()) == ["error"]


async def test_labels_of_ports(life: httpx.AsyncClient, engine: Served) -> None:
    box = (await life.post("/v1/sandboxes", json={"template": "base"})).json()
    at = f"/v1/sandboxes/{box['id']}"
    assert (await life.post(f"{at}/ports", json={"port": 8000, "label": "web"})).status_code == 201
    assert (await life.get(at)).json()["metadata"] == {"port.8000": "web"}
    assert (await life.delete(f"{at}/ports/8000")).status_code == 204
    assert (await life.get(at)).json()["metadata"] == {}
    assert (await life.delete(f"{at}/ports/x")).status_code == 400
    assert (await life.post(f"{at}/ports", json={"port": 0})).status_code == 400


async def test_no_kernel_without_its_template(served: Served, http: httpx.AsyncClient) -> None:
    at = f"/v1/sandboxes/{served.machine()}/repl/sessions"
    answer = await http.post(at, json={"language": "python"})
    assert answer.status_code == 501 and "code-interpreter" in answer.json()["error"]
    assert (await http.post(f"{at}/nonsense/run", json={"code": "1"})).status_code == 404


async def test_templates(served: Served, http: httpx.AsyncClient) -> None:
    [base] = (await http.get("/v1/templates")).json()
    assert base["name"] == "base" and base["is_global"] is True and base["size_bytes"] == 5
    assert (await http.get("/v1/templates/base")).json()["name"] == "base"
    assert (await http.get("/v1/templates/none")).status_code == 404
    assert (await http.delete("/v1/templates/base")).status_code == 403


class Builds:
    """Remembers what was asked, and waits for a context."""

    def __init__(self) -> None:
        self.asked: Any = None
        self.context = b""

    def _build(self, status: str) -> Build:
        return Build(
            "b" * 26, TENANT, ("mine:latest",), "fake", status, 0, 1, 0, None, None, None, None,
            NOW, None, None,
        )  # fmt: skip

    async def start(self, tenant: str, asked: Any) -> tuple[Build, bool]:
        self.asked = asked
        return self._build("waiting"), "COPY" in asked.dockerfile

    async def give(self, tenant: str, build_id: str, pieces: Any) -> Build:
        self.context = b"".join([each async for each in pieces])
        return self._build("queued")

    async def get(self, tenant: str, build_id: str) -> Build:
        return self._build("succeeded")

    async def list(self, tenant: str, status: Any, limit: int, cursor: Any) -> Page[Build]:
        return Page([self._build("running"), self._build("cancelled")], None)

    async def follow(self, tenant: str, build_id: str, after: int = 0) -> Any:
        async def events() -> Any:
            yield 1, {"event": "step", "step": 1, "steps": 2, "instruction": "FROM base"}
            yield 2, {"event": "log", "text": "half "}
            yield 3, {"event": "log", "text": "a line\nanother\n"}
            yield 4, {"event": "step", "step": 1, "status": "done"}
            if self.asked is None:
                await asyncio.sleep(60)
            yield 5, {"event": "end", "status": "succeeded"}

        return events()


async def test_builds_from_forms(
    served: Served, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake: Any = Builds()
    for name in ("start", "give", "get", "list", "follow"):
        monkeypatch.setattr(served.services.builds, name, getattr(fake, name))
    lines = (await http.get("/v1/templates/builds/b/logs")).text  # of one that goes on
    assert "data: half a line\n\ndata: another\n\n" in lines and lines.endswith("data: end\n\n")

    # What requests makes of a form without files, and of one with.
    data = {"name": "mine", "image_ref": "registry:5000/x/y:1", "size_mb": "1024"}
    answer = await http.post("/v1/templates/build", data=data)
    assert answer.status_code == 202 and answer.json()["status"] == "queued"
    assert answer.json()["name"] == "mine" and answer.json()["size_mb"] == 1024
    assert fake.asked.dockerfile == "FROM registry:5000/x/y:1\n"
    form = {
        "name": "mine",
        "dockerfile": "FROM base\nCOPY app /app",
        "cpu": "2",
        "memory_mb": "512",
    }
    files = {"app/main.py": ("app/main.py", b"print(1)\0", "application/octet-stream")}
    answer = await http.post("/v1/templates/build", data=form, files=files)
    assert answer.status_code == 202, answer.text
    assert fake.asked.tags == ("mine",) and fake.asked.dockerfile.endswith("COPY app /app")
    assert fake.asked.roost_toml == "size = { vcpu = 2, memory_mib = 512 }\n"
    assert b"app/main.py" in fake.context and b"print(1)\0" in fake.context
    lines = (await http.get("/v1/templates/builds/b/logs?follow=1")).text
    assert "data: Step 1/2: FROM base\n\n" in lines and "data: Build succeeded\n\n" in lines

    archive = await http.post(
        "/v1/templates/build", data={"name": "x"}, files={"rootfs": ("r.tar", b"\0" * 10)}
    )
    assert archive.status_code == 501 and "Dockerfile" in archive.json()["error"]
    for wrong in ({"name": "x"}, {**form, "cpu": "many"}, {"name": "x", "image_ref": "a b"}):
        assert (await http.post("/v1/templates/build", data=wrong)).status_code == 400
    many = await http.post("/v1/templates/build", data={f"f{n}": "" for n in range(200)})
    assert many.status_code == 400 and "fields" in many.json()["error"]
    with monkeypatch.context() as full:
        full.setattr("roost.dialects.pandastack.templates.AT_ONCE", 0)
        answer = await http.post("/v1/templates/build", data=data)
        assert answer.status_code == 429 and "retry-after" in answer.headers
    monkeypatch.setattr("roost.dialects.pandastack.templates.MAX_BODY", 1000)
    large = await http.post("/v1/templates/build", data=form, files={"f": b"x" * 5000})
    assert large.status_code == 413
    assert [b["status"] for b in (await http.get("/v1/templates/builds")).json()] == [
        "running",
        "failed",
    ]
    assert (await http.get("/v1/templates/builds/b")).json()["status"] == "done"
