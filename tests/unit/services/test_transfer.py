"""Templates and snapshots as one file: who waits for whom, what is left, and whatever a file says, it costs its sender alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.errors import CapacityError, InvalidRequestError, LimitError, RoostError
from roost.services import transfer
from roost.services.transfer import AT_ONCE, Transfers
from roost.storage import parcel
from roost.storage.parcel import Part
from tests.unit.engine.kit import OTHER, TENANT, daemon, until


def packed(tmp_path: Path, **machine: Any) -> bytes:
    disk = tmp_path / "sent"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(0)
        for _ in range(40):  # 160 MiB, and next to nothing of them in the file
            file.write(b"x" * parcel.PIECE)
    said = {
        "image_digest": f"sha256:{'0' * 64}", "template": "base", "driver": "fake", "vcpu": 1.0, "memory_mib": 64,
        "storage_gib": 1, "env": {}, **machine,
    }  # fmt: skip
    manifest = {"machine": said, "raw_written": False}
    return b"".join(parcel.pack(manifest, [Part("disk", disk)]))


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_quotas_are_asked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon(tmp_path) as d:
        transfers = Transfers(d.engine, d.templates)
        await d.quota(TENANT, storage_gib=0)
        monkeypatch.setattr(d.host.storage, "begin_snapshot", None)
        with pytest.raises(LimitError) as caught:
            await transfers.import_snapshot(TENANT, once(packed(tmp_path)), trusted=True)
        assert caught.value.code == "QUOTA_EXCEEDED"
        assert not d.host.storage.kept


async def test_a_small_file_does_not_fill_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon(tmp_path) as d:
        transfers = Transfers(d.engine, d.templates)
        asked: list[int] = []

        async def require(count: int) -> None:
            asked.append(count)
            if sum(asked) > 2 * parcel.ROOM:
                raise CapacityError("full", code="STORAGE_FULL")

        data = packed(tmp_path)
        assert len(data) < 1 << 20
        monkeypatch.setattr(d.host.storage, "require", require)
        with pytest.raises(RoostError, match="full"):
            await transfers.import_snapshot(TENANT, once(data), trusted=True)
        assert not d.host.storage.kept


@pytest.mark.parametrize("said", [{"template": "a\x1b[2J"}, {"template": "\ud800"}, {"driver": 7}])
async def test_what_it_says_of_itself_is_plain(tmp_path: Path, said: dict[str, Any]) -> None:
    async with daemon(tmp_path) as d:
        with pytest.raises(InvalidRequestError) as caught:
            data = once(packed(tmp_path, **said))
            await Transfers(d.engine, d.templates).import_snapshot(TENANT, data, trusted=True)
        assert caught.value.code == "INVALID_BODY"


async def test_who_sends_slowly_holds_up_nobody_else(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        transfers = Transfers(d.engine, d.templates)
        begun = 0

        async def never() -> AsyncIterator[bytes]:
            nonlocal begun
            begun += 1
            yield b"x"
            await asyncio.Event().wait()

        stalled = [
            asyncio.ensure_future(transfers.import_snapshot(OTHER, never()))
            for _ in range(AT_ONCE + 1)
        ]
        await until(lambda: begun == AT_ONCE)
        async with asyncio.timeout(10):
            with pytest.raises(InvalidRequestError):
                await transfers.import_snapshot(TENANT, once(b"nothing"))
        assert begun == AT_ONCE
        for each in stalled:
            each.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)


async def test_who_reads_slowly_keeps_nobody_waiting() -> None:
    turns = asyncio.Semaphore(1)
    slow = transfer._threaded(iter([b"1", b"2"]), turns)
    assert await anext(slow) == b"1"
    async with asyncio.timeout(30):
        assert [each async for each in transfer._threaded(iter([b"3"]), turns)] == [b"3"]
    assert [each async for each in slow] == [b"2"]


async def test_an_import_that_is_cancelled_keeps_row_and_files_or_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daemon(tmp_path) as d:
        transfers = Transfers(d.engine, d.templates)
        keeping, going, written = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def fitted(*args: Any) -> dict[str, Any]:
            return {"storage_gib": 1}

        async def put(snapshot_id: str, *args: Any) -> int:
            await d.host.storage.begin_snapshot(snapshot_id)
            return 0

        async def keep(*args: Any) -> None:
            keeping.set()
            await going.wait()
            written.set()

        async def nothing() -> AsyncIterator[bytes]:
            yield b""

        wanted = SimpleNamespace(memory=None, host="", config={})
        monkeypatch.setattr(transfer, "Parcel", lambda path: None)
        monkeypatch.setattr(transfer, "_Wanted", lambda sent: wanted)
        for name, fake in {"_fitted": fitted, "_put": put, "_keep": keep}.items():
            monkeypatch.setattr(transfers, name, fake)
        importing = asyncio.ensure_future(transfers.import_snapshot(TENANT, nothing()))
        await keeping.wait()
        importing.cancel()
        await asyncio.wait({importing})
        going.set()
        await until(written.is_set)
        assert len(d.host.storage.kept) == 1
