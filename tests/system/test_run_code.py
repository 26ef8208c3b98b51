"""Code in kernels of machines: what it made stays, also through sleep and forks; what goes wrong is told."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from roost import AsyncMachine, CodeFailed, CodeTimeout, Machine, RoostError

pytestmark = pytest.mark.system


@pytest.fixture(
    scope="module",
    params=[
        "gvisor",
        pytest.param("runc", marks=pytest.mark.long),
        pytest.param("qemu", marks=pytest.mark.long),
    ],
)
def m(templates: Callable[[str], str], request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine.create(
        templates("code-interpreter"),
        driver=request.param,
        autosleep="never",
        env={"MINE": "yes"},
        timeout=900,
    ) as machine:
        yield machine


def refused(call: Callable[[], object]) -> RoostError:
    with pytest.raises(RoostError) as caught:
        call()
    return caught.value


def test_what_it_made_stays(m: Machine) -> None:
    first = m.run_code("x = 20\nprint('hello')\nx + 1")
    assert (first.status, first.stdout, first.text) == ("ok", "hello\n", "21")
    second = m.run_code("x += 2; x")
    assert second.text == "22"
    assert second.execution_count == (first.execution_count or 0) + 1
    assert m.run_code("import os; os.environ['MINE']").text == "'yes'", "baked, and yet it knows"
    assert m.run_code("x", context="other").error is not None, "names of its own"
    assert {c["name"] for c in m.code.contexts()} == {"default", "other"}
    m.code.delete("other")
    assert [c["name"] for c in m.code.contexts()] == ["default"]


def test_no_kernel_is_reached_by_a_port(m: Machine) -> None:
    """Whoever reads files reads the key that signs what a kernel is told: only 7114 asks the list of tools."""
    (kernel,) = json.loads(
        m.run_code(
            "import ipykernel.connect, json; print(json.dumps([ipykernel.connect.get_connection_info(unpack=False)]))"
        ).stdout
    )
    assert json.loads(kernel)["transport"] == "ipc"
    assert m.exec("stat -c %a $(dirname $(ls -d /dev/shm/roost-kernel-*/*-1))").stdout == "700\n"


def test_tables_and_pictures(m: Machine) -> None:
    table = m.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2], 'Ü': ['x', '漢']})")
    assert "<table" in (table.results[0].html or "") and "漢" in (table.results[0].text or "")
    drawn = m.run_code(
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(4, 3), dpi=100)\n"
        "ax.set_facecolor('#c81e1e'); ax.plot([1, 3, 2], 'w'); plt.show()"
    )
    (data,) = drawn.pngs
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    assert 300 < picture.width < 500 and 200 < picture.height < 400
    assert (200, 30, 30) in {colour for _, colour in picture.getcolors(1 << 24) or []}


def test_what_it_raises_is_a_result(m: Machine) -> None:
    result = m.run_code("def f():\n    return 1/0\nf()")
    assert result.status == "error" and result.error is not None
    assert result.error.name == "ZeroDivisionError" and "in f()" in result.error.traceback
    assert "\x1b" not in result.error.traceback
    with pytest.raises(CodeFailed):
        m.run_code("1/0", check=True)
    assert m.run_code("input()").error is not None, "nobody answers"
    assert "python" in refused(lambda: m.run_code("1", "cobol")).message


def test_it_comes_as_it_is_said(m: Machine) -> None:
    came: list[tuple[float, str]] = []
    begun = time.monotonic()
    shown: list[object] = []
    result = m.run_code(
        "import time, sys\nfor n in range(3):\n    print(n, flush=True); time.sleep(0.7)\nprint('no', file=sys.stderr)\ndisplay(7)",
        on_stdout=lambda text: came.append((time.monotonic() - begun, text)),
        on_stderr=shown.append,
        on_result=shown.append,
    )
    assert "".join(text for _, text in came) == result.stdout == "0\n1\n2\n"
    assert came[-1][0] - came[0][0] > 0.7, "not all at the end"
    assert shown[0] == "no\n" and getattr(shown[1], "text", None) == "7"


def test_time_runs_out_and_what_it_made_is_kept(m: Machine) -> None:
    m.run_code("kept = 5")
    with pytest.raises(CodeTimeout) as caught:
        m.run_code("print('before'); import time; time.sleep(600)", timeout=3.0)
    assert caught.value.result.stdout == "before\n" and not caught.value.result.restarted
    assert m.run_code("kept").text == "5"
    found: list[str] = []
    spins = "open('/tmp/spins', 'w').close()\nwhile True: pass"
    worker = threading.Thread(target=lambda: found.append(m.run_code(spins, timeout=60).status))
    worker.start()
    while worker.is_alive() and not m.exec(["test", "-e", "/tmp/spins"]).ok:
        time.sleep(0.1)
    m.code.interrupt()
    worker.join(60)
    assert found == ["interrupted"]
    assert m.run_code("kept").text == "5"


def test_a_kernel_that_dies_is_told_and_made_anew(m: Machine) -> None:
    result = m.run_code("import os; os._exit(1)")
    assert (result.status, result.restarted) == ("died", True)
    assert m.run_code("'kept' in globals()").text == "False"
    m.run_code("kept = 1")
    m.code.restart()
    assert m.run_code("'kept' in globals()").text == "False"
    m.exec("pkill -9 -f '[r]oost-kernel'; pkill -9 -f '[i]pykernel'")
    assert m.run_code("1 + 1").text == "2", "the helper is started again"


def test_it_goes_on_through_sleep_and_in_forks(m: Machine) -> None:
    if not m.to_json()["memory_kept"]:
        pytest.skip("this rung keeps no memory")
    m.run_code("import numpy as np; a = np.arange(10); n = 0")
    for round_ in range(3):
        m.sleep("hibernated")
        assert m.run_code("n += 1; (n, int(a.sum()))").text == f"({round_ + 1}, 45)"
    children = m.fork(count=2)
    assert isinstance(children, list)
    try:
        for at, child in enumerate(children):
            assert child.run_code(f"n += {10 * (at + 1)}; n").text == str(3 + 10 * (at + 1))
            (child_picture,) = child.run_code(
                "import matplotlib.pyplot as p; p.plot(a); p.show()"
            ).pngs
            assert child_picture.startswith(b"\x89PNG")
    finally:
        for child in children:
            child.destroy()
    assert m.run_code("n").text == "3"


def test_what_runs_during_a_fork_is_not_lost(m: Machine) -> None:
    if not m.to_json()["memory_kept"]:
        pytest.skip("this rung keeps no memory")
    found: list[str] = []
    code = "import time\nfor n in range(40):\n    print(n, flush=True); time.sleep(0.1)\n'done'"
    worker = threading.Thread(target=lambda: found.append(m.run_code(code).stdout))
    worker.start()
    time.sleep(1)
    child = m.fork()
    assert isinstance(child, Machine)
    child.destroy()
    worker.join(60)
    assert found == ["".join(f"{n}\n" for n in range(40))]


def test_by_the_command_line(m: Machine, tmp_path: Path) -> None:
    def roost(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "roost.cli", "run-code", m.id, *args]
        return subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=120)

    assert roost("-c", "cli = 6 * 7; print('said'); cli").stdout == "said\n42\n"
    assert roost(stdin="cli + 1").stdout == "43\n", "names stay"
    failed = roost("-c", "1/0")
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr
    assert roost("-c", "import time; time.sleep(60)", "--timeout", "0.5").returncode == 124
    file = tmp_path / "plot.py"
    file.write_text("import matplotlib.pyplot as p\np.plot([1, 2]); p.show()")
    done = roost(str(file), "--pictures", str(tmp_path / "out"), "--json")
    (saved,) = json.loads(done.stdout)["pictures"]
    assert Image.open(saved).format == "PNG"


async def test_async_too(m: Machine) -> None:
    same = await AsyncMachine.get(m.id)
    assert (await same.run_code("6 * 7")).text == "42"
