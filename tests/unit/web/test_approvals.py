"""The page of approvals in a real Chromium, in front of the real serving side and a real agent."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from roost.gateway.respond import SHUTDOWN
from roost.services.models import CreateMachine, Role
from tests.unit.api.kit import TENANT, Served
from tests.unit.web.chromium import Tab

ASK = {"mode": "ask", "allow": []}
HOSTILE = "<img src=x onerror=window.pwned=1>\x1b[2J\u202etxt.exe\u2066\u200b\U000e0041e\u0301\u0301\u0301\u0301</code><script>pwned=1</script>"
NAME = '"><svg onload=pwned=1>\u202ebd'
APPROVE, DENY = 'button[data-what="approve"]', 'button[data-what="deny"]'


async def guarded(served: Served, name: str = NAME) -> str:
    mid: str = served.machines.add(TENANT, CreateMachine(name=name)).id
    put = await served.http.put(f"/v1/machines/{mid}/tools", json=ASK)
    assert put.status_code == 200, put.text
    return mid


def ask(served: Served, mid: str, **body: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(served.http.post(f"/v1/machines/{mid}/executions", json=body))


async def row(served: Served) -> dict[str, Any]:
    found = (await served.http.get("/v1/approvals", params={"status": "any"})).json()["items"]
    return dict(found[0])


async def test_what_waits_is_shown_inert_and_approved_and_runs(
    served: Served, tab: Tab, tmp_path: Path
) -> None:
    (tmp_path / "\u202ecod").mkdir()
    await tab.enter(served.key)
    await tab.says("Nothing waits")
    mid = await guarded(served)
    words = ["printf", "%s|", "a b", "", HOSTILE, " c"]
    asked = ask(
        served,
        mid,
        command=words,
        cwd=str(tmp_path / "\u202ecod"),
        env={
            "PATH_OF": "/usr/bin/b\u0430sh",
            "GOAUTH": "/workspace/x",
            "API_TOKEN": "***",
            "X": HOSTILE,
        },
        stdin="first\n" + "\n" * 500 + "rm -rf /\x07" + " " * 300 + "end",
        timeout_ms=7000,
    )
    await tab.says(mid)
    assert await tab.js("document.title") == "(1) Approvals · Roost"
    await tab.until("document.querySelector('#news').textContent.includes('waits for approval')")
    shown = await tab.js("[...document.querySelectorAll('.argv li')].map(e => e.innerText)")
    inert = HOSTILE.replace("\x1b", "ESC").replace("\u202e", "U+202E").replace("\u2066", "U+2066")
    inert = (
        inert.replace("\u200b", "U+200B")
        .replace("\U000e0041", "U+E0041")
        .replace("\u0301" * 4, "U+0301 ×4")
    )
    assert shown == ["printf", "%s|", "a b", "empty", inert, " c"]
    text = await tab.js("document.body.innerText")
    for each in (
        "/U+202Ecod",
        f"X = {inert}",
        "GOAUTH = /workspace/x",  # a name hides nothing: this one is run
        "API_TOKEN = ***",
        "7 s",
        "502 lines",
        "PATH_OF = /usr/bin/b\u0430sh",
        "not ASCII",
        "U+202Ebd",
    ):
        assert each in text, each
    far = await tab.js("[...document.querySelectorAll('.env .far')].map(e => e.innerText)")
    assert far[0] == "\u0430", "no Latin a"
    stdin = await tab.js("document.querySelector('pre.stdin').innerText")
    assert stdin == "first↵ ×501\nrm -rf /U+0007space ×300end"
    assert (
        await tab.js(
            "/[\\u202a-\\u202e\\u2066-\\u2069\\u200b\\x1b]/.test(document.body.textContent)"
        )
        is False
    )
    assert await tab.js("document.querySelectorAll('main img, main svg, main script').length") == 0
    boxes = await tab.js(
        "[...document.querySelectorAll('.argv li code')].map(e => e.getBoundingClientRect().width > 8"
        " && getComputedStyle(e).borderTopWidth !== '0px' && getComputedStyle(e).direction === 'ltr'"
        " && getComputedStyle(e).unicodeBidi === 'bidi-override')"
    )
    assert boxes == [True] * len(words)
    await tab.click(".decide input")
    await tab.type("read it")
    await tab.press("Enter")  # in a note it decides nothing
    assert (await row(served))["status"] == "pending"
    await tab.click(APPROVE)
    said = await tab.says("Approved by you", ".outcome")
    assert "read it" in said
    answer = (await asked).json()
    assert answer["stdout"] == "|".join([*words[2:], ""])
    decided = await row(served)
    assert (decided["status"], decided["note"]) == ("approved", "read it")
    assert await tab.js("document.title") == "Approvals · Roost"
    assert await tab.js("window.pwned") is None
    # What was told it is told to nobody else, and to the daemon in a header alone.
    for url, headers in tab.requests:
        assert url.startswith(served.url) and served.key.rpartition("_")[2] not in url, url
        assert "cookie" not in {name.lower() for name in headers}
    assert await tab.js("location.href") == f"{served.url}/approvals"
    assert await tab.js("[localStorage.length, document.cookie, sessionStorage.length]") == [
        0,
        "",
        1,
    ]


async def test_denied_with_a_note_by_keyboard_alone(served: Served, tab: Tab) -> None:
    mid = await guarded(served)
    asked = ask(served, mid, command=["id"])
    await tab.enter(f"e2b_{served.key.rpartition('_')[2]}")  # however it is written
    await tab.says(mid)
    for _ in range(10):
        if await tab.js("document.activeElement.matches('.decide input')"):
            break
        await tab.press("Tab")
    await tab.type("not <b>today</b>")
    await tab.press("Tab")
    await tab.press("Tab")
    assert await tab.js("document.activeElement.innerText") == "Deny"
    await tab.press("Enter")
    assert "not <b>today</b>" in await tab.says("Denied by you", ".outcome")
    await tab.until("document.activeElement.className === 'outcome'")  # the reader is not lost
    answer = await asked
    assert (answer.status_code, answer.json()["error_code"]) == (403, "APPROVAL_DENIED")
    assert "not <b>today</b>" in answer.json()["message"]
    await tab.js("Date.now = (now => () => now() + 61_000)(Date.now)")
    await tab.says("denied", "#past summary")  # it makes room after a while
    await tab.until("document.activeElement.id === 'waiting'")
    await tab.js("document.querySelector('#past details').open = true")
    await tab.says("Denied by you", "#past .outcome")


async def test_a_key_that_is_none_and_one_without_the_right(served: Served, tab: Tab) -> None:
    await tab.enter("roost_" + "0" * 64)
    assert "AUTH_INVALID" in await tab.says("This key does not open it", "#problem")
    assert await tab.js("sessionStorage.length") == 0
    await tab.enter("no\u202ekey")
    await tab.says("without spaces", "#problem")
    mid = await guarded(served)
    asked = ask(served, mid, command=["id"], env={"API_TOKEN": "hunter22"})
    machines = await served.add_token(mid, Role.MACHINE)
    await tab.js("document.querySelector('#key').value = ''")
    await tab.enter(machines)
    assert "FORBIDDEN" in await tab.says("This key does not open it", "#problem")
    await tab.enter(await served.add_key(TENANT, Role.RUNNER))
    await tab.says(mid)
    text = await tab.js("document.body.innerText")
    assert "API_TOKEN = hidden" in text and "hunter22" not in text
    await tab.click(APPROVE)
    said = await tab.says("This key may look and not decide", ".card .problem")
    assert "uses the machines there are, and changes nothing else" in said and "FORBIDDEN" in said
    await tab.until("[...document.querySelectorAll('.decide button')].every(e => e.disabled)")
    waits = await row(served)
    assert waits["status"] == "pending"
    await tab.click("#forget")
    assert await tab.js(
        "[sessionStorage.length, document.querySelectorAll('.card:not(form)').length]"
    ) == [0, 0]
    await tab.enter(served.key)
    await tab.says(mid)
    await tab.session.call("Page.reload")
    await tab.says(mid)  # the tab still has it
    revoked = (await served.keys.authenticate(served.key)).key_id
    await served.keys.revoke(TENANT, revoked, Role.ADMIN)
    await tab.says("This key does not open it", "#problem")
    assert await tab.js("sessionStorage.length") == 0
    await served.approvals.cancel(waits["approval_id"])
    await asked


async def test_too_late_decided_by_another_and_given_up(served: Served, tab: Tab) -> None:
    mid = await guarded(served)
    served.approvals._wait = timedelta(seconds=1.0)
    late = ask(served, mid, command=["late"])
    await tab.enter(served.key)
    await tab.says("time is over", ".left")
    await tab.click(APPROVE)
    assert "APPROVAL_EXPIRED" in await tab.says("nobody approved of it in time", ".card .problem")
    assert "you" not in await tab.says("Expired", ".outcome")
    assert (await late).json()["error_code"] == "APPROVAL_EXPIRED"
    served.approvals._wait = timedelta(minutes=15)
    other = ask(served, mid, command=["other"])
    await tab.says("other", ".argv")
    await tab.says("left", ".left")
    found = await row(served)
    path = f"/v1/approvals/{found['approval_id']}/deny"
    assert (await served.http.post(path, json={"note": "<i>no"})).status_code == 200
    said = await tab.says("Denied by", ".outcome")
    assert found["asked_by"] in said and "<i>no" in said and "you" not in said
    await other
    gone = ask(served, mid, command=["gone"])
    await tab.says("gone", ".argv")
    await served.approvals.cancel((await row(served))["approval_id"])
    await tab.says("Given up", ".outcome")
    await gone


async def test_nothing_is_decided_twice_or_beside_the_aim(served: Served, tab: Tab) -> None:
    mid = await guarded(served)
    asked = [ask(served, mid, command=["echo", "1"])]
    await tab.enter(served.key)
    await tab.says(mid)
    asked.append(ask(served, mid, command=["echo", "2"]))
    await tab.until(f"document.querySelectorAll('#list {APPROVE}').length === 2")
    # It is always now, by both clocks: on a busy host the first would go to what was decided meanwhile.
    await tab.js("performance.now = () => 1e6, Date.now = (now => () => now)(Date.now())")
    first = f"#list article:first-child {APPROVE}"
    twice = json.dumps(first)
    # A second press while the first is under way, and one on what has moved below the pointer.
    await tab.js(
        f"document.querySelector({twice}).click(), document.querySelector({twice}).click(),"
        f" document.querySelector({twice}).disabled"
    )
    await tab.says("Approved by you", ".outcome")
    await tab.click(f"#list article:last-child {APPROVE}")
    await tab.says("The list has just moved", ".card .problem")
    await asked[0]
    sent = [url for url, _ in tab.requests if url.endswith("/approve")]
    assert len(sent) == 1
    await tab.js("performance.now = () => 2e6")
    await tab.click(f"#list article:last-child {APPROVE}")
    assert (await asked[1]).json()["stdout"] == "2\n"


async def test_a_daemon_that_went_away_is_said_and_found_again(served: Served, tab: Tab) -> None:
    mid = await guarded(served)
    asked = ask(served, mid, command=["id"])
    await tab.enter(served.key)
    await tab.says("Live", "#link")
    await tab.says(mid)
    await tab.session.call(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    for task in list(served.front._endless):
        task.cancel(SHUTDOWN)
    await tab.says("Trying again in", "#link")
    approval = (await row(served))["approval_id"]
    assert (await served.http.post(f"/v1/approvals/{approval}/deny")).status_code == 200
    await tab.session.call(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    await tab.says("Denied by", ".outcome")  # decided while it did not listen
    await tab.says("Live", "#link")
    await asked
