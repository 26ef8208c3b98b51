"""The streams on which machines ask, one to each that runs.

```
  runs ----settles----> open ----asked----> answered, at most AT_ONCE at a time
    ^                    | it ends: again after a pause that grows
    |                    | it freezes, sleeps, is captured, goes: left, so that who waits inside is told
    '---- runs again ----'
```

A machine is a stranger that may say anything, at any speed, and take no answer. It is read no faster than READS a second
(the rest waits in its own agent), answered PER_S times a second, and hung up on when it breaks the contract or does not
take what it is told. None of this keeps a machine awake.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakValueDictionary

import structlog

from roost.agent.failures import lied
from roost.agent.streams import InsideStream
from roost.agent.v1 import agent_pb2 as pb
from roost.engine.machine import Machine
from roost.engine.roster import Roster, Running
from roost.errors import LimitError, RoostError, TimeoutExpired
from roost.services.inside.said import Answer, Asked, refusal
from roost.services.rates import Bucket
from roost.store.keys import NOBODY

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

log = structlog.get_logger(__name__)

SETTLE_S = 0.25  # after it came to run: what it was started for goes first
APART_S = 0.005  # a daemon that starts anew has many to open
PER_S, BURST = 10.0, 30.0
READS, READS_AT_ONCE = 50.0, 100.0
AT_ONCE = 8  # of one machine
ALL_AT_ONCE = 64  # of one tenant's machines: who asks how a fork goes is kept waiting
ANSWER_S = 30.0
TAKE_S = 10.0
LEAVE_S = 1.0
PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
LASTED_S = 60.0  # a stream that did so ended for no fault of its own
ANSWER_BYTES = 256 * 1024


class Answers(Protocol):
    async def answer(self, machine: Machine, asked: Asked) -> Answer:
        """Never raises."""


class _Link:
    __slots__ = ("agent", "machine_id", "rate", "stream", "task", "working")

    def __init__(self, machine_id: str, agent: AgentClient, rate: Bucket) -> None:
        self.machine_id = machine_id
        self.agent = agent
        self.rate = rate
        self.stream: InsideStream | None = None
        self.task: asyncio.Task[None] | None = None
        self.working: dict[int, asyncio.Task[None]] = {}  # by the request's id


class Links:
    def __init__(self, roster: Roster, answers: Answers, monotonic: Callable[[], float]) -> None:
        self._roster = roster
        self._answers = answers
        self._monotonic = monotonic
        self._links: dict[str, _Link] = {}
        self._room: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._others: set[asyncio.Task[None]] = set()  # that leave, or work for a machine
        self._closed = False

    def open(self) -> None:
        self._roster.listen(self._changed)
        for number, running in enumerate(list(self._roster)):
            if running.machine.tenant_id != NOBODY:
                self._begin(running, SETTLE_S + number * APART_S)

    async def close(self) -> None:
        """What is under way is told inside that no answer comes."""
        self._closed = True
        for link in list(self._links.values()):
            self._drop(link)
        if self._others:
            _, late = await asyncio.wait(set(self._others), timeout=2 * LEAVE_S)
            for task in late:
                task.cancel()

    def __len__(self) -> int:
        return len(self._links)

    # --- which there are ------------------------------------------------------------------------

    def _changed(self, machine_id: str) -> None:
        running = self._roster.peek(machine_id)
        link = self._links.get(machine_id)
        if link is not None and (running is None or running.agent is not link.agent):
            self._drop(link)
            link = None
        if running is None or self._closed or running.machine.tenant_id == NOBODY:
            return
        if link is None:
            self._begin(running, SETTLE_S)

    def _begin(self, running: Running, pause: float) -> None:
        rate = Bucket(PER_S, BURST, self._monotonic())
        link = _Link(running.machine.id, cast("AgentClient", running.agent), rate)
        self._links[link.machine_id] = link
        # In no context: what lasts for days is not about the request that began it.
        link.task = asyncio.get_running_loop().create_task(
            self._keep(link, pause), context=contextvars.Context(), name=f"inside-{link.machine_id}"
        )

    def _drop(self, link: _Link) -> None:
        self._links.pop(link.machine_id, None)
        self._spawn(self._leave(link))

    async def _leave(self, link: _Link) -> None:
        try:
            if link.stream is not None:
                async with asyncio.timeout(LEAVE_S):
                    await link.stream.leave()
        except TimeoutError:
            pass
        finally:
            task, link.task = link.task, None  # in no circle with what its end is caught in
            if task is not None:
                task.cancel()

    async def _keep(self, link: _Link, pause: float) -> None:
        """For as long as the machine runs."""
        after = PAUSE_S
        while True:
            await asyncio.sleep(pause)
            began = self._monotonic()
            link.stream = stream = link.agent.inside()
            try:
                await self._listen(link, stream)
            except RoostError as failure:
                if failure.code == "UNSUPPORTED":  # an agent of a release before: it never asks
                    return
                log.info("inside.broke", machine_id=link.machine_id, error=failure.code)
            finally:
                link.stream = None
                stream.close()
                del stream  # a call holds its connection
            lasted = self._monotonic() - began > LASTED_S
            pause = PAUSE_S if lasted else after
            after = min(2 * pause, LONGEST_PAUSE_S)

    # --- what is asked --------------------------------------------------------------------------

    async def _listen(self, link: _Link, stream: InsideStream) -> None:
        """To its end. Raises RoostError."""
        reads = Bucket(READS, READS_AT_ONCE, self._monotonic())
        while (asked := await stream.read()) is not None:
            if wait := reads.take(self._monotonic()):
                await asyncio.sleep(wait)
                reads.take(self._monotonic())
            if asked.id in link.working:
                raise lied("Inside", "two requests have the same number")
            if (refused := self._refused(link)) is not None:
                await _tell(stream, asked, refused)
                continue
            link.working[asked.id] = self._spawn(self._work(link, stream, asked))

    def _refused(self, link: _Link) -> Answer | None:
        if wait := link.rate.take(self._monotonic()):
            return refusal(
                LimitError(
                    f"A machine may ask {PER_S:g} times a second ({BURST:g} at once): try again in {wait:.1f} s.",
                    details={"per_second": PER_S, "retry_after_s": round(wait, 3)},
                )
            )
        if len(link.working) >= AT_ONCE:
            return refusal(
                LimitError(
                    f"{AT_ONCE} requests of this machine are under way: try again.",
                    code="LIMIT_EXCEEDED",
                )
            )
        return None

    async def _work(self, link: _Link, stream: InsideStream, asked: pb.InsideRequest) -> None:
        try:
            running = self._roster.peek(link.machine_id)
            if running is None:
                return
            said = Asked(asked.method, asked.path, asked.body, asked.text)
            answering = asyncio.ensure_future(self._answer(running.machine, said))
            done, _ = await asyncio.wait({answering}, timeout=ANSWER_S)
            # What takes longer goes on, and counts as under way.
            answer = answering.result() if done else refusal(_late())
            await _tell(stream, asked, answer)
            if not done:
                await answering
        except RoostError as failure:
            log.info("inside.untold", machine_id=link.machine_id, error=failure.code)
            stream.close()
        finally:
            link.working.pop(asked.id, None)

    async def _answer(self, machine: Machine, asked: Asked) -> Answer:
        async with self._room.setdefault(machine.tenant_id, asyncio.Semaphore(ALL_AT_ONCE)):
            return await self._answers.answer(machine, asked)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._others.add(task)
        task.add_done_callback(self._others.discard)
        return task


async def _tell(stream: InsideStream, asked: pb.InsideRequest, answer: Answer) -> None:
    """Raises TIMEOUT where the machine does not take it."""
    body = answer.encode(asked.text)
    if len(body) > ANSWER_BYTES:
        answer = refusal(RoostError("The answer is too long."))
        body = answer.encode(asked.text)
    try:
        async with asyncio.timeout(TAKE_S):
            await stream.answer(asked.id, answer.status, body)
    except TimeoutError as failure:
        raise _late() from failure


def _late() -> TimeoutExpired:
    return TimeoutExpired("It took too long; it may go on: see what holds now.")
