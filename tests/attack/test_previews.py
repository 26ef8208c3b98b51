"""46, 47, 48: who sees a machine's port, what a page of another machine can do to it, and that the port proxy reaches
that machine's ports and nothing else.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost import Machine
from tests.system.conftest import PORT, Daemon

from .record import case, untested
from .rung import Rung, home, until

pytestmark = [
    untested("workspace", reason="its servers are the host's: no port of it is shown"),
    pytest.mark.own_network,
]

SERVED = Path(__file__).with_name("served.py")
OUTSIDE, LOOPBACK, OTHER = (
    8080,
    8081,
    8082,
)  # ports of the server inside: on every address, on its loopback
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@dataclass
class Shown:
    """Ports of a machine that are shown, and the ways to them."""

    daemon: Daemon
    machine: Machine

    @contextmanager
    def client(self, **headers: str) -> Iterator[httpx.Client]:
        """Without a key; dials loopback, whatever the host."""
        with httpx.Client(
            base_url=self.daemon.url, headers=headers, timeout=60, trust_env=False
        ) as http:
            yield http

    def host(self, port: int = OUTSIDE, machine: Machine | None = None) -> str:
        return f"{port}-{(machine or self.machine).id}.localhost:{PORT}"

    def get(self, path: str = "/", port: int = OUTSIDE, **headers: str) -> httpx.Response:
        with self.client(host=self.host(port)) as http:
            return http.get(path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def by_path(self, path: str, **headers: str) -> httpx.Response:
        with self.client(authorization=f"Bearer {self.daemon.key}") as http:
            return http.get(f"/v1/machines/{self.machine.id}/proxy/{path}", headers=headers)

    def token(self, machine: Machine | None = None, **body: Any) -> str:
        with self.daemon.http() as http:
            made = http.post(f"/v1/machines/{(machine or self.machine).id}/tokens", json=body)
            assert made.status_code == 201, made.text
            return str(made.json()["key"] if "key" in made.json() else made.json()["token"])

    def link(self, port: int = OUTSIDE) -> str:
        with self.daemon.http() as http:
            made = http.post(f"/v1/machines/{self.machine.id}/ports/{port}/links")
            assert made.status_code == 201, made.text
            return str(made.json()["url"])

    def upgrade(self, port: int = OUTSIDE, **headers: str) -> int:
        """The status that a WebSocket handshake gets."""
        lines = {"host": self.host(port), **UPGRADE, **headers}
        with socket.create_connection(("127.0.0.1", PORT), 20) as sock:
            sock.settimeout(20)
            text = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in lines.items())
            sock.sendall(f"GET /ws HTTP/1.1\r\n{text}\r\n".encode())
            return int(sock.recv(65536).split()[1])

    def said(self, text: str) -> str:
        """What comes back for these bytes."""
        with socket.create_connection(("127.0.0.1", PORT), 20) as sock:
            sock.settimeout(5)
            sock.sendall(text.encode("latin-1"))
            answer = b""
            try:
                while data := sock.recv(65536):
                    answer += data
                    sock.settimeout(0.5)
            except TimeoutError:
                pass
            return answer.decode("latin-1")


@pytest.fixture(scope="package")
def shown(rung: Rung, led: Daemon) -> Iterator[Shown]:
    shown = Shown(led, rung.machine)
    for m in (rung.machine, rung.neighbour):
        m.files.write(f"{home(m)}/served.py", SERVED.read_bytes())
        for address, port in (("0.0.0.0", OUTSIDE), ("127.0.0.1", LOOPBACK), ("0.0.0.0", OTHER)):
            m.exec(f"nohup python3 ~/served.py {address} {port} >/dev/null 2>&1 &")
        with led.http() as http:
            for port in (OUTSIDE, LOOPBACK):
                made = http.post(f"/v1/machines/{m.id}/ports", json={"port": port})
                assert made.status_code == 201, made.text
    key = {"authorization": f"Bearer {led.key}"}
    for port in (OUTSIDE, LOOPBACK):
        until(lambda port=port: shown.get("/", port, **key).status_code == 200, 30)  # type: ignore[misc]
    yield shown
    with led.http() as http:
        for m in (rung.machine, rung.neighbour):
            for port in (OUTSIDE, LOOPBACK):
                http.delete(f"/v1/machines/{m.id}/ports/{port}")
            m.exec("pkill -f [s]erved.py")


@case(46)
def test_a_private_port_wants_its_own_token(shown: Shown, rung: Rung) -> None:
    """46"""
    mine = shown.token(scope="preview", port=OUTSIDE)
    for token in (mine, shown.daemon.key):
        answer = shown.get(authorization=f"Bearer {token}")
        assert answer.status_code == 200 and answer.json()["port"] == OUTSIDE
        # Whoever serves the page learns nothing that opens anything.
        assert token not in answer.text
    assert shown.get(x_roost_preview_token=mine).status_code == 200
    bad = {
        "another port's": shown.token(scope="preview", port=LOOPBACK),
        "a port's that is not shown": shown.token(scope="preview", port=OTHER),
        "another machine's": shown.token(rung.neighbour, scope="preview", port=OUTSIDE),
        "the machine's own": shown.token(scope="machine"),
        "none's": mine[:-4] + ("0000" if not mine.endswith("0000") else "1111"),
    }
    for whose, token in bad.items():
        for headers in (
            {"authorization": f"Bearer {token}"},
            {"x_roost_preview_token": token},
            {"x_api_key": token},
            {"cookie": f"roost_preview={token}"},
        ):
            assert shown.get(**headers).status_code == 401, (whose, headers)
        assert shown.upgrade(authorization=f"Bearer {token}") == 401, whose
    # A key in a cookie opens nothing: pages of others could send it.
    assert shown.get(cookie=f"roost_preview={shown.daemon.key}").status_code == 401


@case(46)
def test_what_is_not_there_answers_as_what_is_private(shown: Shown) -> None:
    private = shown.get()
    with shown.client() as http:
        others = [
            http.get("/", headers={"host": host})
            for host in (
                f"{OUTSIDE}-{'a' * len(shown.machine.id)}.localhost:{PORT}",
                f"{OTHER}-{shown.machine.id}.localhost:{PORT}",
                f"no-such-name.localhost:{PORT}",
            )
        ]
    assert private.status_code == 401
    for answer in others:
        assert (answer.status_code, answer.json()["error_code"]) == (
            401,
            private.json()["error_code"],
        )


@case(46)
def test_a_path_wants_a_key(shown: Shown) -> None:
    path = f"/v1/machines/{shown.machine.id}/proxy/{OUTSIDE}/"
    with shown.client() as http:
        assert http.get(path).status_code == 401
        tokens = [shown.token(scope="machine"), shown.token(scope="preview", port=OUTSIDE)]
        for token in tokens:
            answer = http.get(path, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code in (401, 403)
            for cookie in (f"roost_preview={token}", f"roost_preview={shown.daemon.key}"):
                assert http.get(path, headers={"cookie": cookie}).status_code == 401
    answer = shown.by_path(f"{OUTSIDE}/page?x=1", cookie="session=secret; roost_preview=x")
    assert answer.status_code == 200
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "set-cookie" not in answer.headers
    said = answer.json()
    assert "secret" not in answer.text and shown.daemon.key not in answer.text
    assert not {"cookie", "authorization"} & {name.lower() for name in said["headers"]}


@case(46)
def test_each_machine_is_an_origin_of_its_own(shown: Shown, rung: Rung) -> None:
    """Its cookies stay at its host, ours does not reach it, a neighbour's page cannot use it."""
    link = httpx.URL(shown.link())
    with shown.client(host=shown.host()) as http:
        opened = http.get(link.raw_path.decode(), headers={"accept": "text/html"})
        assert opened.status_code in (302, 303, 307), opened.text
        (cookie,) = [c for c in opened.headers.get_list("set-cookie") if "roost_preview" in c]
        assert "domain=" not in cookie.lower() and "httponly" in cookie.lower()
        assert "samesite" in cookie.lower()
        value = cookie.partition(";")[0]
        http.cookies.clear()
        page = http.get("/", headers={"cookie": f"{value}; theirs=kept"})
        assert page.status_code == 200
        said = {k.lower(): v for k, v in page.json()["headers"].items()}
        assert said.get("cookie") == "theirs=kept"
        for each in page.headers.get_list("set-cookie"):
            assert "domain=" not in each.lower() and "roost_preview" not in each, each
        sibling = f"http://{shown.host(OUTSIDE, rung.neighbour)}"
        for headers in (
            {"origin": sibling},
            {"origin": "null"},
            {"origin": "http://evil.test"},
            {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        ):
            http.cookies.clear()
            answer = http.post("/", headers={"cookie": value, **headers})
            assert answer.status_code == 403, (headers, answer.status_code)
        http.cookies.clear()
        own = http.post("/", headers={"cookie": value, "origin": f"http://{shown.host()}"})
        assert own.status_code == 200
    with shown.client(host=shown.host(LOOPBACK), cookie=value) as http:
        assert http.get("/").status_code == 401, "a link is for its port"
    with shown.client(host=shown.host(OUTSIDE, rung.neighbour), cookie=value) as http:
        assert http.get("/").status_code == 401, "and for its machine"


@case(47)
def test_a_websocket_by_cookie_is_for_its_own_pages(shown: Shown, rung: Rung) -> None:
    """47"""
    link = httpx.URL(shown.link())
    with shown.client(host=shown.host()) as http:
        opened = http.get(link.raw_path.decode(), headers={"accept": "text/html"})
    cookie = next(c for c in opened.headers.get_list("set-cookie") if "roost_preview" in c)
    value = cookie.partition(";")[0]
    assert shown.upgrade(cookie=value, origin=f"http://{shown.host()}") == 101
    for origin in (
        f"http://{shown.host(OUTSIDE, rung.neighbour)}",
        f"http://{shown.host(LOOPBACK)}",
        f"http://localhost:{PORT}",
        "http://evil.test",
        "null",
        f"http://{shown.host().partition(':')[0]}.evil.test:{PORT}",
    ):
        assert shown.upgrade(cookie=value, origin=origin) == 403, origin
    assert shown.upgrade(cookie=value) == 403, "no browser leaves it out"
    token = shown.token(scope="preview", port=OUTSIDE)
    assert shown.upgrade(authorization=f"Bearer {token}") == 101
    assert shown.upgrade() == 401


@case(48)
def test_the_port_proxy_reaches_its_machine_and_nothing_else(shown: Shown, rung: Rung) -> None:
    """48"""
    internet = rung.internet
    to = internet.attacker()
    rung.leash("open")
    since = internet.now()
    machine, key = shown.machine.id, shown.daemon.key
    bearer = f"Authorization: Bearer {key}\r\n"
    # The agent's, what the gateway listens on, what listens on the host alone, nothing.
    for port in (7111, 7110, 53, 22, PORT):
        answer = shown.by_path(f"{port}/")
        assert answer.status_code in (403, 404, 502), (port, answer.text)
        assert "healthz" not in answer.text
    for port in (
        "0",
        "65536",
        "-1",
        "08080",
        "8080@" + to,
        f"80@{to}",
        "a",
        "%38080",
        "8080%2f..%2f7111",
    ):
        answer = shown.by_path(f"{port}/")
        assert answer.status_code in (400, 403, 404, 405, 422), (
            port,
            answer.status_code,
            answer.text,
        )
    prefix = f"/v1/machines/{machine}/proxy/{OUTSIDE}"
    for target in (
        f"{prefix}/@{to}/",
        f"{prefix}//{to}/",
        f"{prefix}/http://{to}/",
        f"{prefix}/../../../../healthz",
        f"{prefix}/%2e%2e/%2e%2e/healthz",
        f"http://{to}/",
        f"http://{to}{prefix}/",
        f"//{to}/",
    ):
        shown.said(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\n{bearer}\r\n")
    shown.said(f"CONNECT {to}:80 HTTP/1.1\r\nHost: {to}:80\r\n{bearer}\r\n")
    for host in (
        f"{shown.host()}@{to}",
        f"{to}#{shown.host()}",
        f"{OUTSIDE}-{machine}.{to}",
        f"{shown.host()}, {to}",
        f"{OUTSIDE}-{machine}.localhost.evil.test",
        f"7111-{machine}.localhost:{PORT}",
    ):
        said = shown.said(f"GET / HTTP/1.1\r\nHost: {host}\r\n{bearer}\r\n")
        assert f'"port": {OUTSIDE}' not in said, (host, said)
    # What it answers is passed on, not followed.
    for where in (
        f"http://{to}/",
        "http://169.254.169.254/",
        f"http://127.0.0.1:{PORT}/healthz",
        "//x/",
    ):
        answer = shown.get(f"/redirect?to={where}", authorization=f"Bearer {key}")
        assert (answer.status_code, answer.headers["location"]) == (302, where)
    assert rung.reached(to) == [] and internet.seen(to="169.254.169.254", since=since) == []


@case(46)
def test_a_smuggled_request_is_one_machines(shown: Shown) -> None:
    """Two requests where the proxy reads one, or the other way round, would open a port that a token does not."""
    token = shown.token(scope="preview", port=OUTSIDE)
    head = f"Host: {shown.host()}\r\nAuthorization: Bearer {token}\r\n"
    hidden = f"GET /hidden HTTP/1.1\r\nHost: {shown.host(LOOPBACK)}\r\n\r\n"
    for text in (
        f"POST / HTTP/1.1\r\n{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
        f"POST / HTTP/1.1\r\n{head}Content-Length: 0\r\nContent-Length: {len(hidden)}\r\n\r\n{hidden}",
        f"POST / HTTP/1.1\r\n{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{hidden}",
        f"POST / HTTP/1.1\r\n{head}Content-Length: +0\r\n\r\n{hidden}",
        f"GET / HTTP/1.1\r\n{head}\r\n{hidden}",
    ):
        assert f'"port": {LOOPBACK}' not in shown.said(text), text


def test_what_is_closed_says_so(shown: Shown) -> None:
    with shown.daemon.http() as http:
        assert http.post(f"/v1/machines/{shown.machine.id}/ports", json={"port": 9}).is_success
        try:
            answer = shown.get("/", 9, authorization=f"Bearer {shown.daemon.key}")
            assert answer.status_code == 502
            assert json.loads(answer.text)["error_code"] == "PORT_CLOSED"
        finally:
            http.delete(f"/v1/machines/{shown.machine.id}/ports/9")
