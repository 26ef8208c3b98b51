"""The tools that model providers define, at work in real machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from roost import Client, Machine
from roost.tools import anthropic, openai

from .conftest import Daemon

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def machine(daemon: Daemon, driver: str) -> Iterator[Machine]:
    with Client(daemon.url, daemon.key) as client:
        made = Machine.create(driver=driver, memory_mib=256, ttl="30m", client=client)
        yield made
        made.destroy()


def use(name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": given}


def said(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


def test_anthropic(machine: Machine) -> None:
    editor = "str_replace_based_edit_tool"
    with anthropic.Tools(machine) as tools:
        path = "/workspace/t/a.py"
        results = tools.run_all(
            [
                use("bash", command="mkdir -p /workspace/t && cd /workspace/t && export WHO=ada"),
                use(editor, command="create", path=path, file_text="print('hi')\n"),
                use(editor, command="str_replace", path=path, old_str="hi", new_str="bye"),
                use(editor, command="insert", path=path, insert_line=1, insert_text="import os"),
                use(editor, command="view", path="/workspace/t"),
                use("bash", command="echo \"print(os.environ['WHO'])\" >> a.py; python3 a.py"),
            ]
        )
        assert not any(each.get("is_error") for each in results), results
        assert said(results[4]) == "/workspace/t\n/workspace/t/a.py"
        assert said(results[5]) == "bye\nada"
        # What it starts goes on; the shell answers; the machine may sleep in between.
        assert said(tools.run(use("bash", command="sleep 300 & echo $!"))).isdigit()
        late = tools.run(use("bash", command="echo a; sleep 300", timeout=1))
        assert late["is_error"]
        assert "keeps its state" in said(late)
        machine.sleep("frozen")
        assert (
            said(tools.run(use("bash", command="pwd; jobs %1 | grep -c sleep")))
            == "/workspace/t\n1"
        )
        flood = tools.run(use("bash", command="yes | head -c 20000000"))
        assert len(said(flood)) < 31_000
    assert machine.terminals.list() == []


def test_openai(machine: Machine) -> None:
    def call(name: str, **given: Any) -> str:
        item = {
            "type": "function_call",
            "call_id": "c",
            "name": name,
            "arguments": json.dumps(given),
        }
        (answer,) = tools.run_all([item])
        return str(answer["output"])

    with openai.Tools(machine) as tools:
        call("write_file", path="/workspace/o/x", content="one\ntwo\n")
        call("edit_file", path="/workspace/o/x", old_text="two", new_text="2", replace_all=None)
        assert call("shell", command="cd /workspace/o; cat x; id -un") == "one\n2\nroot"
        assert (
            call("read_file", path="/workspace/o", first_line=None)
            == "/workspace/o\n/workspace/o/x"
        )
        assert call("shell", command="pwd", timeout_seconds=9.5) == "/workspace/o"
