"""Egress policies over HTTP: what may be said, what comes back, who may, and that it is done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roost.drivers.fake import FakeDriver
from roost.egress.interface import Decision
from roost.services.models import Role
from tests.unit.api.kit import Served, serving
from tests.unit.engine.kit import daemon

TRIED = [
    Decision("example.org", 443, "tcp", "tls", False, "not_allowed", 3, 1_800_000_000.5, 1.8e9 + 9),
    *(Decision(f"{n}.e.net", 53, "udp", "dns", False, "not_allowed", 1, 1e9, 1e9) for n in "abc"),
]


async def test_said_shown_and_changed(bare: Served) -> None:
    body = {"egress": {"allow": ["Python.Example.", "node.example", "192.0.2.7/32:22/tcp"]}}
    made = (await bare.http.post("/v1/machines", json=body)).json()
    policy = {
        "mode": "allowlist",
        "allow": ["python.example", "node.example", "192.0.2.7:22/tcp"],
        "observe": False,
    }
    assert made["egress"] == policy
    url = f"/v1/machines/{made['machine_id']}/egress"
    bare.services.policies.tried = TRIED  # type: ignore[attr-defined]
    shown = (await bare.http.get(url)).json()
    assert {name: shown[name] for name in policy} == policy
    assert shown["decisions"][0] == {
        "host": "example.org", "port": 443, "protocol": "tcp", "via": "tls", "allowed": False,
        "reason": "not_allowed", "count": 3, "first_at": "2027-01-15T08:00:00.500Z",
        "last_at": "2027-01-15T08:00:09.000Z",
    }  # fmt: skip
    assert shown["suggested"] == {
        "allow": ["a.e.net", "b.e.net", "c.e.net", "example.org"],
        "wildcards": [{"entry": "*.e.net", "instead_of": ["a.e.net", "b.e.net", "c.e.net"]}],
        "left_out": 0,
    }
    off = await bare.http.put(url, json={"mode": "off"})
    assert off.json() == {"mode": "off", "allow": [], "observe": False}
    assert off.headers["etag"] == '"2"'
    stale = await bare.http.put(url, json={"mode": "open"}, headers={"if-match": '"1"'})
    assert (stale.status_code, stale.json()["error_code"]) == (412, "REVISION_MISMATCH")
    back = await bare.http.patch(url, json={"mode": "allowlist", "add": ["a.org"]})
    assert back.json()["allow"] == ["a.org"]
    gone = await bare.http.patch(url, json={"remove": ["a.org"], "observe": True})
    assert gone.json() == {"mode": "allowlist", "allow": [], "observe": True}


@pytest.mark.parametrize(
    ("egress", "mode"),
    [
        ("off", "off"),
        ({"mode": "off"}, "off"),
        ({"allow": []}, "allowlist"),  # an empty list is nothing, not everything
        ({"observe": True}, "open"),
        (None, "open"),
    ],
)
async def test_ways_to_say_it(bare: Served, egress: Any, mode: str) -> None:
    for path in ("/v1/machines", "/v1/machines/by-key/k"):
        method = "PUT" if path.endswith("k") else "POST"
        made = await bare.http.request(method, path, json={"egress": egress})
        assert made.json()["egress"]["mode"] == mode, made.text


@pytest.mark.parametrize(
    "egress",
    [
        "shut", 5, ["python.example"], {"mode": "shut"}, {"mode": "open", "allow": ["a.org"]}, {"allow": "a.org"},
        {"allow": ["http://a.org"]}, {"allow": ["*.org"]}, {"allow": ["a.org/udp"]}, {"allow": ["@nothing"]},
        {"allow": [f"n{i}.org" for i in range(257)]}, {"allow": ["a" * 500]}, {"allow": [5]}, {"more": 1},
        {"observe": "yes"}, {"allow": ["a\udc80.org"]}, {"allow": ["1.2.3.4:0"]}, {"allow": ["::1"]},
    ],
)  # fmt: skip
async def test_what_cannot_be_said(bare: Served, egress: Any) -> None:
    mid = bare.machine()
    asked = [("POST", "/v1/machines", {"egress": egress})]
    asked += [("POST", f"/v1/machines/{mid}/fork", {"egress": egress})]
    asked += [("PUT", f"/v1/machines/{mid}/egress", egress)]
    for method, path, body in asked:
        answer = await bare.http.request(method, path, content=json.dumps(body))
        assert answer.status_code in (400, 422), (path, answer.text)
    assert list(bare.machines.machines) == [mid]


async def test_what_replaces_says_what_it_is(bare: Served) -> None:
    mid = bare.machine()
    for body in ({}, {"observe": True}):
        answer = await bare.http.put(f"/v1/machines/{mid}/egress", json=body)
        assert (answer.status_code, answer.json()["details"]["field"]) == (422, "mode")


async def test_who_may(bare: Served) -> None:
    mid = bare.machine()
    url = f"/v1/machines/{mid}/egress"
    async with bare.client(await bare.add_key("tenant-a", Role.READ_ONLY)) as reads:
        assert (await reads.get(url)).status_code == 200
        assert (await reads.put(url, json={"mode": "open"})).status_code == 403
        assert (await reads.patch(url, json={})).status_code == 403
    for role, more in ((Role.MACHINE, {}), (Role.PREVIEW, {"port": 80})):
        async with bare.client(await bare.add_token(mid, role, **more)) as inside:
            for method in ("GET", "PUT", "PATCH"):
                answer = await inside.request(method, url, json={"mode": "open"})
                assert answer.status_code == 403
    async with bare.client(bare.other_key) as theirs:
        assert (await theirs.get(url)).status_code == 404
        assert (await theirs.put(url, json={"mode": "off"})).status_code == 404


async def test_a_change_is_done_once_and_told_in_the_audit_log(bare: Served) -> None:
    mid = bare.machine()
    url = f"/v1/machines/{mid}/egress"
    body = {"mode": "allowlist", "add": ["a.org"]}
    one = await bare.http.patch(url, json=body, headers={"idempotency-key": "k"})
    two = await bare.http.patch(url, json=body, headers={"idempotency-key": "k"})
    assert two.headers["idempotent-replayed"] == "true" and one.content == two.content
    assert bare.machines.machines[mid].revision == 2
    await bare.http.put(url, json={"mode": "open"})
    await bare.http.get(url)
    entries = (await bare.http.get("/v1/audit", params={"machine_id": mid})).json()["items"]
    assert [e["action"] for e in entries] == ["egress_replace", "egress_patch"]


async def test_with_a_real_engine_behind_it(tmp_path: Path) -> None:
    driver = FakeDriver(egress_enforced=True)
    async with daemon(tmp_path, driver=driver) as d, serving(tmp_path, None, engine=d) as served:
        made = (await served.http.post("/v1/machines", json={"egress": "off"})).json()
        mid = made["machine_id"]
        assert d.host.network.policies[mid].mode == "off"
        url = f"/v1/machines/{mid}/egress"
        await served.http.put(
            url, json={"mode": "allowlist", "allow": ["python.example", "files.example"]}
        )
        (child,) = (await served.http.post(f"/v1/machines/{mid}/fork", json={})).json()["items"]
        (shut,) = (
            await served.http.post(f"/v1/machines/{mid}/fork", json={"egress": "off"})
        ).json()["items"]
        assert child["egress"]["allow"] == ["python.example", "files.example"]
        assert shut["egress"]["mode"] == "off"
        assert (await served.http.get(url)).json()["decisions"] == []
