"""Builds on machines in memory: what is cached, what is named, what fails and what is left."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.errors import (
    CapacityError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    LimitError,
    MachineError,
    NotFoundError,
    RoostError,
    UnsupportedError,
)
from roost.services.builds import StartBuild
from roost.services.models import Build, CreateMachine
from roost.store import builds as rows
from roost.store import layers as layer_rows
from roost.store import templates as template_rows
from roost.templates.pack import pack
from tests.unit.engine.kit import OTHER, TENANT, Daemon, daemon, until


def asked(text: str, *tags: str, **more: Any) -> StartBuild:
    return StartBuild(tags=tags or ("mine",), dockerfile=text, **more)


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def build(
    d: Daemon, text: str, *tags: str, tree: Path | None = None, tenant: str = TENANT, **more: Any
) -> Build:
    """To its end."""
    made, waits = await d.builds.start(tenant, asked(text, *tags, **more))
    if waits:
        assert tree is not None
        await d.builds.give(tenant, made.id, _bytes(b"".join(pack(tree))))
    return await ended(d, made.id, tenant)


async def ended(d: Daemon, build_id: str, tenant: str = TENANT) -> Build:
    async for _ in await d.builds.follow(tenant, build_id):
        pass
    await until(lambda: build_id not in d.builds._open)
    return await d.builds.get(tenant, build_id)


async def log_of(d: Daemon, build_id: str) -> list[dict[str, Any]]:
    return [event async for _, event in await d.builds.follow(TENANT, build_id)]


def commands(d: Daemon) -> list[str]:
    return [request.argv[-1] for request in d.agents.started]


async def test_from_text_to_machine(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(
            d, "FROM base\nENV A=1\nRUN one\nUSER app\nRUN two\nEXPOSE 80\n", "mine", "mine:v1"
        )
        assert (made.status, made.step, made.steps, made.cached) == ("succeeded", 6, 6, 0)
        template = await d.templates.resolve(TENANT, "mine")
        assert template.tags == ("mine:latest", "mine:v1")
        assert template.config["env"] == {"FROM": "base", "A": "1"}
        assert template.config["user"] == "app"
        assert template.image is not None
        # The base's disk, then each step.
        assert template.image.path.read_text().splitlines()[-2:] == ["run one", "run two"]
        assert d.agents.started[0].user == ""
        assert d.agents.started[1].user == "app"
        machine = await d.machines.create(TENANT, CreateMachine(template="mine:v1", memory_mib=64))
        assert machine.image_digest == template.digest
        # Of the build's own machine nothing is left.
        assert set(d.host.driver.machines) == {machine.id}
        assert d.host.storage.disks == {machine.id}


async def test_what_did_not_change_does_not_run_again(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        before = await build(d, "FROM base\nRUN a\nRUN b\nRUN c\n")
        again = await build(d, "FROM base\nRUN a\nRUN b\nRUN c\n")
        assert again.cached == 3
        assert again.template_id == before.template_id
        assert commands(d) == ["a", "b", "c"]
        changed = await build(d, "FROM base\nRUN a\nRUN B\nRUN c\n")
        assert changed.cached == 1
        assert commands(d)[3:] == ["B", "c"]
        assert changed.digest != before.digest
        # The name moved; what it was before is there by digest.
        assert (await d.templates.get(TENANT, "mine")).id == changed.template_id
        old = await d.templates.get(TENANT, f"mine@{before.digest}")
        assert old.id == before.template_id
        await build(d, "FROM base\nRUN a\n", no_cache=True)
        assert commands(d)[5:] == ["a"]


async def test_metadata_alone_needs_no_machine(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nENV A=1\nCMD x\n")
        assert made.status == "succeeded"
        assert d.host.driver.calls["start"] == 0
        assert (await d.templates.get(TENANT, "mine")).config["start"] == "x"


async def test_copied_content_counts(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("1")
    (tree / "b").write_text("1")
    async with daemon(tmp_path) as d:
        text = "FROM base\nCOPY --chown=1:2 a /srv/\nRUN x\n"
        assert (await build(d, text, tree=tree)).status == "succeeded"
        (tree / "b").write_text("2")
        assert (await build(d, text, tree=tree)).cached == 2
        (tree / "a").write_text("2")
        assert (await build(d, text, tree=tree)).cached == 0
        assert [(path, owner) for path, owner, _ in d.agents.tars] == [("/srv", "1:2")] * 2
        assert list(d.host.storage.tmp.iterdir()) == []


async def test_a_missing_source_is_found_before_anything_runs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nRUN long\nCOPY nope /x\n", tree=tree)
        assert made.status == "failed"
        assert made.error is not None
        assert made.error["error_code"] == "DOCKERFILE_INVALID"
        assert made.error["details"]["line"] == 3
        assert commands(d) == []


async def test_a_tenants_layers_are_its_own(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await build(d, "FROM base\nRUN a\n")
        other = await build(d, "FROM base\nRUN a\n", tenant=OTHER)
        assert other.cached == 0
        for call in (d.builds.get, d.builds.cancel, d.builds.follow):
            with pytest.raises(NotFoundError):
                await call(TENANT, other.id)
        with pytest.raises(NotFoundError):
            await d.templates.get(TENANT, other.template_id or "")
        with pytest.raises(NotFoundError):
            await d.templates.get(TENANT, f"mine@sha256:{'0' * 64}")


async def test_a_step_that_fails_says_which(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nRUN a\n\nRUN exit 7\nRUN b\n")
        assert made.status == "failed"
        error = made.error
        assert error is not None
        assert error["error_code"] == "TEMPLATE_BUILD_FAILED"
        assert {k: error["details"][k] for k in ("step", "line", "command", "exit_code")} == {
            "step": 3,
            "line": 4,
            "command": "RUN exit 7",
            "exit_code": 7,
        }
        assert "ran exit 7" in error["details"]["output"]
        with pytest.raises(NotFoundError):
            await d.templates.get(TENANT, "mine")
        assert {t.tenant_id for t in await d.templates.list(TENANT, unnamed=True)} == {None}
        assert not d.host.driver.machines
        # What went well is cached.
        assert (await build(d, "FROM base\nRUN a\n")).cached == 1
        assert [e["event"] for e in await log_of(d, made.id)][-1] == "end"


async def test_the_machine_of_a_failed_step_is_kept(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nENV A=1\nRUN exit 1\n", keep_failed=True)
        assert made.machine_id is not None
        machine = await d.machines.get(TENANT, made.machine_id)
        assert (machine.phase, machine.env["A"]) == ("running", "1")
        assert made.machine_id in str(made.error)
        await d.machines.delete(TENANT, machine.id)
        # The row its config came from goes with gc.
        assert (
            len(await d.templates.list(TENANT, unnamed=True))
            == len(await d.templates.list(TENANT)) + 1
        )
        assert len((await d.builds.gc(TENANT, 0))["templates"]) == 1


async def test_a_machine_that_is_too_much_is_not_kept(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await d.quota(TENANT, machines=0)
        made = await build(d, "FROM base\nRUN exit 1\n", keep_failed=True)
        assert made.machine_id is None
        assert not d.host.driver.machines


async def test_a_step_that_takes_too_long(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nRUN hang\n")
        assert "did not end within" in str(made.error)


async def test_cancel(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.agents.hang("attach")
        made, _ = await d.builds.start(TENANT, asked("FROM base\nRUN a\n"))
        await until(lambda: d.agents.calls["attach"])
        assert (await d.builds.get(TENANT, made.id)).status == "running"
        assert (await d.builds.cancel(TENANT, made.id)).status == "cancelled"
        assert (await d.builds.cancel(TENANT, made.id)).status == "cancelled"
        assert not d.host.driver.machines
        assert not d.host.storage.disks
        with pytest.raises(NotFoundError):
            await d.templates.get(TENANT, "mine")


async def test_cancel_of_one_that_waits(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made, waits = await d.builds.start(TENANT, asked("FROM base\nCOPY a /b\n"))
        assert waits
        assert (await d.builds.cancel(TENANT, made.id)).status == "cancelled"
        with pytest.raises(ConflictError):
            await d.builds.give(TENANT, made.id, _bytes(b"x"))


async def test_so_many_at_a_time(tmp_path: Path) -> None:
    async with daemon(tmp_path, builds_at_once=1) as d:
        d.agents.hang("attach")
        one, _ = await d.builds.start(TENANT, asked("FROM base\nRUN a\n"))
        two, _ = await d.builds.start(TENANT, asked("FROM base\nRUN b\n"))
        await until(lambda: d.agents.calls["attach"])
        assert (await d.builds.get(TENANT, two.id)).status == "queued"
        d.agents.hangs.pop("attach").set()
        assert (await ended(d, one.id)).status == "succeeded"
        assert (await ended(d, two.id)).status == "succeeded"


async def test_too_many_of_one_tenant(tmp_path: Path) -> None:
    async with daemon(tmp_path, tenant_templates=1) as d:
        for _ in range(20):
            await d.builds.start(TENANT, asked("FROM base\nCOPY a /b\n"))
        with pytest.raises(LimitError):
            await d.builds.start(TENANT, asked("FROM base\n"))
        await build(d, "FROM base\n", tenant=OTHER)
        with pytest.raises(LimitError) as caught:
            await d.builds.start(OTHER, asked("FROM base\n"))
        assert caught.value.code == "QUOTA_EXCEEDED"


async def test_a_context_that_is_none(tmp_path: Path) -> None:
    async with daemon(tmp_path, build_context_mib=1) as d:
        made, _ = await d.builds.start(TENANT, asked("FROM base\nCOPY a /b\n"))
        for data, code in ((b"x" * 2000, "INVALID_BODY"), (b"x" * (1 << 21), "PAYLOAD_TOO_LARGE")):
            with pytest.raises(InvalidRequestError) as caught:
                await d.builds.give(TENANT, made.id, _bytes(data))
            assert caught.value.code == code
        assert (await d.builds.get(TENANT, made.id)).status == "waiting"
        assert list(d.host.storage.tmp.iterdir()) == []


async def test_secrets_are_there_for_a_step_and_nowhere_after(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        text = (
            "FROM base\nRUN --mount=type=secret,id=a cat /run/secrets/a\n"
            "RUN --mount=type=secret,id=b,env=SAY x\n"
            "RUN --mount=type=secret,id=a,target=/root/.a exit 1\n"
        )
        given = {"a": "the-value-of-a", "b": "the-value-of-b"}
        made = await build(d, text, secrets=given)
        assert made.status == "failed"
        said = (d.builds._directory / f"{made.id}.jsonl").read_text()
        row = await d.store.read(lambda c: rows.get(c, made.id))
        for value in given.values():
            assert value not in said
            assert value not in str(dict(row or {}))
        assert "**************" in said
        assert not d.agents.written
        # The link to it lay on the disk, its value did not.
        ((path, _, tar),) = d.agents.tars
        assert path == "/root"
        assert b"the-value" not in tar
        # Values do not count: another one is answered by the same layers.
        again = await build(
            d, "\n".join(text.split("\n")[:3]), secrets={"a": "another", "b": "one"}
        )
        assert again.cached == 2


async def test_a_secret_hides_nothing_that_is_there(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.agents.written["/root/.a"] = b"mine"
        text = "FROM base\nRUN --mount=type=secret,id=a,target=/root/.a x\n"
        made = await build(d, text, secrets={"a": "a-secret"})
        assert "something is" in str(made.error)
        assert d.agents.written == {"/root/.a": b"mine"}


async def test_a_secret_that_must_be_there(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nRUN --mount=type=secret,id=a,required=true x\n")
        assert "--secret id=a" in str(made.error)
        assert (await build(d, "FROM base\nRUN --mount=type=secret,id=a x\n")).status == "succeeded"


async def test_wrong_requests(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        for request in (
            asked("FROM base\n", "Bad Name"),
            asked("FROM base\n", "a@sha256:" + "0" * 64),
            asked("FROM base\nRNU\n"),
            asked("FROM base\n", roost_toml="strat = 1"),
            asked("FROM base\n", args={"A B": "c"}),
            asked("FROM base\n", secrets={"a": ""}),
            asked("FROM base\n", driver="nope"),
        ):
            with pytest.raises(InvalidRequestError):
                await d.builds.start(TENANT, request)
        made = await build(d, "FROM nope\nRUN a\n")
        assert "docker://nope" in str(made.error)
        assert "line 1" in str(made.error)
        made = await build(d, "FROM docker://debian:12\nRUN a\n")
        assert made.status == "failed"


async def test_from_a_template_and_a_snapshot(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        parent = await build(d, "FROM base\nENV P=1\nRUN a\nCMD serve\n", "parent")
        child = await build(d, "FROM parent\nRUN b\n", "child")
        template = await d.templates.get(TENANT, "child")
        assert template.parent_id == parent.template_id
        assert (template.config["env"]["P"], template.config["start"]) == ("1", "serve")
        assert child.status == "succeeded"
        machine = await d.machines.create(TENANT, CreateMachine(template="child", memory_mib=64))
        await d.snapshots.create(TENANT, machine.id, "snap")
        made = await build(d, "FROM snapshot:snap\nRUN c\n", "from-snap")
        assert made.status == "succeeded", made.error
        assert (await build(d, "FROM snapshot:snap\nRUN c\n", "from-snap")).cached == 1
        assert (await build(d, "FROM snapshot:nope\n")).error["error_code"] == "SNAPSHOT_NOT_FOUND"  # type: ignore[index]


async def test_what_a_microvm_wrote_is_not_mounted(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await build(d, "FROM base\nRUN a\n", "parent")
        template = await d.templates.resolve(TENANT, "parent")
        assert template.image is not None
        raw = dataclasses.replace(template.image, raw_written=True)
        d.host.storage.list[raw.digest] = raw
        d.templates._images.clear()
        made = await build(d, "FROM parent\nRUN b\n", "child")
        assert made.error is not None
        assert made.error["error_code"] == UnsupportedError.default_code
        assert "--driver qemu" in made.error["message"]


async def test_a_layer_that_a_microvm_wrote_is_made_anew_where_it_is_to_be_mounted(
    tmp_path: Path,
) -> None:
    async with daemon(tmp_path) as d:
        await build(d, "FROM base\nRUN a\nRUN b\n")
        for each in await d.store.read(layer_rows.every):
            image = d.host.storage.list[each["digest"]]
            d.host.storage.list[image.digest] = dataclasses.replace(image, raw_written=True)
        made = await build(d, "FROM base\nRUN a\nRUN c\n")
        assert (made.status, made.cached) == ("succeeded", 0)
        assert commands(d)[2:] == ["a", "c"]


# --- names ----------------------------------------------------------------------------------------


async def test_names(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await build(d, "FROM base\nRUN a\n", "mine")
        t = d.templates
        one = await t.get(TENANT, "mine")
        assert (await t.tag(TENANT, "mine", "alias:v2")).id == one.id
        assert (await t.get(TENANT, "alias:v2")).tags == ("alias:v2", "mine:latest")
        with pytest.raises(NotFoundError):
            await t.get(TENANT, "alias")
        assert await t.delete(TENANT, "mine") == (["mine:latest"], False)
        machine = await d.machines.create(TENANT, CreateMachine(template=one.id, memory_mib=64))
        with pytest.raises(ConflictError) as caught:
            await t.delete(TENANT, "alias:v2")
        assert caught.value.details["used_by"] == [{"kind": "machine", "id": machine.id}]
        await d.machines.delete(TENANT, machine.id)
        await build(d, "FROM alias:v2\nRUN b\n", "child")
        with pytest.raises(ConflictError, match="template"):
            await t.delete(TENANT, one.id)
        await t.delete(TENANT, "child")
        assert await t.delete(TENANT, f"alias@{one.digest}") == (["alias:v2"], True)
        with pytest.raises(NotFoundError):
            await t.get(TENANT, one.id)
        with pytest.raises(ForbiddenError):
            await t.delete(TENANT, "base")


async def test_a_name_of_a_shipped_one_stays_what_it_was(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        base = await d.templates.get(TENANT, "base")
        mine = await d.templates.tag(TENANT, "base", "base:pinned")
        assert (mine.tenant_id, mine.digest) == (TENANT, base.digest)
        d.host.recipes.letter = "b"
        await d.templates.build("base", force=True)
        assert (await d.templates.resolve(TENANT, "base:pinned")).digest == base.digest
        assert (await d.templates.resolve(TENANT, "base")).digest != base.digest


async def test_machines_keep_what_they_were_promised(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await build(d, "FROM base\nENV V=1\n", "mine")
        machine = await d.machines.create(TENANT, CreateMachine(template="mine", memory_mib=64))
        await build(d, "FROM base\nENV V=2\n", "mine")
        await d.machines.sleep(TENANT, machine.id)
        assert (await d.machines.awake(TENANT, machine.id)).config["env"]["V"] == "1"
        assert (await d.builds.gc(TENANT, 0))["templates"] == []


# --- what is left -------------------------------------------------------------------------------


async def test_gc(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        await build(d, "FROM base\nRUN a\n")
        await build(d, "FROM base\nRUN b\n")
        images = len(d.host.storage.list)
        assert (await d.builds.gc(TENANT, 3600))["layers"] == 0
        told = await d.builds.gc(TENANT, 0, dry_run=True)
        assert (len(told["templates"]), told["layers"], told["builds"]) == (1, 2, 2)
        assert len(d.host.storage.list) == images
        done = await d.builds.gc(TENANT, 0)
        assert {**done, "dry_run": True} == told
        assert len(d.host.storage.list) == images - 3
        assert (await d.templates.resolve(TENANT, "mine")).image is not None
        assert (await d.builds.list(TENANT)).items == []


async def test_the_cache_is_bounded(tmp_path: Path) -> None:
    async with daemon(tmp_path, build_cache_gib=2) as d:  # a layer is 1 GiB here
        for each in "abcd":
            await build(d, f"FROM base\nRUN {each}\n")
        await d.builds.collect()
        assert (await build(d, "FROM base\nRUN d\n")).cached == 1
        assert (await build(d, "FROM base\nRUN a\n")).cached == 0


async def test_the_cache_is_bounded_while_one_builds(tmp_path: Path) -> None:
    async with daemon(tmp_path, build_cache_gib=0) as d:
        sealing = asyncio.Event()
        plain = d.builds._seal

        async def seal(*args: Any) -> Any:
            await sealing.wait()
            return await plain(*args)

        d.builds._seal = seal
        made, _ = await d.builds.start(TENANT, asked("FROM base\nRUN a\n"))
        await until(lambda: any(i.kind == "layer" for i in d.host.storage.list.values()))
        await until(lambda: d.agents.calls["shutdown"] and not d.host.driver.machines)
        await d.builds.collect()
        assert await d.store.read(layer_rows.every) == []
        sealing.set()
        assert (await ended(d, made.id)).status == "succeeded"
        assert all(i.kind != "layer" for i in d.host.storage.list.values())


async def test_a_daemon_that_was_killed(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        now = d.engine.clock.now()
        values = {
            "tenant_id": TENANT, "tags": ["x:latest"], "status": "running", "step": 1, "steps": 2, "cached": 0,
            "created_at": now, "template_id": "t" * 26,
        }  # fmt: skip
        row = {
            "id": "t" * 26, "tenant_id": TENANT, "name": "x", "status": "building", "config": {}, "created_at": now,
            "updated_at": now,
        }  # fmt: skip
        await d.store.write(lambda c: rows.insert(c, {"id": "b" * 26, **values}))
        await d.store.write(lambda c: template_rows.insert(c, row))
        (d.builds._directory / f"{'b' * 26}.jsonl").write_text('{"event":"step"}\n')
        (d.builds._directory / f"{'z' * 26}.jsonl").write_text("")
        stray = d.host.storage.add_image("9")
        d.host.storage.list[stray.digest] = dataclasses.replace(stray, kind="layer")
        await d.builds.open()
        found = await d.builds.get(TENANT, "b" * 26)
        assert found.status == "failed"
        assert (await log_of(d, "b" * 26))[-1]["status"] == "failed"
        assert stray.digest not in d.host.storage.list
        assert not (d.builds._directory / f"{'z' * 26}.jsonl").exists()
        with pytest.raises(NotFoundError):
            await d.templates.get(TENANT, "t" * 26)


async def test_a_kept_machine_keeps_its_template_when_the_daemon_is_killed(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nRUN exit 1\n", keep_failed=True)
        assert made.machine_id is not None
        machine = await d.machines.get(TENANT, made.machine_id)
        # As it was when the machine was handed over and nothing said so yet.
        began = {"status": "running", "template_id": machine.template_id, "machine_id": None}
        await d.store.write(lambda c: rows.update(c, made.id, began))
        await d.store.write(
            lambda c: template_rows.update(c, machine.template_id, {"status": "building"})
        )
        await d.builds.open()
        assert (await d.builds.get(TENANT, made.id)).machine_id == machine.id
        assert (await d.templates.get(TENANT, machine.template_id)).status == "failed"


async def test_a_daemon_killed_at_the_end_takes_no_template_with_it(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nRUN a\n")
        assert made.template_id is not None
        await d.store.write(lambda c: rows.update(c, made.id, {"status": "running"}))
        await d.builds.open()
        assert (await d.templates.get(TENANT, "mine")).id == made.template_id


async def test_a_cancel_that_comes_too_late(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made, _ = await d.builds.start(TENANT, asked("FROM base\nRUN a\n"))
        each = d.builds._open[made.id]
        before = template_rows.put_tag
        named = threading.Event()

        def put_tag(*args: Any) -> None:
            before(*args)
            named.set()
            time.sleep(0.2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(template_rows, "put_tag", put_tag)
            await until(named.is_set)
            assert (await d.builds.cancel(TENANT, made.id)).status == "succeeded"
        assert each.ended
        assert (await d.templates.resolve(TENANT, "mine")).status == "ready"


async def test_what_cannot_be_written_ends_a_build_too(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.agents.hang("attach")
        made, _ = await d.builds.start(TENANT, asked("FROM base\nRUN a\n"))
        await until(lambda: d.agents.calls["attach"])
        with pytest.MonkeyPatch.context() as patch:

            def full(*args: Any) -> None:
                raise CapacityError("full", code="STORAGE_FULL")

            patch.setattr(template_rows, "delete", full)
            await d.builds.cancel(TENANT, made.id)
        assert made.id not in d.builds._open
        assert (await log_of(d, made.id))[-1]["event"] == "end"


async def test_a_cancel_while_its_context_comes(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made, _ = await d.builds.start(TENANT, asked("FROM base\nCOPY a /b\n"))
        going = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b""
            await going.wait()
            yield b"\0" * 1024

        giving = asyncio.ensure_future(d.builds.give(TENANT, made.id, slow()))
        await until(lambda: d.builds._open[made.id].receiving)
        assert (await d.builds.cancel(TENANT, made.id)).status == "cancelled"
        going.set()
        with pytest.raises(ConflictError):
            await giving
        assert (await d.builds.get(TENANT, made.id)).status == "cancelled"
        assert list(d.host.storage.tmp.iterdir()) == []


async def test_a_cached_build_writes_little(tmp_path: Path) -> None:
    """Each write is a sync of the disk."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_text("1")
    text = "FROM base\nCOPY a /srv/\n" + "".join(f"RUN {each}\n" for each in "abcdef")
    async with daemon(tmp_path) as d:
        await build(d, text, tree=tree)
        writes = 0
        plain = d.store.write

        async def write(fn: Any) -> Any:
            nonlocal writes
            writes += 1
            return await plain(fn)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(d.store, "write", write)
            made = await build(d, text, tree=tree)
        assert (made.status, made.step, made.cached) == ("succeeded", 8, 7)
        # It is asked for, begins, finds its layer, and ends.
        assert writes == 4


async def test_a_cancelled_step_leaves_no_image(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        images = set(d.host.storage.list)
        keeping = d.host.storage.hang("keep_image")
        made, _ = await d.builds.start(TENANT, asked("FROM base\nRUN a\n"))
        await until(lambda: d.host.storage.calls["keep_image"])
        cancelling = asyncio.ensure_future(d.builds.cancel(TENANT, made.id))
        await asyncio.sleep(1)
        keeping.set()
        await cancelling
        await until(lambda: not d.host.driver.machines)
        kept = set(d.host.storage.list) - images
        assert kept == {row["digest"] for row in await d.store.read(layer_rows.every)}
        assert list(d.host.storage.tmp.iterdir()) == []


async def test_two_builds_of_the_same_need_not_wait_for_each_other(tmp_path: Path) -> None:
    async with daemon(tmp_path, builds_at_once=2) as d:
        plain, meet = d.builds._seal, asyncio.Barrier(2)

        async def seal(*args: Any) -> Any:
            async with asyncio.timeout(20):
                await meet.wait()  # each has kept its last layer: one of them is nobody's any more
            assert args[0].path.exists()
            return await plain(*args)

        d.builds._seal = seal
        made = [await d.builds.start(TENANT, asked("FROM base\nRUN a\n")) for _ in range(2)]
        ends = [await ended(d, each.id) for each, _ in made]
        assert [each.status for each in ends] == ["succeeded"] * 2
        # Of what each used alone nothing is left when its end is told.
        layers = await d.store.read(layer_rows.every)
        kept = {each.digest for each in d.host.storage.list.values() if each.kind == "layer"}
        assert kept == {row["digest"] for row in layers}


async def test_old_builds_are_forgotten(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\n")
        later = d.engine.clock.now() - timedelta(days=8)
        await d.store.write(lambda c: rows.update(c, made.id, {"ended_at": later}))
        await d.builds.collect()
        with pytest.raises(NotFoundError):
            await d.builds.get(TENANT, made.id)


async def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made = await build(d, "FROM base\nRUN a\n")
        whole = [pair async for pair in await d.builds.follow(TENANT, made.id)]
        place = whole[2][0]
        rest = [pair async for pair in await d.builds.follow(TENANT, made.id, place)]
        assert rest == whole[3:]
        # A place that is none is not taken for one.
        assert [p async for p in await d.builds.follow(TENANT, made.id, place - 1)] == whole[3:]


async def test_builds_do_not_wait_for_who_listens(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        made, _ = await d.builds.start(TENANT, asked("FROM base\nRUN a\n"))
        listening = await d.builds.follow(TENANT, made.id)
        await anext(listening)
        await until(lambda: made.id not in d.builds._open)
        await listening.aclose()
        await asyncio.sleep(0)
        assert (await d.builds.get(TENANT, made.id)).status == "succeeded"


async def test_errors_of_agents_are_the_steps(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.agents.fail("start", RoostError("no such user", code="USER_NOT_FOUND"))
        made = await build(d, "FROM base\nUSER nobody-here\nRUN a\n")
        assert made.error is not None
        assert made.error["details"]["cause"] == "USER_NOT_FOUND"
        assert "no such user" in made.error["message"]


async def test_no_row_has_what_is_secret(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        d.agents.fail("start", RoostError("no such hunter2-hunter2", code="USER_NOT_FOUND"))
        secrets = {"s": "hunter2-hunter2"}
        made = await build(d, "FROM base\nRUN a\n", secrets=secrets, keep_failed=True)
        assert made.machine_id is not None
        left = [t.error for t in await d.templates.list(TENANT, unnamed=True) if t.error]
        assert left
        assert "hunter2-hunter2" not in str([made.error, left])


async def test_what_is_secret_is_bounded_and_read_beside_the_loop(tmp_path: Path) -> None:
    """What finds 64 KiB again takes seconds to be made: 50 of them were minutes, in which nobody was served."""
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 10_000)))
    async with daemon(tmp_path) as d:
        for wrong in (
            {"secrets": {"a": text, "b": text, "c": text}},
            {"secrets": {"a": text}, "credentials": {"r.example": {"username": "u", "password": text * 2}}},
            {"secrets": {"a": "\ud800"}},
            {"secrets": {}, "credentials": {"r.example": {"username": "u", "password": "\ud800"}}},
        ):  # fmt: skip
            with pytest.raises(InvalidRequestError) as caught:
                await d.builds.start(TENANT, asked("FROM base\n", **wrong))
            assert caught.value.code == "VALIDATION_FAILED"
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                begun = time.thread_time()
                await asyncio.sleep(0.01)
                longest = max(longest, time.thread_time() - begun)

        watching = asyncio.ensure_future(watch())
        begun = time.monotonic()
        await d.builds.start(TENANT, asked("FROM base\n", secrets={"a": text[:4000]}))
        watching.cancel()
        assert longest < max(0.5, (time.monotonic() - begun) / 2)


# --- recipes of the installation --------------------------------------------------------------------


async def test_a_shipped_dockerfile_is_built_after_what_it_begins_from(tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    for name, text in {"one": "FROM base\nRUN a\n", "two": "FROM one\nCOPY f /f\nRUN b\n"}.items():
        (recipes / name).mkdir(parents=True)
        (recipes / name / "Dockerfile").write_text(text)
    (recipes / "two/f").write_text("x")
    (recipes / "two/roost.toml").write_text('start = "serve"\n')
    async with daemon(tmp_path, build=False) as d:
        plain = d.host.recipes.recipe

        def recipe(name: str) -> Any:
            if name == "base":
                return plain(name)
            parent = {"one": "base", "two": "one"}[name]
            return SimpleNamespace(
                name=name,
                digest=f"sha256:{name}",
                config={},
                dockerfile=recipes / name / "Dockerfile",
                parents=(parent,),
            )

        d.host.recipes.recipe = recipe  # type: ignore[method-assign]
        d.host.recipes.names = lambda: ["base", "one", "two"]  # type: ignore[method-assign]
        heard: list[str] = []
        made = await d.templates.build("two", progress=lambda *said: heard.append(said[0]))
        assert d.host.recipes.calls["build"] == 1
        assert commands(d) == ["a", "b"]
        assert (made.tenant_id, made.config["start"]) == (None, "serve")
        assert made.parent_id == (await d.templates.get(TENANT, "one")).id
        assert "one: 2/2" in heard
        # Tenants use it; its layers are nobody's, so they are not theirs.
        assert (await build(d, "FROM two\nRUN c\n")).status == "succeeded"
        assert (await build(d, "FROM base\nRUN a\n", "mine2")).cached == 0
        made = await d.templates.build("two", force=True)
        assert commands(d)[-1:] == ["b"]
        (recipes / "two/Dockerfile").write_text("FROM one\nRUN exit 3\n")
        with pytest.raises(MachineError) as caught:
            await d.templates.build("two", force=True)
        assert caught.value.details["line"] == 2
        assert (await d.templates.resolve(TENANT, "two")).digest == made.digest
        assert (await d.templates.get(TENANT, "two")).status == "failed"
        assert not list(d.host.storage.tmp.iterdir())
        assert not list(d.builds._directory.glob("*.jsonl")) or all(
            [await d.builds.get(TENANT, path.stem) for path in d.builds._directory.glob("*.jsonl")]
        )
