"""Port 49999: code that is run, as lines of JSON, and who may ask."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from roost.dialects.e2b import app
from roost.errors import error
from roost.services.code import Began, Context, Ended, Event, Raised, Result, RunCode, Shown, Text
from tests.unit.api.kit import serving
from tests.unit.dialects.e2b.conftest import as_e2b
from tests.unit.engine.kit import Daemon


class FakeCode:
    def __init__(self) -> None:
        self.asked: list[RunCode] = []
        self.contexts_: dict[str, str] = {}

    async def stream(self, tenant: str, machine: str, spec: RunCode) -> AsyncGenerator[Event, None]:
        self.asked.append(spec)
        if spec.code == "refuse":
            raise error("KERNEL_DOWN", "It is down.")
        yield Began()
        yield Text("stdout", "hi\n")
        yield Shown(True, {"text/plain": "42", "image/png": "AAAA", "x/odd": "o"})
        yield Raised("ValueError", "no", "Traceback")
        yield Ended("error", 7, False)

    async def run(self, tenant: str, machine: str, spec: RunCode) -> Result:
        self.asked.append(spec)
        self.contexts_[spec.context] = spec.language
        return Result()

    async def contexts(self, tenant: str, machine: str) -> list[Context]:
        return [Context(name, language, False, 0) for name, language in self.contexts_.items()]

    async def restart(self, tenant: str, machine: str, name: str) -> None:
        pass

    async def delete(self, tenant: str, machine: str, name: str) -> None:
        if self.contexts_.pop(name, None) is None:
            raise error("NOT_FOUND", "There is no such context.")


CODE = FakeCode()


@pytest.fixture
async def box(tmp_path: Any, engine: Daemon) -> Any:
    """(client without a key, headers, the sandbox)"""
    CODE.asked.clear()
    CODE.contexts_.clear()
    each = [lambda s, n=n: app.targets(replace(s, code=CODE))[n] for n in range(7)]
    async with serving(tmp_path, None, engine=engine, dialects=each) as served:
        async with as_e2b(served, served.key) as e2b:
            made = (await e2b.post("/v2/sandboxes", json={"templateID": "base"})).json()
            hidden = {"templateID": "base", "network": {"allowPublicTraffic": False}}
            shut = (await e2b.post("/v2/sandboxes", json=hidden)).json()
        async with httpx.AsyncClient(base_url=served.url, trust_env=False) as nobody:
            yield nobody, made, shut


def of(made: dict[str, Any], **more: str) -> dict[str, str]:
    return {"e2b-sandbox-id": made["sandboxID"], "e2b-sandbox-port": "49999", **more}


async def test_code_is_run_for_the_token_only(box: Any) -> None:
    nobody, made, _ = box
    token = {"x-access-token": made["envdAccessToken"]}
    answer = await nobody.post("/execute", json={"code": "1"}, headers=of(made, **token))
    lines = [json.loads(each) for each in answer.text.splitlines()]
    assert lines[0].pop("timestamp") > 0
    assert lines == [
        {"type": "stdout", "text": "hi\n"},
        {
            "type": "result",
            "is_main_result": True,
            "text": "42",
            "png": "AAAA",
            "extra": {"x/odd": "o"},
        },
        {"type": "error", "name": "ValueError", "value": "no", "traceback": "Traceback"},
        {"type": "number_of_executions", "execution_count": 7},
    ]
    for wrong in ({}, {"x-access-token": "0" * 64}):
        answer = await nobody.post("/execute", json={"code": "1"}, headers=of(made, **wrong))
        assert (answer.status_code, answer.json()["code"]) == (401, 401)
    answer = await nobody.post("/execute", json={"code": "refuse"}, headers=of(made, **token))
    assert answer.status_code == 502
    asked = {"code": "1", "env_vars": {"A": "b"}}
    answer = await nobody.post("/execute", json=asked, headers=of(made, **token))
    assert answer.status_code == 501
    asked = {"code": "1", "context_id": "none"}
    assert (await nobody.post("/execute", json=asked, headers=of(made, **token))).status_code == 404
    gone = {"e2b-sandbox-id": "a" * 26}
    answer = await nobody.post("/execute", json={"code": "1"}, headers=gone)
    assert answer.status_code == 502 and answer.json()["message"] == "The sandbox was not found"


async def test_what_is_remembered_of_a_context_is_short(box: Any) -> None:
    nobody, made, _ = box
    answer = await nobody.post("/contexts", json={"cwd": "/" * 5000}, headers=of(made))
    assert answer.status_code == 400 and not CODE.contexts_


async def test_contexts_are_whose_ports_one_may_see(box: Any) -> None:
    nobody, made, shut = box
    answer = await nobody.post("/contexts", json={"cwd": "/tmp"}, headers=of(made))
    assert answer.status_code == 201
    context = answer.json()
    assert context == {"id": context["id"], "language": "python", "cwd": "/tmp"}
    assert "'/tmp'" in CODE.asked[-1].code and CODE.asked[-1].context == context["id"]
    assert (await nobody.get("/contexts", headers=of(made))).json() == [context]
    token = {"x-access-token": made["envdAccessToken"]}
    asked = {"code": "1", "context_id": context["id"]}
    await nobody.post("/execute", json=asked, headers=of(made, **token))
    assert (CODE.asked[-1].context, CODE.asked[-1].language) == (context["id"], "python")
    one = f"/contexts/{context['id']}"
    assert (await nobody.post(f"{one}/restart", headers=of(made))).status_code == 200
    assert (await nobody.delete(one, headers=of(made))).status_code == 204
    assert (await nobody.delete(one, headers=of(made))).status_code == 404
    assert (await nobody.get("/contexts", headers=of(shut))).status_code == 401
    traffic = {"e2b-traffic-access-token": shut["trafficAccessToken"]}
    assert (await nobody.get("/contexts", headers=of(shut, **traffic))).status_code == 200
    wrong = {"e2b-traffic-access-token": shut["trafficAccessToken"][:-4] + "AAAA"}
    assert (await nobody.get("/contexts", headers=of(shut, **wrong))).status_code == 401
