"""49: a canary secret is where it was declared to be, and nowhere else: not in the machine, its snapshots, logs,
errors, answers, the database, nor in any process's environment or command line.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from roost import Machine
from tests.system.conftest import Daemon
from tests.system.found import where

from .record import case, untested
from .rung import Rung

pytestmark = [
    case(49),
    pytest.mark.own_network,
    untested("workspace", reason="no secret can be given to it: that is UNSUPPORTED"),
]

NAME = "TOKEN"


@pytest.fixture(scope="package")
def api(led: Daemon) -> Iterator[httpx.Client]:
    with led.http() as http:
        yield http


@pytest.fixture
def secret(rung: Rung, api: httpx.Client) -> Iterator[str]:
    rung.leash("open")
    value = f"canary{secrets.token_hex(16)}"
    put(
        api,
        rung.machine,
        value=value,
        hosts=["allowed.test", "*.wild.test"],
        header="Authorization",
        format="Bearer {value}",
    )
    yield value
    api.delete(f"/v1/machines/{rung.machine.id}/secrets/{NAME}")


def put(api: httpx.Client, machine: Machine, **body: Any) -> None:
    answer = api.put(f"/v1/machines/{machine.id}/secrets/{NAME}", json=body)
    assert answer.is_success, answer.text


def fetch(machine: Machine, url: str, *more: str) -> str:
    done = machine.exec(["curl", "-sSm", "20", *more, url], timeout=60)
    return done.stdout + done.stderr


def sent(rung: Rung, host: str, since: float) -> list[str]:
    """All header values that a web server of the internet was sent for that host."""
    found = rung.internet.seen("http", said=host, since=since)
    return [value for each in found for _, value in each.more["headers"]]


def test_it_is_added_for_its_hosts_and_no_other(rung: Rung, secret: str) -> None:
    since = rung.internet.now()
    said = fetch(rung.machine, "https://allowed.test/x")
    assert f"Bearer {secret}" in sent(rung, "allowed.test", since), said
    assert secret not in said and '"server"' in said, "what the server says again is covered"
    fetch(rung.machine, "https://any.wild.test/x")
    assert f"Bearer {secret}" in sent(rung, "any.wild.test", since)
    # Not for others, by whatever trick; not without TLS.
    for url, more in (
        ("https://other.test/x", ("--cacert", f"{rung.home}/internet-ca.pem")),
        ("https://other.test/x", ("-k", "-H", "Host: allowed.test")),
        ("https://allowed.test/x", ("-H", "Host: other.test")),
        ("https://allowed.test/x", ("-k", "--connect-to", "allowed.test:443:other.test:443")),
        ("http://allowed.test/x", ()),
        ("http://other.test/x", ()),
        ("https://allowed.test/redirect?to=https://other.test/x", ("-kL",)),
    ):
        asked = rung.internet.now()
        said = fetch(rung.machine, url, *more)
        assert secret not in said, (url, more)
        elsewhere = [
            each
            for each in rung.internet.seen("http", since=asked)
            if secret in str(each.more) and (each.to, each.port) != ("198.51.100.20", 443)
        ]
        assert elsewhere == [], (url, more)


def test_it_is_covered_in_whatever_comes_back(rung: Rung, secret: str) -> None:
    for more in (
        ("--compressed",),
        ("-H", "Accept-Encoding: gzip, br"),
        ("-X", "POST", "-d", "x"),
        ("-i",),
        ("-v",),
        ("--http1.0",),
        ("-H", "Range: bytes=10-400"),
    ):
        assert secret not in fetch(rung.machine, "https://allowed.test/x", *more), more


@pytest.mark.timeout(600)
def test_it_is_nowhere_else(rung: Rung, led: Daemon, api: httpx.Client, secret: str) -> None:
    since = time.time() - 30
    fetch(rung.machine, "https://allowed.test/x")
    fetch(rung.machine, "https://allowed.test:444/x")  # which fails
    # By a pattern: the value itself would be in the command line, and in the daemon's row of it.
    inside = rung.machine.exec(
        "grep -rlaE 'canary[0-9a-f]{32}' /etc /root /home /run /tmp /var /dev/shm /workspace 2>/dev/null; "
        "cat /proc/[0-9]*/environ 2>/dev/null | grep -caE 'canary[0-9a-f]{32}'",
        timeout=240,
    ).stdout.split()
    assert inside == ["0"], inside
    machine = rung.machine.id
    bad = api.put(
        f"/v1/machines/{machine}/secrets/{NAME}", json={"value": secret, "hosts": [secret, "%%"]}
    )
    assert bad.status_code in (400, 422)
    told = [
        bad.text,
        *(
            api.get(path).text
            for path in (
                f"/v1/machines/{machine}",
                f"/v1/machines/{machine}/secrets",
                f"/v1/machines/{machine}/egress",
                f"/v1/machines/{machine}/logs",
                "/v1/machines",
                "/v1/audit",
                "/metrics",
            )
        ),
    ]
    for text in told:
        assert secret not in text.replace(bad.request.content.decode(), ""), text[:300]
    # That what looks there finds something: the machine's own disk has what is written in it.
    planted = f"planted{secrets.token_hex(16)}"
    rung.machine.files.write(f"{rung.home}/planted", planted)
    snapshot = rung.machine.snapshot()
    try:
        assert where(led, planted, since)
        assert where(led, secret, since) == []
    finally:
        snapshot.delete()


def test_a_new_value_holds_at_once_and_a_fork_has_none(
    rung: Rung, api: httpx.Client, secret: str
) -> None:
    since = rung.internet.now()
    value = f"second{secrets.token_hex(16)}"
    put(api, rung.machine, value=value)
    fetch(rung.machine, "https://allowed.test/x")
    headers = sent(rung, "allowed.test", since)
    assert f"Bearer {value}" in headers and f"Bearer {secret}" not in headers
    child = rung.machine.fork()
    assert isinstance(child, Machine)
    with child:
        since = rung.internet.now()
        fetch(child, "https://allowed.test/x", "-k")
        assert rung.internet.seen("http", said="allowed.test", since=since)
        assert not [each for each in sent(rung, "allowed.test", since) if value in each]
        assert api.get(f"/v1/machines/{child.id}/secrets").json()["items"] == []
    assert api.delete(f"/v1/machines/{rung.machine.id}/secrets/{NAME}").is_success
    since = rung.internet.now()
    fetch(rung.machine, "https://allowed.test/x", "--cacert", f"{rung.home}/internet-ca.pem")
    assert not [each for each in sent(rung, "allowed.test", since) if value in each]
    put(api, rung.machine, value=value, hosts=["allowed.test"], header="Authorization")


def test_on_a_leash_it_is_for_what_the_leash_allows(rung: Rung, secret: str) -> None:
    rung.leash("allowlist", "any.wild.test")
    since = rung.internet.now()
    fetch(rung.machine, "https://any.wild.test/x")
    assert f"Bearer {secret}" in sent(rung, "any.wild.test", since)
    fetch(rung.machine, "https://allowed.test/x")
    assert sent(rung, "allowed.test", since) == []
    rung.leash("off")
    since = rung.internet.now()
    fetch(rung.machine, "https://any.wild.test/x")
    assert sent(rung, "any.wild.test", since) == []
