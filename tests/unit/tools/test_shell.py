"""The shell that keeps its state, on real terminals of a real agent."""

from __future__ import annotations

import asyncio
import time

import pytest

from roost import AsyncMachine
from roost.errors import error
from roost.tools._async._shell import AsyncShell, Heard
from roost.tools._errors import ToolFailure
from tests.unit.api.kit import Served


async def test_state_is_kept_and_output_is_as_it_came(machine: AsyncMachine) -> None:
    shell = AsyncShell(machine)
    assert (await shell.run("cd /usr && X='a b' && f() { echo \"f $1\"; }")).text == ""
    ran = await shell.run("pwd; echo \"$X\"; f 1\necho err >&2; printf 'no line end'")
    assert ran.output == "/usr\na b\nf 1\nerr\nno line end"
    assert ran.exit_code == 0
    assert (await shell.run("false")).text == "[exit code 1]"
    assert (await shell.run("ls /no/such")).exit_code == 2
    assert (await shell.run("if then")).exit_code != 0  # and the shell lives
    assert (
        await shell.run('cat; read x; echo "<$x>"; test -t 1 || echo no terminal')
    ).output == "<>\nno terminal\n"
    assert (
        await shell.run("printf 'é\\n\\036x'; echo $TERM $PAGER")
    ).output == "é\n\x1exdumb cat\n"
    assert len(await machine.terminals.list()) == 1
    await shell.restart()
    assert (await shell.run('pwd; echo "<$X>"')).output.endswith("<>\n")
    await shell.restart()
    assert await machine.terminals.list() == []


async def test_what_runs_in_the_background_holds_nothing_up(machine: AsyncMachine) -> None:
    shell = AsyncShell(machine)
    began = time.monotonic()
    ran = await shell.run("sleep 30 & echo started")
    assert ran.output == "started\n"
    assert time.monotonic() - began < 10
    assert (await shell.run("jobs | wc -l")).output.strip() == "1"
    await shell.restart()


async def test_output_is_cut_in_the_middle(machine: AsyncMachine) -> None:
    shell = AsyncShell(machine, limit=1000)
    ran = await shell.run("echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
    assert ran.output.startswith("begin\nxxx")
    assert ran.output.endswith("xxx\nend\n")
    assert "bytes left out here" in ran.output
    assert len(ran.output) < 1100
    await shell.restart()


async def test_a_command_out_of_time_is_interrupted(machine: AsyncMachine) -> None:
    shell = AsyncShell(machine)
    await shell.run("Y=kept")
    ran = await shell.run("echo first; sleep 60; echo never", timeout=3)
    assert ran.timed_out
    assert ran.output.startswith("first\n")
    assert "keeps its state" in ran.note
    assert (await shell.run("echo $Y")).output == "kept\n"
    await shell.restart()


async def test_one_that_cannot_be_interrupted_ends_with_the_shell(
    machine: AsyncMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.tools._async._shell.GRACE_S", 0.5)
    shell = AsyncShell(machine)
    await shell.run("Y=lost")
    ran = await shell.run("trap '' INT; bash -c \"trap '' INT; sleep 61\"", timeout=0.5)
    assert ran.timed_out
    assert "its state is lost" in ran.note
    assert (await shell.run('echo "<$Y>"')).output == "<>\n"
    await shell.restart()


async def test_a_shell_that_ends_is_begun_anew(machine: AsyncMachine) -> None:
    shell = AsyncShell(machine)
    ran = await shell.run("echo bye; exit 3")
    assert ran.output == "bye\n"
    assert ran.exit_code is None
    assert "ended with exit code 3" in ran.note
    assert (await shell.run("echo again")).output == "again\n"
    terminal = shell._terminal
    assert terminal is not None
    await terminal.aclose()  # as by a machine that was started again
    ran = await shell.run("echo new")
    assert (ran.output, ran.note) == ("new\n", "[a new shell: the machine was started again since]")
    await shell.restart()


async def test_a_connection_that_breaks_is_made_again(
    machine: AsyncMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = AsyncShell(machine)
    assert (await shell.run("echo before")).output == "before\n"
    terminal = shell._terminal
    assert terminal is not None
    read, broken = terminal.read_bytes, []

    async def once(timeout: float | None = None) -> bytes:
        if not broken:
            broken.append(True)
            raise error("DAEMON_UNREACHABLE", "the connection broke")
        return await read(timeout)

    monkeypatch.setattr(terminal, "read_bytes", once)
    assert (await shell.run("echo during")).output == "during\n"
    await shell.restart()


async def test_what_is_no_command(machine: AsyncMachine) -> None:
    shell = AsyncShell(machine)
    for command in ("a\0b", "a\x03b", "a\x1ab", "x" * 200_000):
        with pytest.raises(ToolFailure):
            await shell.run(command)
    big = "x=" + "y" * 100_000 + "; echo ${#x}"
    assert (await shell.run(big)).output == "100000\n"
    await shell.restart()


async def test_nobody_is_attached_between_commands(machine: AsyncMachine, served: Served) -> None:
    shell = AsyncShell(machine)
    await shell.run("true")
    for _ in range(50):
        (terminal,) = await machine.terminals.list()
        if terminal.to_json()["viewers"] == 0:
            break
        await asyncio.sleep(0.05)
    assert terminal.to_json()["viewers"] == 0
    await shell.restart()


@pytest.mark.parametrize("size", [1, 2, 5, 17, 1000])
def test_marks_are_found_however_they_are_cut(size: int) -> None:
    mark = "0123456789abcdef"
    said = b"old \x1exx\x1e" + f"\x1e{mark}\x1eout\x1eput\x1e{mark} 130\x1eafter".encode()
    heard = Heard(mark, 1000)
    for at in range(0, len(said), size):
        heard.feed(said[at : at + size])
        if heard.over:
            break
    assert (heard.text, heard.exit_code) == ("out\x1eput", 130)
