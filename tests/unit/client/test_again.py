"""Reboots, and links of terminals, from the SDK."""

from __future__ import annotations

from datetime import timedelta

from roost import Machine

from .stub import MACHINE_ID, Answer, Stub, machine

PATH = f"/v1/machines/{MACHINE_ID}"
LINK = {"url": "ws://x/stream?ticket=t", "expires_at": "2026-11-21T01:00:00.000Z"}


def test_reboot(stub: Stub) -> None:
    stub.on("POST", f"{PATH}/reboot", lambda _: machine())
    m = Machine.get(MACHINE_ID)
    assert m.reboot() is m
    assert len(stub.asked("POST", f"{PATH}/reboot")) == 1


def test_a_terminal_has_links(stub: Stub) -> None:
    terminal = {
        "terminal_id": "t", "machine_id": MACHINE_ID, "status": "ready", "width": 80, "height": 24,
        "protocol": "websocket", "stream_url": "ws://x/stream", "exit_code": None, "viewers": 0,
        "created_at": "2026-11-21T01:00:00.000Z",
    }  # fmt: skip
    stub.on("GET", f"{PATH}/terminals", lambda _: {"items": [terminal], "next_cursor": None})
    stub.on("POST", f"{PATH}/terminals/t/links", lambda _: Answer(LINK, 201))
    (found,) = Machine.get(MACHINE_ID).terminals.list()
    assert found.link() == LINK
    assert stub.seen[-1].json == {"ttl_seconds": 600}
    found.link(timedelta(hours=1))
    assert stub.seen[-1].json == {"ttl_seconds": 3600}
