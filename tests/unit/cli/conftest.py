from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.cli._app import run
from tests.unit.client.stub import EXECUTION_ID, MACHINE_ID, Answer, Stub, execution, machine, sse

EXECUTIONS = f"/v1/machines/{MACHINE_ID}/executions"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    """One machine with key ``user-42``; ``stub.ends(...)`` says what its commands print and how they end."""
    stub = Stub()
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: machine())
    stub.on(
        "GET",
        "/v1/machines",
        lambda r: {
            "items": [machine()] if r.query.get("key", "user-42") == "user-42" else [],
            "next_cursor": None,
        },
    )
    monkeypatch.setenv("ROOST_URL", stub.url)
    monkeypatch.setenv("ROOST_API_KEY", "roost_" + "0" * 64)
    monkeypatch.setenv("ROOST_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ROOST_RUN_DIR", str(tmp_path / "run"))
    yield stub
    stub.close()


Ends = Callable[..., None]


@pytest.fixture
def ends(stub: Stub) -> Ends:
    def set_up(*output: tuple[str, bytes], **how: Any) -> None:
        def stream(_: Any) -> Iterator[bytes]:
            seen = {"stdout": 0, "stderr": 0}
            yield sse("started", execution(status="running"))
            for name, data in output:
                encoded = base64.b64encode(data).decode()
                yield sse(name, {"offset": seen[name], "data_b64": encoded})
                seen[name] += len(data)
            yield sse("exit", execution(**how))

        stub.on("POST", EXECUTIONS, lambda _: Answer(execution(status="running"), 201))
        stub.on("GET", f"{EXECUTIONS}/{EXECUTION_ID}", lambda _: execution(**how))
        stub.on("POST", f"{EXECUTIONS}/stream", stream)
        stub.on(
            "GET",
            f"{EXECUTIONS}/{EXECUTION_ID}/output",
            lambda _: {
                "execution_id": EXECUTION_ID,
                **{
                    name: b"".join(d for n, d in output if n == name).decode()
                    for name in ("stdout", "stderr")
                },
            },
        )

    return set_up


@pytest.fixture
def roost() -> Callable[..., int]:
    """The exit code of a command line, run in this process."""
    return lambda *argv: run([str(a) for a in argv])
