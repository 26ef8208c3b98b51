"""Code run in a machine's Jupyter kernels, which keep what it made from one call to the next.

```
run --> the helper in the machine (``templates/code-interpreter/files/roost-kernel``) --> the kernel of a context
  <-- stdout, stderr, results, an error, the end: numbered, so that who lost the connection asks for the rest
```

A context is a kernel and its names ("default" unless another is named); one runs one piece of code after another. What
comes is the machine's: its sizes and kinds are bounded, here once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from roost import ids
from roost.errors import RoostError, error
from roost.services import inner, launching, limits
from roost.services.helpers import Helper, Helpers
from roost.services.machines import Machines

HELPER = Helper(
    "code interpreter",
    7114,
    "/ready",
    "/usr/local/bin/roost-kernel",
    "code-interpreter",
    "KERNEL_DOWN",
)
CODE = 1_000_000  # characters
TIMEOUT_S = 300.0
MAX_TIMEOUT_S = 86_400.0
LINE = 7 * 2**20  # one thing shown is 6 MiB at most
TEXT = 2**20  # characters of each stream that are kept
RESULTS = 200
KEPT = 24 * 2**20  # characters of all results
SILENCE_S = 30.0  # the helper says something every 5 s
REATTACH = 3  # times in a row without anything new
CALL_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LANGUAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+#-]{0,31}")
_MIME = re.compile(r"[a-z]+/[A-Za-z0-9.+_-]{1,100}")
_BROKEN = frozenset({"AGENT_LOST", "PORT_CLOSED", "TIMEOUT"})


@dataclass(frozen=True, slots=True)
class RunCode:
    code: str
    language: str = "python"
    context: str = ""  # "default", or the language's name where it is not Python
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Began:
    """The kernel has it, or it waits for what came before it."""


@dataclass(frozen=True, slots=True)
class Text:
    stream: str  # stdout | stderr
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What the code showed. ``data``: by content type; pictures are base64. ``main``: the value of its last line."""

    main: bool
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Raised:
    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Ended:
    """``status``: ok, error, expired (its time ran out; it was interrupted), interrupted (somebody asked for that), died.
    ``restarted``: the kernel is a new one, and its names are gone."""

    status: str
    execution_count: int | None
    restarted: bool


Event = Began | Text | Shown | Raised | Ended


@dataclass(slots=True)
class Result:
    """All of one run. ``truncated``: something is beyond what is kept."""

    stdout: str = ""
    stderr: str = ""
    results: list[Shown] = field(default_factory=list)
    raised: Raised | None = None
    ended: Ended = field(default_factory=lambda: Ended("died", None, False))
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    name: str
    language: str
    busy: bool
    execution_count: int


class Code:
    """Every call takes the caller's tenant first, wakes the machine, and raises UNSUPPORTED, VALIDATION_FAILED, KERNEL_DOWN,
    PORT_BAD_ANSWER, TIMEOUT."""

    def __init__(self, helpers: Helpers, machines: Machines) -> None:
        self._helpers = helpers
        self._machines = machines
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, tenant: str, machine_id: str, spec: RunCode) -> Result:
        """To its end. What it printed and showed is kept up to bounds."""
        result = Result()
        kept = 0
        async with contextlib.aclosing(self.stream(tenant, machine_id, spec)) as events:
            async for event in events:
                match event:
                    case Text("stdout", text):
                        result.truncated |= len(result.stdout) + len(text) > TEXT
                        result.stdout = (result.stdout + text)[:TEXT]
                    case Text(_, text):
                        result.truncated |= len(result.stderr) + len(text) > TEXT
                        result.stderr = (result.stderr + text)[:TEXT]
                    case Shown():
                        kept += _weight(event)
                        if kept <= KEPT and len(result.results) < RESULTS:
                            result.results.append(event)
                        else:
                            result.truncated = True
                    case Raised():
                        result.raised = event
                    case Ended():
                        result.ended = event
        return result

    async def stream(
        self, tenant: str, machine_id: str, spec: RunCode
    ) -> AsyncGenerator[Event, None]:
        """``Began``, what it prints and shows as it comes, ``Ended`` last. Who leaves before has it interrupted: close the
        generator. A capture or a sleep with memory that comes in between is not seen."""
        spec = checked(spec)
        live = await self._machines.awake(tenant, machine_id)
        run = ids.new()
        body = {
            "run": run,
            "code": spec.code,
            "language": spec.language,
            "context": spec.context,
            "timeout_s": spec.timeout_s,
            # A kernel that was baked with its template has not heard of this machine's.
            "env": {each.name: each.value for each in launching.environment(live, {})},
        }
        del live  # it holds a connection that a capture waits to see closed
        after, tries, began, over = 0, 0, False, False
        try:
            while True:
                path = f"/runs/{run}?after={after}" if began else "/run"
                before = after
                said = self._helpers.lines(
                    tenant, machine_id, HELPER, path, None if began else body,
                    limit=LINE, idle_s=SILENCE_S,
                )  # fmt: skip
                try:
                    async for line in said:
                        if line.get("type") == "refused":
                            raise refused(line, spec)
                        if not began:
                            began = True
                            yield Began()
                        number = line.get("n")
                        if not isinstance(number, int) or number <= after:
                            continue
                        after = number
                        event = _event(line)
                        if event is not None:
                            over = isinstance(event, Ended)
                            yield event
                        if over:
                            return
                except RoostError as failure:
                    if not began or failure.code not in _BROKEN:
                        raise
                    tries = 0 if after > before else tries + 1
                    if tries > REATTACH:
                        raise
                finally:
                    await said.aclose()
        finally:
            if began and not over:
                self._spawn(self._stop(tenant, machine_id, run))

    async def contexts(self, tenant: str, machine_id: str) -> list[Context]:
        said = await self._ask(tenant, machine_id, "GET", "/contexts")
        found = said.get("contexts")
        if not isinstance(found, list):
            raise inner.bad("It lists no contexts.")
        return [_context(each) for each in found[:100] if isinstance(each, dict)]

    async def restart(self, tenant: str, machine_id: str, context: str) -> None:
        """A new kernel for it: what it knew is gone, what ran in it ends. Raises NOT_FOUND."""
        check_context(context)
        await self._ask(tenant, machine_id, "POST", f"/contexts/{context}/restart")

    async def interrupt(self, tenant: str, machine_id: str, context: str) -> None:
        """What runs in it, as Ctrl-C would. Raises NOT_FOUND."""
        check_context(context)
        await self._ask(tenant, machine_id, "POST", f"/contexts/{context}/interrupt")

    async def delete(self, tenant: str, machine_id: str, context: str) -> None:
        """Its kernel ends. Raises NOT_FOUND."""
        check_context(context)
        await self._ask(tenant, machine_id, "DELETE", f"/contexts/{context}")

    # --- helpers --------------------------------------------------------------------------------

    async def _ask(self, tenant: str, machine_id: str, method: str, path: str) -> dict[str, Any]:
        answer = await self._helpers.call(
            tenant, machine_id, HELPER, method, path, limit=2**20, timeout_s=CALL_S
        )
        said = answer.json()
        if not isinstance(said, dict):
            raise inner.bad("What it says is no JSON object.")
        if answer.status != 200:
            raise refused(said, RunCode(""))
        return said

    async def _stop(self, tenant: str, machine_id: str, run: str) -> None:
        if self._machines.runs(machine_id):
            with contextlib.suppress(RoostError):
                await self._ask(tenant, machine_id, "POST", f"/runs/{run}/interrupt")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def checked(spec: RunCode) -> RunCode:
    """With a context. Raises VALIDATION_FAILED."""
    if len(spec.code) > CODE:
        raise limits.bad("code", f"is at most {CODE} characters: write it to a file and run that")
    if _LANGUAGE.fullmatch(spec.language) is None:
        raise limits.bad("language", "is a kernel's, as python")
    if not 0.001 <= spec.timeout_s <= MAX_TIMEOUT_S:
        raise limits.bad("timeout_ms", f"is from 1 to {int(MAX_TIMEOUT_S * 1000)}")
    if not spec.context:
        python = spec.language.lower() in ("python", "python3")
        name = "default" if python else re.sub(r"[^A-Za-z0-9._-]", "_", spec.language)
        spec = replace(spec, context=name)
    check_context(spec.context)
    return spec


def check_context(name: str) -> None:
    """Raises VALIDATION_FAILED."""
    if _NAME.fullmatch(name) is None:
        raise limits.bad(
            "context", "is 1-64 of letters, digits, . _ -, beginning with a letter or digit"
        )


def refused(said: Mapping[str, Any], spec: RunCode) -> RoostError:
    """What the helper's code means."""
    match said.get("error"):
        case "language":
            known = said.get("known")
            names = (
                [n for n in known if isinstance(n, str) and _LANGUAGE.fullmatch(n)][:20]
                if isinstance(known, list)
                else []
            )
            there = ", ".join(names) or "none"
            return limits.bad(
                "language",
                f"{spec.language} has no Jupyter kernel in this machine; there are: {there}",
            )
        case "other_language":
            return limits.bad(
                "context", f"{spec.context} is of another language: take another name for it"
            )
        case "context":
            return error(
                "NOT_FOUND",
                "There is no such context: it begins with the first code that names it.",
            )
        case "contexts":
            return error(
                "LIMIT_EXCEEDED",
                "This machine has as many contexts as there may be (16): delete one.",
            )
        case "queue":
            return error(
                "LIMIT_EXCEEDED", "Too much code waits for this context: interrupt it, or wait."
            )
        case "gone":
            return error(
                "KERNEL_DOWN",
                "The code interpreter was started anew meanwhile, and what ran is gone: run it again.",
            )
        case "start":
            return HELPER.down("A kernel of this language was started and did not come up.")
    return inner.bad("It failed in a way it has no code for.")


def _event(line: Mapping[str, Any]) -> Event | None:
    match line:
        case {"type": "stdout" | "stderr" as stream, "text": str(text)}:
            return Text(str(stream), text)
        case {"type": "result", "data": dict(data)}:
            kept = {k: v for k, v in data.items() if isinstance(k, str) and _MIME.fullmatch(k)}
            return Shown(line.get("main") is True, kept) if kept else None
        case {"type": "error", "name": str(name), "value": str(value), "traceback": str(trace)}:
            return Raised(name[:200], value[:TEXT], trace[:TEXT])
        case {"type": "end", "status": str(status)}:
            count = line.get("execution_count")
            known = status if status in ("ok", "error", "expired", "interrupted") else "died"
            return Ended(
                known, count if isinstance(count, int) else None, line.get("restarted") is True
            )
    return None


def _context(said: Mapping[str, Any]) -> Context:
    match said:
        case {
            "name": str(name),
            "language": str(language),
            "busy": bool(busy),
            "execution_count": int(count),
        }:
            return Context(name[:64], language[:32], busy, count)
    raise inner.bad("It lists a context in no known way.")


def _weight(shown: Shown) -> int:
    return sum(len(v) if isinstance(v, str) else len(repr(v)) for v in shown.data.values())
