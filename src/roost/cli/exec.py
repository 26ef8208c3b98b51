"""``roost exec``: a command in a machine as if it ran here: stdin, stdout, stderr, signals, exit code."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from roost.cli._connect import MachineArg, approvals_page, find, pairs
from roost.cli._inert import Inert
from roost.cli._out import Json, fail, note, print_json, say, usage_error
from roost.errors import RoostError

if TYPE_CHECKING:
    from roost import ExecStream, Execution, Machine

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

TIMED_OUT = 124
_SHELLS = frozenset(" \t\n|&;<>()$`\"'*?=~")  # no program's name has them, or hardly any
_ENDED = ("INVALID_STATE", "EXECUTION_NOT_FOUND", "AGENT_LOST", "MACHINE_NOT_FOUND")


class Inward(TyperCommand):
    """Options are ours up to the command's first word, before or after the machine; what follows is the
    command's, as it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = False
        rest = self._rest(ctx, args)
        if rest:
            command = self._rest(ctx, rest[1:])
            options = rest[1 : len(rest) - len(command)]
            args = [*args[: len(args) - len(rest)], *options, rest[0], *command]
        return super().parse_args(ctx, args)

    def _rest(self, ctx: Any, args: list[str]) -> list[str]:
        """From the first word on that is no option nor an option's value."""
        parser = type(self.make_parser(ctx))(ctx)
        for param in self.get_params(ctx):
            if param.param_type_name == "option":
                param.add_to_parser(parser, ctx)
        return list(parser.parse_args(list(args))[1])


@app.command("exec", cls=Inward)
def exec_(
    machine: MachineArg,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[--] COMMAND ARG", show_default=False)
    ] = None,
    shell: Annotated[
        str | None, typer.Option("--shell", "-c", metavar="SCRIPT", help="Run under /bin/sh -c.")
    ] = None,
    cwd: Annotated[
        str | None, typer.Option("--cwd", "-w", help="Directory in the machine.")
    ] = None,
    env: Annotated[list[str], typer.Option("--env", "-e", metavar="K=V", help="Repeatable.")] = [],  # noqa: B006
    user: Annotated[str | None, typer.Option("--user", "-u", help="User in the machine.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="Then all it started is killed; exit 124."),
    ] = None,
    stdin: Annotated[
        bool | None,
        typer.Option(
            "--stdin/--no-stdin",
            "-i",
            help="Pass stdin on; by itself where stdin is no terminal.",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the execution's id and leave it running.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Let output drive this terminal (colours pass anyway).")
    ] = False,
    json: Json = False,
) -> None:
    """Run a command in a machine; its exit code is this command's.

    Ctrl-C sends SIGINT to the command. A third one kills it.
    """
    if bool(command) == (shell is not None):
        raise usage_error("give a command after the machine, or one as --shell; not both.")
    what: str | list[str] = shell if shell is not None else list(command or [])
    feed = stdin if stdin is not None else not detach and _has_stdin()
    options: dict[str, Any] = {
        "cwd": cwd,
        "env": pairs(env, "--env") or None,
        "user": user,
        "timeout": timeout,
        "stdin_stream": feed and not detach,
    }
    with _exit_codes(what):
        _exec(find(machine), what, options, detach=detach, feed=feed, raw=raw, json=json)


def _exec(
    m: Machine,
    what: str | list[str],
    options: dict[str, Any],
    *,
    detach: bool,
    feed: bool,
    raw: bool,
    json: bool,
) -> None:
    if detach:
        execution = m.start(what, **options)
        print_json(execution.to_json()) if json else say(execution.id)
        return
    raise typer.Exit(_follow(m.exec_stream(what, **options), feed, raw, json))


@contextlib.contextmanager
def _exit_codes(what: str | list[str]) -> Iterator[None]:
    """Ours, told from the command's own: 127 it was not found, 126 it may not be run, 125 anything else."""
    try:
        yield
    except RoostError as exc:
        fail(exc)
        if exc.code == "COMMAND_NOT_FOUND" and isinstance(what, list) and _SHELLS & set(what[0]):
            note("hint: a line for a shell goes behind -c: roost exec MACHINE -c " + quote(what[0]))
        own = {"COMMAND_NOT_FOUND": 127, "PERMISSION_DENIED": 126, "TOOL_DENIED": 126}
        own |= {"APPROVAL_DENIED": 126, "APPROVAL_EXPIRED": 126}
        raise typer.Exit(own.get(exc.code, 125)) from exc


def _follow(stream: ExecStream, feed: bool, raw: bool, json: bool) -> int:
    """Output as it comes; the exit code."""
    from roost import ExecTimeout

    execution = stream.start()
    if execution.status == "approval_required":
        note(f"waits for approval: roost approve {execution.id}, or {approvals_page()}")
    if feed:
        threading.Thread(target=_pump, args=(execution,), daemon=True).start()
    restore = _forward_signals(execution)
    late = False
    try:
        if json:
            for _ in stream:
                pass
        else:
            _show(stream, raw)
    except ExecTimeout:
        late = True
    except (
        BrokenPipeError
    ):  # as with `| head`: what nobody reads any more must not go on being made
        stream.close()
        with contextlib.suppress(RoostError):  # it is dying, if slowly
            execution.kill()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(128 + signal.SIGPIPE) from None
    finally:
        restore()
    code = TIMED_OUT if late else _code(stream)
    if json:
        result = execution.refresh().output()
        data = execution.to_json() | {"stdout": result.stdout, "stderr": result.stderr}
        print_json(data | {"truncated": result.truncated})
    elif late:
        note("error: the command's time ran out; all it started was killed. [TIMEOUT]")
    return code


def _code(stream: ExecStream) -> int:
    assert stream.exit is not None
    if stream.exit.exit_code >= 0:
        return stream.exit.exit_code
    note(f"error: the command's end is not known: {stream.exit.reason or stream.exit.status}")
    return 1


def _show(stream: ExecStream, raw: bool) -> None:
    sinks = {"stdout": _sink(sys.stdout, raw), "stderr": _sink(sys.stderr, raw)}
    for chunk in stream:
        if chunk.dropped:
            note(f"[{chunk.dropped} bytes of {chunk.stream} were dropped]")
        sinks[chunk.stream](chunk.data)
    for sink in sinks.values():
        sink(None)


def show_said(execution: Execution, follow: bool, json: bool) -> None:
    """What an execution wrote so far, and with ``follow`` as it comes."""
    if follow and not json:
        _show(execution.stream(), raw=False)
        return
    result = execution.output()
    if json:
        data = execution.to_json() | {"stdout": result.stdout, "stderr": result.stderr}
        print_json(data | {"truncated": result.truncated})
        return
    for file, text in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
        sink = _sink(file, raw=False)
        sink(text.encode())
        sink(None)


def _sink(file: Any, raw: bool) -> Callable[[bytes | None], None]:
    """Bytes as they are to a pipe; made inert on a terminal. None is the end."""
    file.flush()
    binary = file.buffer
    if raw or not file.isatty():

        def put(data: bytes | None) -> None:
            if data:
                binary.write(data)
                binary.flush()

        return put
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    inert = Inert()

    def show(data: bytes | None) -> None:
        text = inert.feed(decoder.decode(data or b"", final=data is None))
        if data is None:
            text += inert.end()
        binary.write(text.encode("utf-8", "replace"))
        binary.flush()

    return show


def _has_stdin() -> bool:
    """False on a terminal and where stdin is /dev/null or closed."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return not stat.S_ISCHR(mode)


def _pump(execution: Execution) -> None:
    """stdin, in one request, until its end or the command's."""
    try:
        execution.write_stdin(iter(lambda: os.read(0, 1 << 20), b""), eof=True)
    except OSError as exc:
        note(f"error: stdin cannot be read: {exc.strerror}")
    except RoostError as exc:
        if exc.code not in _ENDED:  # else how it ended is told by the stream
            note(f"error: stdin was cut off: {exc.message} [{exc.code}]")


def _forward_signals(execution: Execution) -> Callable[[], None]:
    """Ctrl-C and SIGTERM go to the command. The call goes out in a thread: a handler must not wait."""
    count = 0

    def send(number: int) -> None:
        try:
            if count > 2:
                execution.kill()
            else:
                execution.signal(signal.Signals(number).name)
        except RoostError as exc:
            note(f"error: {exc.message}")

    def handle(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count > 3:
            os._exit(128 + number)
        threading.Thread(target=send, args=(number,), daemon=True).start()

    old = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    return restore
