"""``e2b-code-interpreter`` against our template of that name, whose kernel answers behind port 49999."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.foreign import Raised, Worker
from tests.conformance.record import record

CLIENT, VERSION = "e2b-code-interpreter (PyPI)", "2.11.5"


@pytest.fixture(scope="module")
def box(foreign: Worker, templates: Callable[[str], str]) -> Iterator[Worker]:
    templates("code-interpreter")
    foreign.run("from e2b_code_interpreter import Sandbox as Interpreter")
    foreign.run("ci = Interpreter.create(**OPTS, timeout=300)", timeout=200)
    try:
        yield foreign
    finally:
        with contextlib.suppress(Raised):
            foreign.run("ci.kill()")


@pytest.mark.long  # it builds two templates
def test_code_is_run_and_shown(box: Worker) -> None:
    box.run(
        "said = []; ran = ci.run_code('x = 20\\nprint(\"hi\")\\nx + 22', on_stdout=lambda m: said.append(m.line))"
    )
    assert box.value("(ran.text, ran.logs.stdout, said, ran.error)") == [
        "42",
        ["hi\n"],
        ["hi\n"],
        None,
    ]
    assert box.value("ci.run_code('x').text") == "20", "names stay"
    box.run("ran = ci.run_code('1/0')")
    assert box.value("(ran.error.name, ran.error.value)") == [
        "ZeroDivisionError",
        "division by zero",
    ]
    box.run("ran = ci.run_code('import matplotlib.pyplot as p; p.plot([1, 2]); p.show()')")
    assert box.value("[bool(each.png) for each in ran.results]") == [True]

    box.run("other = ci.create_code_context(cwd='/tmp')")
    assert box.value("ci.run_code('import os; os.getcwd()', context=other).text") == "'/tmp'"
    box.run("ran = ci.run_code('x', context=other)")
    assert box.value("ran.error.name") == "NameError", "each has names of its own"
    assert box.value("other.id in [each.id for each in ci.list_code_contexts()]") is True
    box.run("ci.run_code('y = 1', context=other); ci.restart_code_context(other)")
    assert box.value("ci.run_code('y', context=other).error.name") == "NameError"
    box.run("ci.remove_code_context(other)")
    with pytest.raises(Raised):
        box.run("ci.run_code('1', context=other)")
    with pytest.raises(Raised, match="Roost does not serve"):
        box.run("ci.run_code('1', envs={'A': 'b'})")
    with pytest.raises(Raised) as found:
        box.run("ci.run_code('import time; time.sleep(30)', timeout=1)")
    assert "TimeoutException" in found.value.kinds
    assert box.value("ci.run_code('x').text") == "20", "the run was interrupted, not the kernel"

    box.run("ci.pause(); ci = Interpreter.connect(ci.sandbox_id)")
    assert box.value("ci.run_code('x').text") == "20"
    for method in (
        "run_code",
        "create_code_context",
        "list_code_contexts",
        "restart_code_context",
        "remove_code_context",
    ):
        record(CLIENT, VERSION, f"Sandbox.{method}", "works")
    record(CLIENT, VERSION, "Sandbox.run_code(envs=)", "not served", "set them in the code")
