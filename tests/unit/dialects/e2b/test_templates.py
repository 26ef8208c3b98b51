"""E2B's way to a template: named, its files sent, built, called by names and tags."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from roost.dialects.e2b.control import names
from tests.unit.api.kit import Served

HASH = "c" * 64


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("base", "base"),
        ("team/mine", "mine"),
        ("mine:default", "mine"),
        ("team/mine:v1", "mine:v1"),
        ("code-interpreter-v1", "code-interpreter"),
    ],
)
def test_names_are_ours(theirs: str, ours: str) -> None:
    assert names.ours(theirs) == ours


def archive(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


async def send(e2b: httpx.AsyncClient, url: str, data: bytes) -> httpx.Response:
    """As its clients do: to the address they were told, without a key."""
    path = urlsplit(url)._replace(scheme="", netloc="").geturl()
    async with httpx.AsyncClient(base_url=str(e2b.base_url), trust_env=False) as nobody:
        return await nobody.put(path, content=data)


async def built(e2b: httpx.AsyncClient, name: str, **asked: Any) -> dict[str, Any]:
    """The last status of a build, with all it said."""
    told = (
        await e2b.post("/v3/templates", json={"name": name, "tags": asked.pop("tags", [])})
    ).json()
    one = f"/templates/{told['templateID']}/builds/{told['buildID']}"
    waiting = (await e2b.get(f"{one}/status")).json()
    assert waiting["status"] == "waiting"
    answer = await e2b.post(f"/v2{one}", json={"fromImage": "e2bdev/base", **asked})
    assert answer.status_code == 202, answer.text
    again = await e2b.post(f"/v2{one}", json={"fromImage": "e2bdev/base"})
    assert again.status_code == 409
    said: list[Any] = []
    while True:
        status = (await e2b.get(f"{one}/status", params={"logsOffset": len(said)})).json()
        said += status["logEntries"]
        if status["status"] in ("ready", "error") and not status["logEntries"]:
            return {**status, "said": said, **told}
        await asyncio.sleep(0.02)


async def test_a_template_from_nothing_to_a_sandbox(
    e2b: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    files = f"/templates/mine/files/{HASH}"
    there = await e2b.get(files)
    assert there.status_code == 201 and there.json()["present"] is False
    assert (
        await send(e2b, there.json()["url"], archive(app__a="1", app__b="2"))
    ).status_code == 200
    assert (await e2b.get(files)).json() == {"present": True}
    assert (await other.get(files)).json()["present"] is False, "everybody sends their own"

    found = await built(
        e2b,
        "mine",
        tags=["v1", "default"],
        steps=[
            {"type": "COPY", "args": ["app", "/srv"], "filesHash": HASH},
            {"type": "RUN", "args": ["make", "root"]},
        ],
    )
    assert found["status"] == "ready", found
    assert any("COPY" in each["message"] for each in found["said"])
    box = await e2b.post("/v2/sandboxes", json={"templateID": "mine"})
    assert box.status_code == 201 and box.json()["templateID"] == "mine"
    assert (await e2b.get("/templates/aliases/mine")).json()["templateID"] == "mine"
    assert (await other.get("/templates/aliases/mine")).status_code == 404
    assert (await e2b.get("/templates/aliases/none")).status_code == 404

    tags = (await e2b.get("/templates/mine/tags")).json()
    assert {each["tag"] for each in tags} == {"v1", "default"}
    given = await e2b.post("/templates/tags", json={"target": "mine:v1", "tags": ["new"]})
    assert given.status_code == 201 and given.json()["tags"] == ["new"]
    assert given.json()["buildID"] == tags[0]["buildID"]
    taken = await e2b.request("DELETE", "/templates/tags", json={"name": "mine", "tags": ["new"]})
    assert taken.status_code == 204
    tags = (await e2b.get(f"/templates/{quote('team/mine:v1', safe='')}/tags")).json()
    assert {each["tag"] for each in tags} == {"v1", "default"}
    listed = (await e2b.get("/templates")).json()
    assert "mine" in {each["templateID"] for each in listed}
    assert (await e2b.get("/templates/mine")).json()["builds"][0]["status"] == "ready"


async def test_a_build_that_fails_says_why(e2b: httpx.AsyncClient) -> None:
    found = await built(e2b, "broken", fromImage="", fromTemplate="no-such")
    assert found["status"] == "error" and "no-such" in found["reason"]["message"]
    told = (await e2b.post("/v3/templates", json={"name": "x"})).json()
    one = f"/v2/templates/x/builds/{told['buildID']}"
    missing = {"type": "COPY", "args": ["a", "b"], "filesHash": "d" * 64}
    answer = await e2b.post(one, json={"fromImage": "e2bdev/base", "steps": [missing]})
    assert answer.status_code == 404 and "send them again" in answer.json()["message"]
    assert (await e2b.post("/v3/templates", json={"name": "Not A Name"})).status_code == 400
    tags = {"name": "mine", "tags": [f"t{each}" for each in range(101)]}
    assert (await e2b.post("/v3/templates", json=tags)).status_code == 400
    assert (await e2b.get("/templates/x/builds/none/status")).status_code == 404


async def test_files_go_only_where_their_address_says(
    e2b: httpx.AsyncClient, served: Served
) -> None:
    url = (await e2b.get(f"/templates/mine/files/{HASH}")).json()["url"]
    assert (await send(e2b, url[:-1] + ("0" if url[-1] != "0" else "1"), b"")).status_code == 401
    assert (await send(e2b, "http://x/e2b/files?pass=nothing", b"")).status_code == 401
    assert (await send(e2b, "http://x/e2b/files", b"")).status_code == 401
    assert urlsplit(url).path == "/e2b/files", "paths are logged, and this lets in"
    for wrong in (b"no tar at all" * 100, gzip.compress(b"x" * 2000), archive(a="1")[:-9]):
        answer = await send(e2b, url, wrong)
        assert answer.status_code == 400, answer.text
    large = gzip.compress(bytes(2 << 20))
    assert (await send(e2b, url, large)).status_code == 413
    assert (await e2b.get(f"/templates/mine/files/{HASH}")).json()["present"] is False
    assert (await e2b.get("/templates/mine/files/..%2Fx")).status_code in (400, 404)
    assert list((served.directory / "build-files").glob("*/*")) == [], "no draft stays"
