"""What is served to browsers: to everybody, with a policy that lets nothing else in."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from roost import web
from roost.gateway.dispatch import Target
from tests.unit.api.kit import Served, serving

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
KINDS = {
    "/approvals": "text/html; charset=utf-8",
    "/approvals.css": "text/css; charset=utf-8",
    "/approvals.js": "text/javascript; charset=utf-8",
}


async def test_everybody_may_load_it_and_only_it(bare: Served) -> None:
    assert set(KINDS) == set(web.PATHS)
    async with bare.client(None) as http:
        for path, kind in KINDS.items():
            answer = await http.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
            assert answer.headers.get_list("content-security-policy") == [POLICY]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-opener-policy"] == "same-origin"
            assert answer.headers["cache-control"] == "no-store"
            assert "set-cookie" not in answer.headers
            assert answer.content == (resources.files(web) / web.PATHS[path]).read_bytes()
        assert (await http.post("/approvals")).status_code == 405
        for path in ("/approvals/", "/approvals/x", "/approvals.html", "/approvals.js/..", "/web"):
            assert (await http.get(path)).json()["error_code"] == "AUTH_REQUIRED"
        for path in ("/v1/approvals", "/v1/approvals/stream"):
            assert (await http.get(path)).json()["error_code"] == "AUTH_REQUIRED"
    missing = await bare.http.get("/approvals/x")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "NOT_FOUND")
    assert "/approvals" not in (await bare.http.get("/openapi.json")).json()["paths"]


async def test_a_dialect_keeps_its_host_and_its_keys(tmp_path: Path) -> None:
    async def theirs(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("theirs")(scope, receive, send)

    dialects = [
        lambda _: Target(
            "host", theirs, ("",), hosts=("1-*.theirs.example",), public=frozenset(KINDS)
        ),
        lambda _: Target("keys", theirs, ("",), prefixes=("abc",)),
    ]
    async with serving(tmp_path, None, dialects=dialects) as served:
        async with served.client(None) as http:
            for path in KINDS:
                own = await http.get(path, headers={"host": "1-m.theirs.example"})
                assert own.text == "theirs"
                assert (await http.get(path)).headers["content-security-policy"] == POLICY
        async with served.client(f"abc_{served.key.rpartition('_')[2]}") as http:
            assert (await http.get("/approvals")).text == "theirs"


@pytest.mark.parametrize("path", sorted(KINDS))
def test_it_is_whole_and_makes_no_markup_of_text(path: str) -> None:
    text = web.read(path)[0].decode()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function"
        r"|srcdoc|setHTML|createContextualFragment|localStorage|document\.cookie|https?://|\sstyle=|\son\w+=|\bimport\b",
        text,
    )
    if path == "/approvals":
        assert re.findall(r"<script([^>]*)>([^<]*)", text) == [
            (' type="module" src="approvals.js"', "")
        ]
        assert "<style" not in text
        assert re.findall(r"<input[^>]*\bname=", text) == []  # nothing that a form could send
