"""Who is cancelled waits for work that cannot be stopped, however often, and what it did is undone."""

from __future__ import annotations

import asyncio

import pytest

from roost.lasting import to_the_end


class Work:
    def __init__(self, failure: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.did: list[str] = []
        self.failure = failure

    async def run(self) -> str:
        await self.go.wait()
        self.did.append("done")
        if self.failure is not None:
            raise self.failure
        return "it"

    async def undo(self, made: str) -> None:
        await asyncio.sleep(0)
        self.did.append(f"undone {made}")


async def _cancelled(task: asyncio.Task[str], times: int = 1) -> None:
    for _ in range(times):
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()


async def test_nobody_cancels() -> None:
    work = Work()
    work.go.set()
    assert await to_the_end(work.run(), work.undo) == "it"
    work.failure = ValueError("no")
    with pytest.raises(ValueError):
        await to_the_end(work.run(), work.undo)
    assert work.did == ["done", "done"]


@pytest.mark.parametrize("times", [1, 3])
async def test_it_ends_and_is_undone_before_the_cancellation_is_heard(times: int) -> None:
    work = Work()
    task = asyncio.create_task(to_the_end(work.run(), work.undo))
    await _cancelled(task, times)
    assert work.did == []
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.did == ["done", "undone it"]


async def test_nothing_is_undone_of_what_failed() -> None:
    work = Work(ValueError("no"))
    task = asyncio.create_task(to_the_end(work.run(), work.undo))
    await _cancelled(task)
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.did == ["done"]


async def test_undoing_is_not_cut_off_either() -> None:
    work = Work()
    begun, go = asyncio.Event(), asyncio.Event()

    async def undo(made: str) -> None:
        begun.set()
        await go.wait()
        await work.undo(made)

    task = asyncio.create_task(to_the_end(work.run(), undo))
    await _cancelled(task)
    work.go.set()
    await begun.wait()
    await _cancelled(task, 2)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.did == ["done", "undone it"]


async def test_a_timeout_is_one() -> None:
    work = Work()
    asyncio.get_running_loop().call_later(0.05, work.go.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await to_the_end(work.run())
    assert work.did == ["done"]
