"""Two tenants and the whole API, in any order: Schemathesis makes the calls, a state machine of Hypothesis the history.

Each call is somebody's, with ids of its own, of the other tenant's, and of nothing. After each one:

- it is no failure of ours (5xx), and one that the OpenAPI document promises;
- the answer names nothing of the other tenant's: no id, no token;
- what was asked of the other's is answered exactly as what is not there, and changes nothing of the other's.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
import threading
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from schemathesis import GenerationMode

from roost import ids
from roost.agent.client import Agents
from roost.store import schema
from tests.unit.agent import process
from tests.unit.api.kit import OTHER, TENANT, Served, serving
from tests.unit.api.test_contract import HARMFUL, OPERATIONS
from tests.unit.engine import kit
from tests.unit.engine.kit import daemon

TENANTS = (TENANT, OTHER)
# These have no id of a tenant's thing, or wait for what comes and fill the host.
NEVER = re.compile(
    r"POST /v1/templates/.*/build|POST /v1/builds|PUT /v1/builds/.*|GET /v1/(builds/.*|audit|approvals)/stream"
)
CALLS = sorted(each for each in OPERATIONS if not NEVER.fullmatch(each))
# These would wait for what comes, or change files of this host, which the agents have: only the other's are asked for.
FOREIGN = {
    each for each in CALLS if HARMFUL.fullmatch(each) or re.fullmatch(r".*/(stream|logs)", each)
}
OFTEN = [*CALLS, *sorted(FOREIGN) * 3]
HARMLESS = "/nonexistent/of-a-test"
# Of the same name for everybody, so they tell nothing.
SHARED = {"request_id", "template_id", "node_id", "image_digest", "digest", "host_key"}
# What stands for a path's parameter in answers, where it is not called the same.
CALLED = {"snapshot": "snapshot_id", "key": "key", "name": "name", "volume": "volume_id"}
# What goes by itself later is not looked at, nor these columns, which the daemon writes by itself.
KEPT = (schema.machines, schema.keys, schema.volumes, schema.ssh_keys, schema.secrets)
ITS_OWN = {
    "phase", "tier", "reason", "retryable", "last_error", "revision", "generation", "disk_ready", "slot_index", "handle",
    "memory_image", "inside", "last_transition_at", "last_progress_at", "last_activity_at", "last_used_at", "status",
    "raw_written",
}  # fmt: skip
_TOKEN = re.compile(r"[a-z0-9_]{24,80}", re.ASCII)


class World:
    """A daemon with machines of the fake driver, in a thread of its own; all machines of a tenant share one real agent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.stack = AsyncExitStack()
        self.processes = ExitStack()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def open(self) -> None:
        self.thread.start()
        targets = {
            tenant: self.processes.enter_context(process.running(self.directory / tenant)).target
            for tenant in TENANTS
        }
        self.do(self._open(targets))

    async def _open(self, targets: dict[str, str]) -> None:
        self.agents = Agents()
        for tenant, target in targets.items():
            REAL[tenant] = self.agents.get(tenant, target, process.TOKEN)
        (self.directory / "engine").mkdir()
        self.engine = await self.stack.enter_async_context(daemon(self.directory / "engine"))
        REAL["engine"] = self.engine.engine
        (self.directory / "api").mkdir()
        self.served: Served = await self.stack.enter_async_context(
            serving(self.directory / "api", None, engine=self.engine)
        )
        self.http = {
            tenant: httpx.Client(
                base_url=self.served.url,
                headers={"authorization": f"Bearer {key}"},
                timeout=30,
                trust_env=False,
            )
            for tenant, key in ((TENANT, self.served.key), (OTHER, self.served.other_key))
        }
        keys = (self.served.key, self.served.other_key)
        self.used = {(await self.served.keys.authenticate(key)).key_id for key in keys}

    def close(self) -> None:
        for each in self.http.values():
            each.close()
        self.do(self.stack.aclose())
        self.do(self.agents.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.processes.close()

    def rows(self, tenant: str) -> set[tuple[Any, ...]]:
        """What a tenant has, without what the daemon changes by itself."""

        def read(connection: sa.Connection) -> set[tuple[Any, ...]]:
            found: set[tuple[Any, ...]] = set()
            for table in KEPT:
                query = sa.select(*(c for c in table.c if c.name not in ITS_OWN))
                if "tenant_id" in table.c:
                    query = query.where(table.c.tenant_id == tenant)
                found |= {(table.name, *map(repr, row)) for row in connection.execute(query)}
            return found

        return self.do(self.served.store.read(read))


REAL: dict[str, Any] = {}  # agents by tenant, and the engine, which knows whose a machine is


@pytest.fixture
def half_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a machine is the fake agent's; what is done in it is the real one's."""
    for name in (
        "run", "start", "attach", "wait", "output", "forget", "list_executions", "dial", "write_file", "read_file",
        "remove", "make_dir", "stat", "tar_in",
    ):  # fmt: skip
        monkeypatch.delattr(kit.FakeAgent, name)

    def real(agent: kit.FakeAgent, name: str) -> Any:
        entry = REAL["engine"].roster._entries.get(agent.machine_id)
        tenant = TENANT if entry is None else entry.running.machine.tenant_id
        return getattr(REAL[tenant], name)

    monkeypatch.setattr(kit.FakeAgent, "__getattr__", real, raising=False)


def other(tenant: str) -> str:
    return OTHER if tenant == TENANT else TENANT


def histories(directory: Path) -> type[RuleBasedStateMachine]:
    class Histories(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = World(Path(tempfile.mkdtemp(dir=directory)))
            self.world.open()
            self.known: dict[str, dict[str, list[str]]] = {t: defaultdict(list) for t in TENANTS}
            self.sent: dict[str, set[str]] = {t: set() for t in TENANTS}

        def teardown(self) -> None:
            self.world.close()

        @initialize()
        def begin(self) -> None:
            for tenant in TENANTS:
                http = self.world.http[tenant]

                def made(path: str, body: Any, method: str = "POST", t: str = tenant) -> Any:
                    answer = self.world.http[t].request(method, path, json=body)
                    assert answer.status_code < 300, (path, answer.text)
                    said = answer.json()
                    self.learn(t, said)
                    return said

                small = {"memory_mib": 64, "vcpu": 0.1, "labels": {"of": tenant}}
                mid = made("/v1/machines", {**small, "name": f"name-of-{tenant}"})["machine_id"]
                made("/v1/machines", small)
                at = f"/v1/machines/{mid}"
                made(f"{at}/executions", {"command": ["true"]})
                made(f"{at}/terminals", {"command": ["/bin/cat"]})
                made(f"{at}/ports", {"port": 8000})
                made(f"{at}/tokens", {"scope": "machine"})
                made(f"{at}/snapshots", {"name": f"snapshot-of-{tenant}"})
                made(f"{at}/fork", {"count": 1})
                made("/v1/volumes", {"name": f"volume-of-{tenant}", "size_gib": 1})
                made("/v1/keys", {"name": f"key-of-{tenant}"})
                for path in ("/v1/machines", "/v1/snapshots", "/v1/volumes", "/v1/keys"):
                    self.learn(tenant, http.get(path).json())

        def learn(self, tenant: str, said: Any, name: str = "") -> None:
            if isinstance(said, dict):
                for key, value in said.items():
                    if key not in SHARED:
                        self.learn(tenant, value, key)
            elif isinstance(said, list):
                for each in said:
                    self.learn(tenant, each, name)
            elif isinstance(said, str) and said not in self.known[tenant][name]:
                if any(said in found for found in self.known[other(tenant)].values()):
                    return  # an audit log has what was asked for, also in vain
                named = name == "name" and tenant in said
                if ids.formed(said) or _TOKEN.fullmatch(said) or named:
                    self.known[tenant][name].append(said)

        def of(self, tenant: str, name: str) -> list[str]:
            known = self.known[tenant]
            return (
                known.get(CALLED.get(name, name))
                or known.get(f"{name}_id")
                or known.get("id")
                or []
            )

        @rule(data=st.data(), tenant=st.sampled_from(TENANTS), call=st.sampled_from(OFTEN))
        def ask(self, data: st.DataObject, tenant: str, call: str) -> None:
            valid = {"generation_mode": GenerationMode.POSITIVE} if call in FOREIGN else {}
            case = data.draw(OPERATIONS[call].as_strategy(**valid), label=call)
            foreign: set[str] = set()

            def pick(name: str, given: Any) -> Any:
                anybody = ("own", "own", "other", "none", "given")
                whose = data.draw(
                    st.sampled_from(("other",) if call in FOREIGN else anybody), label=name
                )
                if whose in ("own", "other"):
                    found = self.of(tenant if whose == "own" else other(tenant), name)
                    if whose == "own":  # who revokes the key it asks with hears 401 from then on
                        found = [each for each in found if each not in self.world.used]
                    if found:
                        chosen = data.draw(st.sampled_from(found), label=f"{whose} {name}")
                        if whose == "other":
                            foreign.add(chosen)
                        return chosen
                return given if whose == "given" else ids.new()

            if call in FOREIGN:
                _harmless(case)
            for name, given in case.path_parameters.items():
                if name not in ("port", "context"):
                    case.path_parameters[name] = pick(name, given)
            for part in (case.query, case.body):
                if isinstance(part, dict):
                    for name in ("ttl", "expires_at", "autosleep", "on_expiry"):
                        part.pop(name, None)  # it would end in the midst of somebody else's call
                    for name in part:
                        if name in (
                            "snapshot",
                            "onto",
                            "other",
                            "parent",
                            "machine",
                            "machine_id",
                            "key_id",
                            "template",
                        ):
                            kind = (
                                "machine_id"
                                if name in ("onto", "other", "parent", "machine")
                                else name
                            )
                            part[name] = pick(kind, part[name])
                        elif name == "command":
                            part[name] = ["true"] if part[name] else []
                        elif name in ("memory_mib", "vcpu", "storage_gib", "count") and isinstance(
                            part[name], int
                        ):
                            part[name] = min(part[name], 64 if name == "memory_mib" else 1)
            if call.endswith("/diff") and not foreign:
                return  # of this whole host, which is what the agents see
            before = self.world.rows(other(tenant)) if foreign else None
            answer = self.call(tenant, case)
            assert call not in FOREIGN or answer.status_code in (404, 422), (call, answer.text)
            told = answer.text + str(answer.headers)
            promised = case.operation.responses  # what the document says may come
            assert str(answer.status_code) in promised.status_codes, (
                call,
                answer.status_code,
                told[:500],
            )
            assert answer.status_code < 500 or answer.status_code == 501, (call, told[:1000])
            sent = json.dumps([case.path_parameters, case.query, case.body], default=str)
            theirs = {each for found in self.known[other(tenant)].values() for each in found}
            own = {each for found in self.known[tenant].values() for each in found}
            if "/v1/audit" in call:  # it tells what was asked for, also of what is not one's own
                theirs -= self.sent[tenant]
            # What is no id may be anybody's own name for a thing, once it was sent.
            theirs -= {each for each in self.sent[tenant] if not ids.formed(each)}
            self.sent[tenant] |= foreign
            leaked = {
                each for each in theirs - own if len(each) > 8 and each in told and each not in sent
            }
            assert not leaked, (call, leaked, told[:1000])
            if foreign:
                assert before is not None
                assert before <= self.world.rows(other(tenant)), (
                    call,
                    "changed what is not its own",
                )
                self.as_missing(tenant, case, foreign, answer, call)
            elif answer.status_code < 300 and "json" in answer.headers.get("content-type", ""):
                self.learn(tenant, answer.json())

        def call(self, tenant: str, case: Any) -> httpx.Response:
            kwargs = case.as_transport_kwargs(base_url=self.world.served.url)
            kwargs.pop("cookies", None)
            headers = {
                k: v
                for k, v in dict(kwargs.pop("headers", None) or {}).items()
                if k.lower() != "authorization"
            }
            headers.pop("idempotency-key", None)
            request = self.world.http[tenant].build_request(
                kwargs.pop("method"), kwargs.pop("url"), headers=headers,
                params=kwargs.get("params"), json=kwargs.get("json"), content=kwargs.get("data"),
            )  # fmt: skip
            try:
                return self.world.http[tenant].send(request)
            except httpx.TimeoutException as failure:
                said = f"no answer to {request.method} {request.url} {request.content[:300]!r}"
                raise AssertionError(said) from failure

        def as_missing(
            self, tenant: str, case: Any, foreign: set[str], answer: httpx.Response, call: str
        ) -> None:
            instead = {
                each: ids.new() if ids.formed(each) else f"no-{each}"[: len(each)]
                for each in foreign
            }
            case.path_parameters = _with(instead, case.path_parameters)
            case.query, case.body = _with(instead, case.query), _with(instead, case.body)
            second = self.call(tenant, case)
            one, two = _plain(answer, set(instead)), _plain(second, set(instead.values()))
            assert (answer.status_code, one) == (second.status_code, two), (
                call,
                answer.text,
                second.text,
            )

    return Histories


def _harmless(case: Any) -> None:
    """Nothing of this host would come to harm if it were done."""
    if "path" in {each.name for each in case.operation.query}:
        case.query = {**(case.query or {}), "path": HARMLESS}
        case.query.pop("path_b64", None)
    elif isinstance(case.body, dict) and "/files" in case.operation.path:
        moved = case.operation.path.endswith("/move")
        for name in ("source", "destination") if moved else ("path",):
            case.body[name] = HARMLESS
            case.body.pop(f"{name}_b64", None)


def _with(instead: Mapping[str, str], said: Any) -> Any:
    if isinstance(said, dict):
        return {name: _with(instead, value) for name, value in said.items()}
    if isinstance(said, list):
        return [_with(instead, each) for each in said]
    return instead.get(said, said) if isinstance(said, str) else said


def _plain(answer: httpx.Response, asked: set[str]) -> str:
    """Without what numbers a request, and without what was asked for."""
    text = re.sub(r'"request_id": ?"[^"]*"', "", answer.text)
    for each in asked:
        text = text.replace(each, "*")
    return re.sub(r"[a-z2-7]{26}|\d{4}-\d\d-\d\dT[0-9:.]+Z", "*", text)


@pytest.mark.parametrize(
    ("examples", "steps"),
    [(3, 80), pytest.param(60, 200, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
)
def test_neither_hears_of_the_other(
    examples: int, steps: int, tmp_path: Path, half_an_agent: None
) -> None:
    run_state_machine_as_test(
        histories(tmp_path),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        ),
    )
