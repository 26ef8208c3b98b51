"""Nothing of a machine runs on under users that are to be another's, and nobody else is ended for theirs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.drivers import container
from roost.host import ending, idmaps, processes

INDEX = idmaps.capacity() - 2 - os.getpid() % 100  # not that of another such test at work
BLOCK = idmaps.block(INDEX)
NUMBERS = range(BLOCK.first, BLOCK.first + BLOCK.count)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


@contextlib.contextmanager
def _running(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """By a command that goes on to run the last words of its line."""
    waits = ("sh", "-c", "echo; read -r _; echo; exec sleep 60")
    with subprocess.Popen(
        [*argv, *waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(1) == b"\n"
            yield process
        finally:
            process.kill()


def _as(number: int) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """In the host's own user namespace."""
    return _running("setpriv", f"--reuid={number}", "--clear-groups", "--")


def _within(user_namespace: Path, number: int) -> contextlib.AbstractContextManager[Any]:
    return _running("nsenter", f"--user={user_namespace}", "-S", str(number), "-G", str(number))


@contextlib.contextmanager
def _of_a_machine(number: int) -> Iterator[subprocess.Popen[bytes]]:
    with contextlib.ExitStack() as held:
        with idmaps.namespaces(BLOCK) as made:
            process = held.enter_context(_within(made / "user", number))
        yield process


@contextlib.contextmanager
def _of_a_container() -> Iterator[subprocess.Popen[bytes]]:
    """Of somebody's who came upon the same block."""
    with _running("unshare", "--user") as maker:
        place = Path(f"/proc/{maker.pid}")
        for name in ("uid_map", "gid_map"):
            (place / name).write_text(f"0 {BLOCK.first} {BLOCK.count}\n")
        with _within(place / "ns/user", 0) as process:
            yield process


def test_all_of_a_machine_are_ended() -> None:
    with _of_a_machine(0) as root, _of_a_machine(1000) as user:
        assert idmaps.members(BLOCK) == {root.pid, user.pid}
        assert processes.numbered(NUMBERS) == {
            root.pid: BLOCK.first,
            user.pid: BLOCK.first + 1000,
        }
        ending.end_users(BLOCK, 10)
        assert idmaps.members(BLOCK) == set()
        assert processes.numbered(NUMBERS) == {}


def test_nobody_is_ended_for_a_number_alone() -> None:
    """A directory's user may have one that we took for free, systemd-nspawn a whole block."""
    with _as(BLOCK.first) as first, _as(NUMBERS[-1]) as last, _of_a_container() as other:
        them = (first, last, other)
        assert set(processes.numbered(NUMBERS)) == {each.pid for each in them}
        ending.end_users(BLOCK, 10)
        assert [each.poll() for each in them] == [None] * 3


def test_of_a_monitors_user_only_what_is_jailed_is_ended() -> None:
    """Its processes are in no user namespace, but begin from 1."""
    as_it = ("setpriv", f"--reuid={NUMBERS[7]}", "--clear-groups", "--")
    with (
        _running("unshare", "--pid", "--fork", "--kill-child", *as_it) as monitor,
        _as(NUMBERS[7]) as stranger,
        _running(*as_it, "unshare", "--user", "--pid", "--fork", "--kill-child") as other,
    ):
        assert len(processes.jailed(NUMBERS[7])) == 1
        ending.end_user(NUMBERS[7], 10)
        assert processes.jailed(NUMBERS[7]) == set()
        assert monitor.wait(10) != 0
        assert (stranger.poll(), other.poll()) == (None, None)


def test_nobody_is_ended_for_the_number_of_a_process_that_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _as(BLOCK.first) as stranger:
        found = iter([{stranger.pid}, set()])
        monkeypatch.setattr(idmaps, "members", lambda _: next(found))
        monkeypatch.setattr(ending, "_AGAIN_S", 0.01)
        ending.end_users(BLOCK, 10)
        assert stranger.poll() is None


def test_what_is_left_of_a_machine_ends_before_its_numbers_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its group, of which nothing is left."""
    monkeypatch.setattr(ending, "end_group", lambda *_: None)
    record = {"disk": str(tmp_path / "m.ext4"), "users": [BLOCK.first, BLOCK.count]}
    (tmp_path / "machine.json").write_text(json.dumps(record))
    driver: Any = SimpleNamespace(
        _directory=lambda _: tmp_path,
        _group=lambda _: "group",
        cgroups=SimpleNamespace(remove=lambda _: None),
    )
    with _of_a_machine(1000) as left:
        freed: list[bool] = []
        monkeypatch.setattr(
            container.mounting,
            "wait_free",
            lambda _: freed.append(processes.start_ticks(left.pid) is None),
        )
        container.ContainerDriver._remove(driver, "m", None)
        assert freed == [True]
    assert not tmp_path.exists()


def test_a_block_of_which_somebody_runs_is_told() -> None:
    assert INDEX not in idmaps.others(idmaps.DEFAULT_BASE)
    assert idmaps.taken(NUMBERS[0], NUMBERS[-1]) == []
    with _as(NUMBERS[-1]) as other:
        assert INDEX in idmaps.others(idmaps.DEFAULT_BASE)
        told = f"{NUMBERS[-1]} (process {other.pid})"
        assert idmaps.taken(NUMBERS[0], NUMBERS[-1]) == [told]
    with _running("setpriv", f"--regid={BLOCK.first}", "--clear-groups", "--"):
        assert INDEX in idmaps.others(idmaps.DEFAULT_BASE)
    assert INDEX not in idmaps.others(idmaps.DEFAULT_BASE)
