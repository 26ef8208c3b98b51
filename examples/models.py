"""What answers in the examples' agent loops: a provider's model, or a script that stands in for one.

A model is asked with ``next(results)`` and says what it wants done; the loop does it with ``roost.tools`` and asks again:

    while calls := model.next(results):
        results = tools.run_all(calls)

Keys come from the environment, and so do addresses, where another server speaks the same API: ANTHROPIC_API_KEY and
ANTHROPIC_BASE_URL, OPENAI_API_KEY and OPENAI_BASE_URL.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from typing import Any

import httpx

from roost import Machine
from roost.tools import anthropic, openai

MAX_TURNS = 50


def arguments(about: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--provider", choices=["script", "anthropic", "openai"], default="script")
    made.add_argument("--model", help="as the provider names it")
    made.add_argument("--keep", action="store_true", help="leave the machine")
    return made


def work(
    machine: Machine, task: str, script: list[Step], options: argparse.Namespace, **tools: Any
) -> None:
    """The loop. ``tools``: as of ``Tools``."""
    if options.provider != "script" and not options.model:
        raise SystemExit("--model is missing: which of the provider's models?")
    kind = openai if options.provider == "openai" else anthropic
    with kind.Tools(machine, **tools) as hands:
        model: Any = Script(script)
        if options.provider == "anthropic":
            model = Anthropic(options.model, task, hands.definitions(), hands.betas)
        elif options.provider == "openai":
            model = OpenAI(options.model, task, hands.definitions())
        results: list[dict[str, Any]] = []
        for _ in range(MAX_TURNS):
            calls = model.next(results)
            if not any(hands.handles(call) for call in calls):
                return
            results = hands.run_all(calls)
            for result in results:
                show(result)
        raise SystemExit(f"not done after {MAX_TURNS} turns")


def show(result: dict[str, Any]) -> None:
    """What a tool answered, in a few lines."""
    content = result.get("content") or result.get("output") or ""
    for block in [{"text": content}] if isinstance(content, str) else content:
        text = block.get("text", f"({block.get('type', 'something')})")
        print("".join(f"    {line}\n" for line in text.splitlines()[:12]), end="")


@dataclass
class Step:
    """What a scripted model says, wants done, and expects to read of it."""

    say: str
    do: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    expect: str = ""


class Script:
    """Speaks as a model of the Messages API would. It stops where the machine answers other than it should."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = iter(steps)
        self._expected = ""
        self._count = 0

    def next(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._expected not in json.dumps(results, ensure_ascii=False):
            raise SystemExit(f"expected {self._expected!r} in {results}")
        step = next(self._steps)
        print(f"> {step.say}")
        self._expected = step.expect
        calls = []
        for name, given in step.do:
            self._count += 1
            calls.append(
                {"type": "tool_use", "id": f"toolu_{self._count}", "name": name, "input": given}
            )
            print(f"  {name} {json.dumps(given)[:100]}")
        return calls


class Anthropic:
    """The Messages API, https://platform.claude.com/docs/en/api/messages."""

    def __init__(
        self, model: str, task: str, tools: list[dict[str, Any]], betas: list[str]
    ) -> None:
        self._body = {"model": model, "max_tokens": 8192, "tools": tools}
        self._messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
        self._http = httpx.Client(
            base_url=os.environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
            headers={
                "x-api-key": os.environ["ANTHROPIC_API_KEY"],
                "anthropic-version": "2023-06-01",
                **({"anthropic-beta": ",".join(betas)} if betas else {}),
            },
            timeout=600,
        )

    def next(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if results:
            self._messages.append({"role": "user", "content": results})
        answer = self._http.post("/v1/messages", json={**self._body, "messages": self._messages})
        answer.raise_for_status()
        content: list[dict[str, Any]] = answer.json()["content"]
        self._messages.append({"role": "assistant", "content": content})
        for block in content:
            print(f"> {block['text']}" if block["type"] == "text" else f"  {block.get('name', '')}")
        return content


class OpenAI:
    """The Responses API, https://developers.openai.com/api/reference/resources/responses."""

    def __init__(self, model: str, task: str, tools: list[dict[str, Any]]) -> None:
        self._body: dict[str, Any] = {"model": model, "tools": tools}
        self._first: list[dict[str, Any]] = [{"role": "user", "content": task}]
        self._http = httpx.Client(
            base_url=os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
            headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
            timeout=600,
        )

    def next(self, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = self._http.post("/responses", json={**self._body, "input": results or self._first})
        answer.raise_for_status()
        response = answer.json()
        self._body["previous_response_id"] = response["id"]
        output: list[dict[str, Any]] = response["output"]
        for item in output:
            if item["type"] == "message":
                print("".join(f"> {part.get('text', '')}\n" for part in item["content"]), end="")
            elif item["type"] != "reasoning":
                print(f"  {item.get('name', item['type'])}")
        return output
