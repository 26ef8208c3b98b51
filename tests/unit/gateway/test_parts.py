"""The gateway's pure parts."""

from __future__ import annotations

import json
import logging
import tracemalloc
from pathlib import Path

import pytest

from roost.gateway import auth, idempotent, respond
from roost.gateway.dispatch import Table, Target, host_name
from roost.gateway.metrics import resource_of
from roost.logs import _mask

KEY = "roost_" + "ab" * 32


@pytest.mark.parametrize(
    ("headers", "offered", "found"),
    [
        ([(b"authorization", f"Bearer {KEY}".encode())], [], KEY),
        ([(b"authorization", f"bearer   {KEY} ".encode())], [], KEY),
        ([(b"authorization", b"Basic abc")], [], ""),
        ([(b"x-api-key", KEY.encode())], [], KEY),
        ([(b"authorization", b"Bearer a"), (b"x-api-key", KEY.encode())], [], "a"),
        ([], ["x", f"roost.key.{KEY}"], KEY),
        ([], [], None),
        ([(b"x-api-key", b"\xff")], [], ""),
        ([(b"x-api-key", b"k" * 1000)], [], ""),
    ],
)
def test_credentials(
    headers: list[tuple[bytes, bytes]], offered: list[str], found: str | None
) -> None:
    assert auth.credential(headers, offered) == found


def test_the_subprotocol_answered_is_a_real_one_if_any() -> None:
    assert auth.subprotocol([f"roost.key.{KEY}", "roost.v1"]) == "roost.v1"
    assert auth.subprotocol([f"roost.key.{KEY}"]) == f"roost.key.{KEY}"
    assert auth.subprotocol([]) is None
    assert auth.prefix(KEY) == "roost"


def test_dispatch() -> None:
    table = Table(
        [
            Target("preview", None, ("",), hosts=("*.box.example",)),
            Target("dedalus", None, ("/v1/machines",), prefixes=("dsk",)),
            Target("native", None, ("/v1", "/healthz")),
        ]
    )

    def name(host: str, path: str, prefix: str | None = None) -> str | None:
        found = table.find(host, path, prefix)
        return found.name if found else None

    assert name("localhost:7676", "/v1/machines", "roost") == "native"
    assert name("localhost", "/v1/machines", "dsk") == "dedalus"
    assert name("localhost", "/v1/machines/x", "dsk") == "dedalus"
    assert name("localhost", "/v1/machinesx", "dsk") == "native"
    assert name("3000-m.BOX.example.:80", "/anything") == "preview"
    assert name("box.example", "/v1") == "native"
    assert name("evilbox.example", "/nothing") is None
    assert name("localhost", "/v10") is None
    assert host_name("[::1]:7676") == "[::1]"


def test_fingerprints() -> None:
    def made(**kw: object) -> str:
        parts = {
            "method": "POST", "path": b"/p", "query": b"a=1", "body": b"{}", "headers": [],
        } | kw  # fmt: skip
        return idempotent.fingerprint(**parts)  # type: ignore[arg-type]

    first = made()
    assert made() == first
    for other in (
        {"method": "PUT"}, {"path": b"/q"}, {"query": b""}, {"body": b"[]"}, {"body": None},
        {"path": b"/pa", "query": b"=1"},
    ):  # fmt: skip
        assert made(**other) != first
    assert made(body=None, headers=[(b"content-length", b"1")]) != made(body=None)
    assert made(machine_id=None) == first != made(machine_id="a") != made(machine_id="b")


@pytest.mark.parametrize("char", ["x", "\0", "\u00e9", "\U0001f980", "\ud800", '"', "\\"])
def test_long_strings_of_json_are_as_short_ones(char: str) -> None:
    value = {"a": 1, "text": char * 200_000, "b\n": [char], "other": "y" * 65_536, "none": None}
    assert json.loads(respond.dumps(value)) == value


def test_a_long_answer_is_held_once() -> None:
    value = {"stdout": "\0" * 2**20}
    tracemalloc.start()
    try:
        assert len(respond.dumps(value)) > 6 * 2**20
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 9 * 2**20


def test_resources_are_few() -> None:
    assert resource_of("/v1/machines/abc/executions/def/stdin") == "executions"
    assert resource_of("/v1/machines/executions-x") == "machines"
    assert resource_of("/" + "x/" * 1000) == "other"


def test_logs_mask_keys(tmp_path: Path) -> None:
    event = {"event": f"failed with {KEY} and", "token": "t", "path": "/p", "key_id": "k"}
    masked = _mask(logging.getLogger(), "info", event)
    assert "abab" not in str(masked) and masked["token"] == "***" and masked["key_id"] == "k"
