from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from roost.errors import ConflictError, MachineError, NotFoundError
from roost.services.host import Host as HostService
from roost.services.templates import Templates
from tests.unit.engine.kit import TENANT, daemon, small, until


async def test_build_is_single_flight_and_everybody_hears(tmp_path: Path) -> None:
    async with daemon(tmp_path, build=False) as d:
        t = d.templates
        assert [(x.name, x.status) for x in await t.list(TENANT)] == [
            ("base", "unbuilt"),
            ("other", "unbuilt"),
        ]
        heard: list[list[str]] = [[], []]
        gate = d.host.recipes.hang("build")
        builds = [
            asyncio.ensure_future(t.build("base", progress=lambda *p, h=h: h.append(p[0])))
            for h in heard
        ]

        async def building() -> bool:
            return (await t.get(TENANT, "base")).status == "building"

        await until(building)
        with pytest.raises(ConflictError):
            await t.resolve(TENANT, "base")
        gate.set()
        one, two = await asyncio.gather(*builds)
        assert one == two
        assert one.image is not None
        assert d.host.recipes.calls["build"] == 1
        assert heard[0][-1] == heard[1][-1] == "done"
        await t.build("base")
        assert d.host.recipes.calls["build"] == 1


async def test_a_failed_build_keeps_the_image_before(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        t = d.templates
        before = await t.resolve(TENANT, "base")
        d.host.recipes.fail("build", RuntimeError("no network"))
        with pytest.raises(MachineError) as caught:
            await t.build("base", force=True)
        assert caught.value.code == "TEMPLATE_BUILD_FAILED"
        now = await t.get(TENANT, "base")
        assert now.status == "failed"
        assert "no network" in str(now.error)
        assert (await t.resolve(TENANT, "base")).digest == before.digest
        await d.machines.create(TENANT, small())


async def test_a_new_recipe_is_built_and_the_old_image_goes(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        before = await d.templates.resolve(TENANT, "base")
        d.host.recipes.digest, d.host.recipes.letter = "sha256:r2", "b"
        after = await d.templates.build("base")
        assert after.digest != before.digest
        assert after.id == before.id
        assert before.digest not in d.host.storage.list


async def test_an_image_a_failed_machine_needs_stays(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.host.driver.fail("start", MachineError("x"))
        with pytest.raises(MachineError):
            await d.machines.create(TENANT, small(key="k"))
        d.host.recipes.letter = "b"
        await d.templates.build("base", force=True)
        assert len(d.host.storage.list) == 2
        assert (await d.machines.ensure(TENANT, "k", small()))[0].phase == "running"


async def test_a_build_the_daemon_did_not_survive(tmp_path: Path) -> None:
    async with daemon(tmp_path, build=False) as d:
        d.host.recipes.hang("build")
        before = d.host.recipes.calls["build"]
        building = asyncio.ensure_future(d.templates.build("base"))
        async with asyncio.timeout(30):
            while d.host.recipes.calls["build"] == before:
                await asyncio.sleep(0.01)
        await d.templates.close()
        await asyncio.gather(building, return_exceptions=True)
        later = Templates(d.store, d.host.storage, d.host.clock, d.host.recipes)
        await later.open()
        assert (await later.get(TENANT, "base")).status == "failed"


async def test_a_lost_image_says_how_to_get_it_back(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        template = await d.templates.resolve(TENANT, "base")
        await d.host.storage.delete_image(template.digest or "")
        with pytest.raises(ConflictError) as caught:
            await d.templates.resolve(TENANT, "base")
        assert "--force" in caught.value.message
        with pytest.raises(NotFoundError):
            await d.templates.build("nope")


async def test_host_tells_what_it_is(tmp_path: Path) -> None:
    async def checks() -> list[dict[str, object]]:
        return [{"name": "root", "ok": True, "detail": "", "remedy": None}]

    async with daemon(tmp_path) as d:
        await d.machines.create(TENANT, small())
        described = await HostService(d.engine, d.engine.settings, "http://x", checks).describe()
        assert described["default_driver"] == "fake"
        assert described["capacity"]["machines_running"] == 1
        assert described["capacity"]["memory_mib"]["held"] == 64
        (rung,) = described["rungs"]
        assert (rung["level"], rung["available"]) == (2, True)
        assert described["checks"][0]["name"] == "root"
        assert described["stuck"] == []
