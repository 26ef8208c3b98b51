"""One step of a build, done in its machine."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import lzma
import secrets as random
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from roost import ids
from roost.agent.calls import cut
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import InvalidRequestError, MachineError, RoostError
from roost.services.build_log import Output
from roost.services.workshop import BuildRoom
from roost.templates import copying
from roost.templates.context import DIRECTORY, Context
from roost.templates.copying import Copied, Item
from roost.templates.pack import END, header
from roost.templates.plan import Copy, MakeDirectory, Run, SecretMount, Step

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

PIECE = 1 << 20
READER_MS = 30_000
_RUN = "/run"  # a tmpfs on every rung: what lies there is in no layer
_SLICE = 16 * 1024
_AT_ONCE = 250  # pieces
_LZMA_BYTES = 128 << 20  # of memory its dictionary may take


class StepFailed(Exception):
    """A program ended otherwise than well. ``code`` None: it ran too long."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Steps:
    """``given``: values of secrets by id."""

    def __init__(self, context: Context | None, given: Mapping[str, str], timeout_s: float) -> None:
        self._context = context
        self._secrets = given
        self._timeout_s = timeout_s

    async def do(self, room: BuildRoom, step: Step, copied: Copied | None, output: Output) -> None:
        """Raises ``StepFailed``; RoostError."""
        if isinstance(step, Run):
            await self._run(room, step, output)
        elif isinstance(step, MakeDirectory):
            request = pb.MakeDirRequest(path=step.path.encode(), parents=True)
            await room.agent.make_dir(request)
        else:
            assert copied is not None
            await self._copy(room.agent, step, copied)

    # --- RUN ------------------------------------------------------------------------------------

    async def _run(self, room: BuildRoom, step: Run, output: Output) -> None:
        agent = room.agent
        place = f"{_RUN}/roost-{random.token_hex(8)}"
        made: list[str] = []
        env = {**room.environment, **step.proxies, **step.env}
        try:
            argv = list(step.argv)
            if step.script is not None:
                await self._directory(agent, place, made)
                argv = [f"{place}/script"]
                await _write(
                    agent, argv[0], step.script.encode(errors="surrogateescape"), 0o755, ""
                )
            for mount in step.secrets:
                value = self._secrets.get(mount.id)
                if value is None:
                    if mount.required:
                        raise InvalidRequestError(
                            f"The step needs the secret {mount.id}, which was not given: "
                            f"--secret id={mount.id},src=FILE",
                        )
                    output.say("note", f"secret {mount.id} was not given\n".encode())
                    continue
                if mount.env is not None:
                    env[mount.env] = value
                if mount.target is not None:
                    await self._secret(agent, place, mount, value, made)
            await self._execute(agent, step, argv, env, output)
        finally:
            # Fails closed: a secret that is still there is in no layer.
            for path in reversed(made):
                await _gone(agent, path)

    async def _directory(self, agent: AgentClient, place: str, made: list[str]) -> None:
        if place not in made:
            request = pb.MakeDirRequest(path=place.encode(), parents=True, permissions=0o711)
            await agent.make_dir(request)
            made.append(place)

    async def _secret(
        self, agent: AgentClient, place: str, mount: SecretMount, value: str, made: list[str]
    ) -> None:
        target = mount.target
        assert target is not None
        if await _stat(agent, target, follow=False) is not None:
            raise InvalidRequestError(f"The secret {mount.id} cannot be at {target}: something is.")
        if target.startswith(f"{_RUN}/"):
            made.append(target)
            await _write(agent, target, value.encode(), mount.mode, mount.owner)
            return
        # Anywhere else a link leads to it: nothing of the value is ever on the disk.
        await self._directory(agent, place, made)
        file = f"{place}/{len(made)}"
        await _write(agent, file, value.encode(), mount.mode, mount.owner)
        above, _, name = target.rpartition("/")
        made.append(target)
        entry = header(name, b"2", 0o777, 0, 0, file) + END
        await agent.tar_in(pb.TarInHeader(path=(above or "/").encode()), _once(entry))

    async def _execute(
        self,
        agent: AgentClient,
        step: Run,
        argv: list[str],
        env: Mapping[str, str],
        output: Output,
    ) -> None:
        execution_id = ids.new()
        request = pb.StartRequest(
            execution_id=execution_id,
            argv=argv,
            cwd=step.workdir or "/",
            env=[pb.EnvVar(name=name, value=value) for name, value in env.items()],
            user=step.user,
            timeout_ms=int(self._timeout_s * 1000),
            await_reader_ms=READER_MS,
        )
        await agent.start(request)
        names = {
            pb.OutputFrame.STREAM_STDOUT: "stdout",
            pb.OutputFrame.STREAM_STDERR: "stderr",
        }
        exit_: pb.Execution | None = None
        async with contextlib.aclosing(agent.attach(execution_id)) as frames:
            async for frame in frames:
                if frame.data:
                    output.say(names.get(frame.stream, "stdout"), frame.data)
                if frame.HasField("exit"):
                    exit_ = frame.exit
        output.end()
        if exit_ is None:
            raise MachineError("The machine's agent did not say how the step ended.")
        if exit_.state == pb.EXECUTION_STATE_TIMED_OUT:
            raise StepFailed(f"it did not end within {self._timeout_s:g} s", None)
        if exit_.exit_code != 0:
            signal = f" (signal {exit_.signal})" if exit_.HasField("signal") else ""
            raise StepFailed(f"it ended with {exit_.exit_code}{signal}", exit_.exit_code)

    # --- COPY and ADD -----------------------------------------------------------------------------

    async def _copy(self, agent: AgentClient, step: Copy, copied: Copied) -> None:
        items = [item for item in copied.items if not item.archive]
        target = step.target.rstrip("/") or "/"
        if (
            copied.alone
            and not step.target.endswith("/")
            and not await _is_directory(agent, target)
        ):
            above, _, name = target.rpartition("/")
            (item,) = items
            items, target = [Item(name, item.entry, item.content)], above or "/"
        there = await _there(agent, target, items)
        owner = step.owner
        if items or not copied.items:
            await self._send(agent, target, owner, copying.stream(items, self._context, there))
        for item in copied.items:
            if item.archive:
                assert self._context is not None
                content = self._context.open(item.entry)
                await self._send(agent, target, owner, inflated(content))

    @staticmethod
    async def _send(agent: AgentClient, target: str, owner: str, data: Iterator[bytes]) -> None:
        head = pb.TarInHeader(path=target.encode(), keep_special=True, owner=owner)
        await agent.tar_in(head, _pieces(data))


# --- pieces --------------------------------------------------------------------------------------


async def _write(agent: AgentClient, path: str, content: bytes, mode: int, owner: str) -> None:
    head = pb.WriteFileHeader(path=path.encode(), permissions=mode, owner=owner, make_parents=True)
    await agent.write_file(head, _pieces(iter(cut(content, PIECE))))


async def _gone(agent: AgentClient, path: str) -> None:
    try:
        await agent.remove(path.encode(), recursive=True)
    except RoostError as failure:
        if failure.code != "FILE_NOT_FOUND":
            raise


async def _stat(agent: AgentClient, path: str, follow: bool = True) -> pb.FileInfo | None:
    try:
        return await agent.stat(path.encode(), follow)
    except RoostError as failure:
        if failure.code in ("FILE_NOT_FOUND", "NOT_A_DIRECTORY"):
            return None
        raise


async def _is_directory(agent: AgentClient, path: str) -> bool:
    info = await _stat(agent, path)
    return info is not None and pb.FILE_KIND_DIRECTORY in (info.kind, info.target_kind)


async def _there(agent: AgentClient, target: str, items: list[Item]) -> set[str]:
    """Directories among them that the machine has: below one that it has not there is none."""
    there: set[str] = set()
    absent: set[str] = set()
    for item in items:
        if item.entry.kind != DIRECTORY:
            continue
        above = item.name.rpartition("/")[0]
        if above in absent:
            absent.add(item.name)
        elif await _is_directory(agent, f"{target.rstrip('/')}/{item.name}"):
            there.add(item.name)
        else:
            absent.add(item.name)
    return there


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _pieces(data: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Of a good size, read in a thread."""
    more = True
    while more:
        batch, more = await asyncio.to_thread(_batch, data)
        if batch:
            for piece in cut(batch, PIECE):
                yield piece


def _batch(data: Iterator[bytes]) -> tuple[bytes, bool]:
    """And whether there may be more. What comes of much is perhaps nothing, and nobody can stop a thread: so many
    pieces are one batch."""
    held = []
    size = 0
    for piece in data:
        held.append(piece)
        size += len(piece)
        if size >= PIECE // 2 or len(held) >= _AT_ONCE:
            return b"".join(held), True
    return b"".join(held), False


def _cut(data: Iterator[bytes]) -> Iterator[bytes]:
    """Of archives with a member every few bytes the rest of a piece is copied for each."""
    for piece in data:
        yield from cut(piece, _SLICE)


def inflated(data: Iterator[bytes]) -> Iterator[bytes]:
    """A tar stream that may be compressed, told by how it begins; bounded pieces, some of them empty. Raises
    INVALID_BODY."""
    data = _cut(data)
    first = next(data, b"")
    kinds: list[tuple[bytes, Callable[[], Any]]] = [
        (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
        (b"BZh", bz2.BZ2Decompressor),
        (b"\xfd7zXZ\x00", lambda: lzma.LZMADecompressor(memlimit=_LZMA_BYTES)),
    ]
    make = next((make for magic, make in kinds if first.startswith(magic)), None)
    if make is None:
        if first.startswith(b"\x28\xb5\x2f\xfd"):
            raise InvalidRequestError(
                "ADD does not unpack zstd: copy the archive and unpack it with RUN tar.",
                code="INVALID_BODY",
            )
        yield first
        yield from data
        return
    inflater = make()
    rest: bytes = first
    try:
        while True:
            while rest:
                if inflater.eof:  # another member follows
                    inflater = make()
                if isinstance(inflater, bz2.BZ2Decompressor | lzma.LZMADecompressor):
                    out = inflater.decompress(rest, PIECE)
                    rest = b""
                    while True:
                        if out:
                            yield out
                        if inflater.eof or inflater.needs_input:
                            break
                        out = inflater.decompress(b"", PIECE)
                    if inflater.eof:
                        rest = inflater.unused_data.lstrip(b"\0")
                else:
                    out = inflater.decompress(rest, PIECE)
                    rest = (
                        inflater.unused_data.lstrip(b"\0")
                        if inflater.eof
                        else inflater.unconsumed_tail
                    )
                    if out:
                        yield out
            yield b""
            piece = next(data, None)
            if piece is None:
                break
            rest = piece.lstrip(b"\0") if inflater.eof else piece
    except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError) as failure:
        raise InvalidRequestError(
            f"An archive that ADD is to unpack is damaged: {failure}.", code="INVALID_BODY"
        ) from failure
    if not inflater.eof:
        raise InvalidRequestError(
            "An archive that ADD is to unpack ends too early.", code="INVALID_BODY"
        )
