"""Every text that a request can hold, found in the OpenAPI document, with what does harm elsewhere in it (cases 44 and 45).

Whatever it is, the answer is no failure of ours; and where the text is a name of something, it is none.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.unit.api.kit import TENANT
from tests.unit.api.test_contract import HARMFUL
from tests.unit.api.test_gate import BODIES, E, T
from tests.unit.api.test_two_tenants import World, half_an_agent

__all__ = ["half_an_agent"]

ODD = (
    "../../../../etc/passwd",
    "-rf",
    ";id",
    "$(id)",
    "a,file=/etc/passwd,if=none",  # options of a VMM end at commas
    "a b root=/dev/vdb",  # and a kernel's at spaces
    "a\nb",
    "a\0b",
    "\x1b[31m<script>",
    "\u202e\ufeff",
    "x" * 65536,
)
# What may be any text: it is run, said, written, or compared with; or it is a label, which nothing is called after.
FREE = frozenset(
    {
        "command",
        "args",
        "env",
        "text",
        "expression",
        "code",
        "input",
        "stdin",
        "stdin_b64",
        "term",
        "dockerfile",
    }
    | {"labels", "build_args", "label", "program"}
)
# A key's own name is for people; of a build's secret the value is meant.
SAID = re.compile(r"POST /v1/(keys|machines/{machine_id}/tokens) name|POST /v1/builds secrets\.k")
FILLED = {
    "execution_id": E, "terminal_id": T, "key_id": E, "token_id": E, "build_id": E, "name": "nope", "snapshot": "nope",
    "tenant_id": "nope", "port": "8000", "context": "default",
}  # fmt: skip
Slot = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    slot: str
    path: dict[str, str]
    query: dict[str, str]
    body: Any = field(repr=False)


@pytest.fixture
def world(tmp_path: Path, half_an_agent: None) -> Iterator[World]:
    world = World(tmp_path)
    world.open()
    yield world
    world.close()


def slots(document: Any, schema: Any, at: Slot = ()) -> Iterator[Slot]:
    """Where a body can hold text: through objects, maps (keys, too) and lists."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for each in schema.get("anyOf", ()):
        yield from slots(document, each, at)
    kind = schema.get("type")
    if kind == "string" and "enum" not in schema and "const" not in schema:
        yield at
    elif kind == "array" and len(at) < 4:
        yield from slots(document, schema.get("items", {}), (*at, 0))
    elif kind == "object" and len(at) < 4:
        for name, value in schema.get("properties", {}).items():
            yield from slots(document, value, (*at, name))
        if isinstance(schema.get("additionalProperties"), dict):
            yield (*at, "{key}")
            yield from slots(document, schema["additionalProperties"], (*at, "k"))


def put(body: Any, at: Slot, value: str) -> Any:
    body = copy.deepcopy(body) if body is not None else {}
    place: Any = body
    for step, after in itertools.pairwise(at):
        fresh: Any = [] if after == 0 else {}
        if isinstance(place, list):
            place[:] = [fresh]
            place = place[0]
        else:
            if not isinstance(place.get(step), type(fresh)):
                place[step] = fresh
            place = place[step]
    if at[-1] == "{key}":
        place[value] = "v"
    elif isinstance(place, list):
        place[:] = [value]
    else:
        place[at[-1]] = value
    return body


def asks(document: Any, path: str, method: str, operation: Any) -> Iterator[Asked]:
    """One call for each place and each odd text."""
    given = [each for each in operation.get("parameters", ()) if each["in"] in ("path", "query")]
    required = {
        each["name"]: "/tmp" if each["name"] == "path" else E
        for each in given
        if each["in"] == "query" and each.get("required")
    }
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    places = sorted({at for at in slots(document, schema) if at}, key=str)
    body = BODIES.get((method, path))
    for odd in ODD:
        for each in given if len(odd) < 1000 else ():
            name = each["name"]
            if each["in"] == "query":
                yield Asked(name, {}, {**required, name: odd}, body)
            elif name != "port":
                yield Asked(name, {name: odd}, required, body)
        for at in places:
            yield Asked(".".join(map(str, at)), {}, required, put(body, at, odd))


@pytest.mark.timeout(600)
def test_no_odd_text_does_harm(world: World) -> None:
    made = world.http[TENANT].post("/v1/machines", json={"memory_mib": 64})
    there = {**FILLED, "machine_id": made.json()["machine_id"]}
    document = world.served.app.openapi()
    tried = 0
    key = {"authorization": f"Bearer {world.served.admin}"}
    with httpx.Client(base_url=world.served.url, headers=key, timeout=30, trust_env=False) as admin:
        for path, operations in document["paths"].items():
            http = admin if path.startswith("/v1/tenants") else world.http[TENANT]
            for method, operation in operations.items():
                name = f"{method.upper()} {path}"
                if HARMFUL.fullmatch(name) or path.endswith(("/stream", "/watch", "/build")):
                    continue
                for number, asked in enumerate(asks(document, path, method, operation)):
                    url = path
                    for each, value in {**there, "key": f"k{number}", **asked.path}.items():
                        url = url.replace(f"{{{each}}}", quote(value, safe=""))
                    answer = http.request(method, url, params=asked.query, json=asked.body)
                    tried += 1
                    status, said = answer.status_code, (name, asked, answer.text[:500])
                    assert status < 500 or status == 501, said
                    free = method == "get" or set(asked.slot.split(".")) & FREE
                    if not free and not SAID.fullmatch(f"{name} {asked.slot}"):
                        assert status >= 400, said
    assert tried > 2000
