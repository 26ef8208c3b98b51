"""The public surface is exactly this, and importing it costs nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import roost

ROOT = Path(__file__).resolve().parents[3]


def test_exports() -> None:
    assert roost.__all__ == [
        "AsyncBuild",
        "AsyncClient",
        "AsyncExecStream",
        "AsyncExecution",
        "AsyncMachine",
        "AsyncSnapshot",
        "AsyncTemplate",
        "AsyncTerminal",
        "AsyncVolume",
        "Attempt",
        "AuthError",
        "BrowserPage",
        "Build",
        "CapacityError",
        "Chunk",
        "Client",
        "CodeError",
        "CodeFailed",
        "CodeOutput",
        "CodeResult",
        "CodeTimeout",
        "CommandFailed",
        "ConflictError",
        "Diff",
        "DiffSide",
        "Difference",
        "Egress",
        "EgressDecision",
        "EgressPolicy",
        "ExecExit",
        "ExecResult",
        "ExecStream",
        "ExecTimeout",
        "Execution",
        "Explored",
        "FileEvent",
        "FileInfo",
        "ForbiddenError",
        "InternalError",
        "InvalidRequestError",
        "LimitError",
        "Machine",
        "MachineError",
        "NotFoundError",
        "RoostError",
        "Secret",
        "Snapshot",
        "Template",
        "Terminal",
        "TimeoutExpired",
        "UnavailableError",
        "UnsupportedError",
        "Volume",
        "Window",
        "__version__",
        "async_explore",
        "explore",
    ]
    for name in roost.__all__:
        assert getattr(roost, name) is not None
    assert set(roost._HOMES) | {"__version__"} == set(roost.__all__)


def test_every_error_class_is_exported() -> None:
    from roost import errors

    classes = {
        n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)
    }
    assert classes <= set(roost.__all__)


def test_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert roost.__version__ == project["version"]


def test_the_sdk_imports_nothing_of_the_daemon() -> None:
    code = (
        "import sys, roost; assert 'httpx' not in sys.modules; roost.Machine; roost.AsyncMachine\n"
        "heavy = {'fastapi', 'grpc', 'sqlalchemy', 'pydantic', 'uvicorn', 'websockets', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_sync_half_is_generated_from_the_async_one() -> None:
    script = ROOT / "scripts/unasync.py"
    out = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr


def test_the_drift_gate_sees_content_orphans_and_trailing_lines(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("unasync", ROOT / "scripts/unasync.py")
    assert spec is not None
    assert spec.loader is not None
    unasync = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unasync)
    source, target = tmp_path / "_async", tmp_path / "_sync"
    unasync.TREES = [(source, target)]
    source.mkdir()
    target.mkdir()
    (source / "a.py").write_text(
        "class AsyncThing:\n"
        '    """``await AsyncThing()``"""\n\n'
        "    async def __aenter__(self) -> None:\n"
        "        async with self as x:\n"
        "            y = [await z async for z in x]  # await it\n"
    )
    assert unasync.main(check=True) == 1
    assert unasync.main(check=False) == 0
    assert unasync.main(check=True) == 0
    assert (target / "a.py").read_text() == (
        "class Thing:\n"
        '    """``Thing()``"""\n\n'
        "    def __enter__(self) -> None:\n"
        "        with self as x:\n"
        "            y = [z for z in x]  # it\n"
    ).replace("[z for z in x]", "list(x)")
    text = (target / "a.py").read_text()
    (target / "a.py").write_text(text + "\nleft = 1\n")
    assert unasync.main(check=True) == 1
    (target / "a.py").write_text(text)
    (target / "orphan.py").write_text("")
    assert unasync.main(check=True) == 1
    assert unasync.main(check=False) == 0
    assert not (target / "orphan.py").exists()
