"""Builds over HTTP, on machines in memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.templates.pack import pack
from tests.unit.api.kit import Served, serving
from tests.unit.engine.kit import daemon


@pytest.fixture
async def built(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "daemon").mkdir()
    (tmp_path / "api").mkdir()
    async with daemon(tmp_path / "daemon") as engine:
        async with serving(tmp_path / "api", None, engine=engine) as served:
            yield served


async def events(served: Served, build_id: str, after: int = 0) -> list[dict[str, Any]]:
    async with served.client(served.key) as http:
        answer = await http.get(f"/v1/builds/{build_id}/stream", params={"after": after})
    found = []
    for block in answer.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            found.append(
                {"event": lines["event"], "id": int(lines["id"]), **json.loads(lines["data"])}
            )
    return found


async def test_a_build(built: Served, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("1")
    async with built.client(built.key) as http:
        body = {"tags": ["mine", "mine:v1"], "dockerfile": "FROM base\nCOPY a /a\nRUN x\n"}
        made = await http.post("/v1/builds", json=body)
        assert made.status_code == 201
        assert made.json()["status"] == "waiting"
        build_id = made.json()["build_id"]
        context = gzip.compress(b"".join(pack(tree)))
        headers = {"content-encoding": "gzip"}
        sent = await http.put(f"/v1/builds/{build_id}/context", content=context, headers=headers)
        assert sent.status_code == 200, sent.text
        log = await events(built, build_id)
        assert [e["event"] for e in log][-1] == "end"
        assert log[-1]["status"] == "succeeded"
        assert await events(built, build_id, log[2]["id"]) == log[3:]
        done = (await http.get(f"/v1/builds/{build_id}")).json()
        assert (done["status"], done["step"], done["cached"]) == ("succeeded", 3, 0)
        again = await http.put(f"/v1/builds/{build_id}/context", content=context, headers=headers)
        assert again.status_code == 409
        template = (await http.get("/v1/templates/mine:v1")).json()
        assert template["tags"] == ["mine:latest", "mine:v1"]
        assert not template["shipped"]
        tagged = await http.post("/v1/templates/mine/tags", json={"name": "other"})
        assert tagged.json()["tags"][-1] == "other:latest"
        gone = await http.delete("/v1/templates/other")
        assert gone.json() == {"removed": ["other:latest"], "deleted": False}
        listed = (await http.get("/v1/builds", params={"status": "succeeded"})).json()
        assert [b["build_id"] for b in listed["items"]] == [build_id]
        told = (
            await http.post("/v1/templates/gc", params={"older_than": 0, "dry_run": True})
        ).json()
        assert told["layers"] == 2
    async with built.client(built.other_key) as http:
        for method, path in (
            ("GET", ""), ("DELETE", ""), ("PUT", "/context"), ("GET", "/stream"),
        ):  # fmt: skip
            answer = await http.request(method, f"/v1/builds/{build_id}{path}")
            assert (answer.status_code, answer.json()["error_code"]) == (404, "BUILD_NOT_FOUND")
        assert (await http.get("/v1/templates/mine")).status_code == 404


async def test_what_is_wrong_is_told_at_once(built: Served) -> None:
    async with built.client(built.key) as http:
        for body, code in (
            ({"tags": ["x"], "dockerfile": "FROM base\nRNU x\n"}, "DOCKERFILE_INVALID"),
            (
                {"tags": ["x"], "dockerfile": "FROM base\n", "roost_toml": "strat = 1"},
                "DOCKERFILE_INVALID",
            ),
            ({"tags": ["X X"], "dockerfile": "FROM base\n"}, "VALIDATION_FAILED"),
            ({"tags": [], "dockerfile": "FROM base\n"}, "VALIDATION_FAILED"),
            ({"tags": ["x"], "dockerfile": "FROM base\n", "nope": 1}, "VALIDATION_FAILED"),
        ):
            answer = await http.post("/v1/builds", json=body)
            assert (answer.status_code, answer.json()["error_code"]) == (422, code), answer.text
        assert (
            await http.post("/v1/builds", json=body | {"secrets": {"a": "hush-hush"}})
        ).text.find("hush") < 0


async def test_cancel(built: Served) -> None:
    async with built.client(built.key) as http:
        made = await http.post(
            "/v1/builds", json={"tags": ["x"], "dockerfile": "FROM base\nCOPY a /\n"}
        )
        path = f"/v1/builds/{made.json()['build_id']}"
        assert (await http.delete(path)).json()["status"] == "cancelled"
        assert (await http.delete(path)).json()["status"] == "cancelled"
        assert (await events(built, made.json()["build_id"]))[-1]["status"] == "cancelled"
