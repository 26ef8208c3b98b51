"""Schemathesis: whatever is sent, the answer is one the OpenAPI document promises, and never a 5xx of ours."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from roost.api.v1 import Services, create_app
from roost.api.v1.app import openapi
from tests.unit.agent import process
from tests.unit.api.kit import Served

schemathesis.serializer.alias("application/x-tar", "application/octet-stream")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """The serving side in a thread of its own: url, key, a machine."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def do(work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    directory: Path = tmp_path_factory.mktemp("contract")
    with process.running(directory / "agent") as agent:
        served = Served(directory, agent.target)
        do(served.open())

        async def machine() -> str:
            return served.machine("default")

        try:
            yield served.url, served.admin, do(machine())
        finally:
            do(served.close())
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)


def operations() -> dict[str, Any]:
    nothing: Any = None
    document = openapi(create_app(Services(*[nothing] * len(fields(Services)))))
    found = {}
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        found[f"{operation.method.upper()} {operation.path}"] = operation
    return found


OPERATIONS = operations()
# These would change this host's own files; these streams never end.
HARMFUL = re.compile(
    r"(PUT|DELETE|PATCH|POST) .*/files(/.*)?|.*/(files/watch|status/stream)$|GET /v1/machines/.*/tar$|GET /v1/(audit|approvals)/stream"
)

# The machine of these tests has no browser, screen or kernel, and a link opens no tcp port: 501 says so.
NOT_HERE = re.compile(
    r".*/machines/\{machine_id\}/((browser|computer|code)(/.*)?|ports/\{port\}/links)"
)


@pytest.mark.parametrize("examples", [4, pytest.param(40, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", [each for each in OPERATIONS if not HARMFUL.fullmatch(each)])
def test_the_document_is_kept(name: str, examples: int, live: tuple[str, str, str]) -> None:
    url, key, machine = live

    @given(case=OPERATIONS[name].as_strategy())
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    def holds(case: schemathesis.Case) -> None:
        if "machine_id" in case.path_parameters and name != "DELETE /v1/machines/{machine_id}":
            case.path_parameters["machine_id"] = machine
        if isinstance(case.body, dict) and "command" in case.body:
            case.body["command"] = ["true"] if case.body["command"] else []
        response = case.call(headers={"authorization": f"Bearer {key}"}, base_url=url, timeout=20)
        not_here = response.status_code == 501 and NOT_HERE.fullmatch(name)
        case.validate_response(
            response,
            checks=[
                *(() if not_here else (not_a_server_error,)),
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ],
        )

    holds()


def test_every_operation_says_what_it_does(live: tuple[str, str, str]) -> None:
    document = httpx.get(f"{live[0]}/openapi.json", trust_env=False).json()
    names = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            codes = set(operation["responses"])
            assert {"401", "404", "422", "500", "503"} <= codes, (method, path)
    assert len(names) == len(set(names))
