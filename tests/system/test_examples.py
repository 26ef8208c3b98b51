"""The examples, run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roost.tools._pictures import size_of
from tests.unit.client.stub import Request, Stub

from .conftest import Daemon

pytestmark = pytest.mark.system
EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = EXAMPLES.parent / "templates"


def test_a_machine_for_each_chat_user(daemon: Daemon) -> None:
    """State is kept between turns, over sleep and over a restart of the daemon, which the test does at its word."""
    ask, answer = os.pipe(), os.pipe()
    restart = f"echo >&{ask[1]}; read line <&{answer[0]}"
    env = {**daemon.env, "ROOST_API_KEY": daemon.key}
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "chat_users.py", "--restart", f"exec bash -c '{restart}'"],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(ask[1], answer[0]),
    )
    try:
        assert os.read(ask[0], 1)
        daemon.restart()
        os.write(answer[1], b"\n")
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        for each in (*ask, *answer):
            os.close(each)
    assert process.returncode == 0, said
    assert said.count("the process of turn one still runs") == 3
    assert "was hibernated" in said
    assert "vCPU-seconds" in said


def run(daemon: Daemon, example: str, *options: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, *options],
        env={**daemon.env, "ROOST_API_KEY": daemon.key, **env},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_agent_that_codes(daemon: Daemon) -> None:
    said = run(daemon, "coding_agent.py")
    assert "AssertionError: 3 != 2.5" in said
    assert said.rstrip().endswith("OK")


class Provider:
    """A provider's API of a few lines, whose model writes a program that the example's proof accepts."""

    FILES = (
        ("stats.py", "def median(n):\n    return sorted(n)[1]\n"),
        (
            "test_stats.py",
            "import unittest, stats\nclass T(unittest.TestCase):\n  def test(self):\n    self.assertEqual(stats.median([3, 1, 2]), 2)\n",
        ),
    )

    def __init__(self) -> None:
        self.stub = Stub()
        self.stub.on("POST", "/v1/messages", self.messages)
        self.stub.on("POST", "/responses", self.responses)
        self.asked: list[Any] = []

    def messages(self, request: Request) -> Any:
        self.asked.append(request.json)
        if len(self.asked) == 1:
            tool, text = "str_replace_based_edit_tool", {"type": "text", "text": "Now."}
            files = [
                {
                    "type": "tool_use",
                    "id": f"t{n}",
                    "name": tool,
                    "input": {
                        "command": "create",
                        "path": f"/workspace/stats/{name}",
                        "file_text": held,
                    },
                }
                for n, (name, held) in enumerate(self.FILES)
            ]
            return {"content": [text, *files]}
        return {"content": [{"type": "text", "text": "It is written."}]}

    def responses(self, request: Request) -> Any:
        self.asked.append(request.json)
        if len(self.asked) == 1:
            files = [
                {
                    "type": "function_call",
                    "call_id": f"c{n}",
                    "name": "write_file",
                    "arguments": json.dumps({"path": f"/workspace/stats/{name}", "content": held}),
                }
                for n, (name, held) in enumerate(self.FILES)
            ]
            return {"id": "r1", "output": [{"type": "reasoning"}, *files]}
        part = {"type": "output_text", "text": "It is written."}
        return {"id": "r2", "output": [{"type": "message", "content": [part]}]}


def test_an_agent_with_a_providers_model(daemon: Daemon) -> None:
    """The wire of both, against a stand-in: what is sent is what their APIs take."""
    for name in ("anthropic", "openai"):
        provider, upper = Provider(), name.upper()
        env = {f"{upper}_API_KEY": "secret", f"{upper}_BASE_URL": provider.stub.url}
        try:
            said = run(daemon, "coding_agent.py", "--provider", name, "--model", "m", **env)
        finally:
            provider.stub.close()
        assert "> It is written." in said
        first, second = provider.asked
        assert first["model"] == "m"
        if name == "anthropic":
            assert [each["name"] for each in first["tools"]] == [
                "bash",
                "str_replace_based_edit_tool",
            ]
            assert [each["role"] for each in second["messages"]] == ["user", "assistant", "user"]
            results = second["messages"][2]["content"]
            assert [each["tool_use_id"] for each in results] == ["t0", "t1"]
        else:
            assert [each["type"] for each in first["tools"]] == ["function"] * 4
            assert second["previous_response_id"] == "r1"
            assert [each["call_id"] for each in second["input"]] == ["c0", "c1"]


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (RECIPES / "browser/Dockerfile").exists(), reason="no template browser")
def test_an_agent_with_a_browser(daemon: Daemon, tmp_path: Path) -> None:
    daemon.build_template("browser")
    said = run(daemon, "browser_agent.py", "--picture", str(tmp_path / "p.png"))
    assert "Ada: good morning" in said
    assert said.rstrip().endswith("Ada is in the book.")
    width, height = size_of((tmp_path / "p.png").read_bytes())
    assert width is not None
    assert width * (height or 0) > 100_000


def test_an_agent_inside(daemon: Daemon) -> None:
    """It builds, shows, tries in a copy and sleeps, all asked for by itself."""
    said = run(daemon, "agent_inside.py", "--driver", "gvisor")
    assert "it is at http://8000-" in said
    assert "forks left: 3" in said
    assert "another way, tried in a copy" in said
    assert "the machine sleeps: hibernated" in said
    assert "built by an agent inside" in said
