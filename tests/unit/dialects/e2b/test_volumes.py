"""Volumes, and machines that are made for the files in them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from unittest.mock import AsyncMock

import httpx
import pytest

from roost.services import volume_files
from roost.services.volume_files import LABEL, Reached
from tests.unit.api.kit import TENANT, Served


async def test_a_volume_and_its_token(
    e2b: httpx.AsyncClient, other: httpx.AsyncClient, served: Served
) -> None:
    made = await e2b.post("/volumes", json={"name": "data"})
    assert made.status_code == 201
    volume = made.json()
    one = f"/volumes/{volume['volumeID']}"
    assert (await e2b.get(one)).json() == volume
    assert (await e2b.get("/volumes")).json() == [{"volumeID": volume["volumeID"], "name": "data"}]
    assert (await other.get(one)).status_code == 404
    assert (await e2b.post("/volumes", json={"name": "data"})).status_code == 409
    content = f"/volumecontent/{volume['volumeID']}/path"
    second = (await e2b.post("/volumes", json={"name": "more"})).json()
    async with httpx.AsyncClient(base_url=served.url, trust_env=False) as nobody:
        for token in ("x", second["token"], volume["token"] + "0", "vol-zz-00"):
            answer = await nobody.get(content, headers={"authorization": f"Bearer {token}"})
            assert (answer.status_code, answer.json()["code"]) == (401, 401), token
    assert (await e2b.delete(one)).status_code == 204
    assert (await e2b.delete(one)).status_code == 404


async def test_a_machine_is_made_for_its_files_and_gives_way(
    e2b: httpx.AsyncClient, served: Served
) -> None:
    volume = (await e2b.post("/volumes", json={"name": "data"})).json()
    files = served.services.volume_files
    kept = await files.reach(TENANT, volume["volumeID"])
    assert await files.reach(TENANT, "data") == kept, "one is enough"
    keeper = await served.machines.get(TENANT, kept.machine_id)
    assert LABEL in keeper.labels and keeper.egress.mode == "off" and keeper.ttl_seconds
    assert (await e2b.get("/v2/sandboxes")).json() == [], "it is no sandbox"

    mounts = [{"name": "data", "path": "/data"}]
    box = await e2b.post("/v2/sandboxes", json={"templateID": "base", "volumeMounts": mounts})
    assert box.status_code == 201, box.text
    reached = await files.reach(TENANT, "data")
    assert (reached.machine_id, reached.path) == (box.json()["sandboxID"], "/data")
    again = await e2b.post("/v2/sandboxes", json={"templateID": "base", "volumeMounts": mounts})
    assert again.status_code == 409
    info = (await e2b.get(f"/sandboxes/{box.json()['sandboxID']}")).json()
    assert info["volumeMounts"] == mounts
    assert (await e2b.delete(f"/volumes/{volume['volumeID']}")).status_code == 409
    await e2b.delete(f"/sandboxes/{box.json()['sandboxID']}")
    await files.reach(TENANT, "data")
    assert (await e2b.delete(f"/volumes/{volume['volumeID']}")).status_code == 204


async def test_a_keeper_stays_while_a_long_file_comes(
    e2b: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = (await e2b.post("/volumes", json={"name": "data"})).json()
    files = served.services.volume_files
    kept = await files.reach(TENANT, volume["volumeID"])
    assert kept.kept
    monkeypatch.setattr(volume_files, "TTL_S", 100)

    async def slowly() -> AsyncGenerator[bytes, None]:
        yield b"a"
        monkeypatch.setattr(volume_files, "TTL_S", 0)  # so that any time is long
        yield b"b"

    long = files.during(TENANT, kept, slowly())
    monkeypatch.setattr(files, "_stay", stayed := AsyncMock())
    assert [piece async for piece in long] == [b"a", b"b"]
    stayed.assert_awaited_once_with(TENANT, kept.machine_id)
    own = Reached("m", "/data")  # a user's machine has its own end
    stayed.reset_mock()
    assert [piece async for piece in files.during(TENANT, own, slowly())] == [b"a", b"b"]
    stayed.assert_not_awaited()
