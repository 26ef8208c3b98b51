"""The boundary's own process, with a real server behind it: what gets there, and what comes back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import os
import shutil
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from roost.secrets.process import INSTALLED
from tests.unit.secrets.kit import (
    NAME,
    PLACEHOLDER,
    VALUE,
    M,
    Seen,
    Server,
    World,
    ask,
    leaf,
    secret,
    serving,
    world,
)

GET = f"GET /x HTTP/1.1\nHost: {NAME}\n\n"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


@pytest.fixture
def server(w: World, tmp_path: Path) -> Iterator[Server]:
    pem = tmp_path / "server.pem"
    pem.write_text(leaf(w.outside, NAME))
    with serving(pem) as made:
        yield made


def bearer(server: Server, **said: Any) -> dict[str, Any]:
    hosts = [{"name": NAME, "ports": [server.port]}]
    return secret(hosts=hosts, header="Authorization", format="Bearer {value}", **said)


def marked(server: Server, **said: Any) -> dict[str, Any]:
    hosts = [{"name": NAME, "ports": [server.port]}]
    return secret(hosts=hosts, placeholder=PLACEHOLDER, **said)


async def asked(w: World, server: Server, text: str = GET) -> tuple[str, dict[str, str], bytes]:
    def work() -> tuple[str, dict[str, str], bytes]:
        with w.tls(w.dial(server.port)) as sock:
            return ask(sock, text)

    return await asyncio.to_thread(work)


async def test_a_header_is_added_and_its_value_comes_back_as_stars(
    w: World, server: Server
) -> None:
    await w.tell(bearer(server))
    mine = GET.replace(
        "\n\n", "\nauthorization: Bearer mine\nAccept-Encoding: gzip\nRange: bytes=0-5\n\n"
    )
    status, headers, body = await asked(w, server, mine)
    assert status == "HTTP/1.1 200 OK"
    assert server.last.all("authorization") == [f"Bearer {VALUE}"]
    assert server.last.all("accept-encoding") == ["identity"]
    assert server.last.all("range") == []
    assert headers["x-told"] == "Bearer " + "*" * len(VALUE)
    assert VALUE.encode() not in body
    assert b"*" * len(VALUE) in body


async def test_a_placeholder_is_swapped_in_headers_and_target(w: World, server: Server) -> None:
    await w.tell(marked(server))
    basic = base64.b64encode(f"me:{PLACEHOLDER}".encode()).decode()
    text = (
        f"POST /bot{PLACEHOLDER}/x?key={PLACEHOLDER} HTTP/1.1\nHost: {NAME}\nX-Key: {PLACEHOLDER}\n"
        f"Authorization: Basic {basic}\nContent-Length: {len(PLACEHOLDER)}\n\n{PLACEHOLDER}"
    )
    _, _, body = await asked(w, server, text)
    seen = server.last
    assert seen.line == f"POST /bot{quote(VALUE, '')}/x?key={quote(VALUE, '')} HTTP/1.1"
    assert seen.all("x-key") == [VALUE]
    assert base64.b64decode(seen.all("authorization")[0].split()[1]).decode() == f"me:{VALUE}"
    assert seen.body.decode() == PLACEHOLDER  # not unless it was asked for
    for form in (VALUE, quote(VALUE, ""), seen.all("authorization")[0].split()[1]):
        assert form.encode() not in body


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("application/json", VALUE), ("application/x-www-form-urlencoded", quote(VALUE, ""))],
)
async def test_in_bodies_where_that_was_asked_for(
    w: World, server: Server, kind: str, shown: str
) -> None:
    await w.tell(marked(server, in_body=True))
    sent = f"a={PLACEHOLDER}&b=1"
    text = f"POST / HTTP/1.1\nHost: {NAME}\nContent-Type: {kind}\nContent-Length: {len(sent)}\n\n{sent}"
    await asked(w, server, text)
    assert server.last.body.decode() == f"a={shown}&b=1"


async def test_only_for_its_hosts_and_ports(w: World, server: Server) -> None:
    await w.tell(secret(header="Authorization"))  # of port 443
    await asked(w, server)
    assert server.last.all("authorization") == []


async def test_a_request_for_another_host_does_not_pass(w: World, server: Server) -> None:
    await w.tell(bearer(server))

    def work() -> tuple[str, str]:
        with w.tls(w.dial(server.port)) as sock:
            first = ask(sock, GET)[0]
            second = ask(sock, GET.replace(f"Host: {NAME}", "Host: other.example.org"))[0]
            return first, second

    assert [each.split()[1] for each in await asyncio.to_thread(work)] == ["200", "421"]
    twice = GET.replace("\n\n", "\nHost: other.example.org\n\n")
    status, _, _ = await asked(w, server, twice)
    assert status.split()[1:2] != ["200"]
    assert len(server.seen) == 1


async def test_who_may_come_in(w: World, server: Server) -> None:
    await w.tell(bearer(server))
    refused: tuple[dict[str, Any], ...] = (
        {"password": "wrong"},
        {"machine": "n" * 26},
        {"name": ""},
    )
    for said in refused:
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(w.dial, server.port, **said)
    with pytest.raises((ssl.SSLError, ConnectionError)):  # the name said is not the one proven
        await asyncio.to_thread(lambda: w.tls(w.dial(server.port), "other.example.org"))


async def test_a_server_that_cannot_prove_its_name_gets_nothing(
    w: World, server: Server, tmp_path: Path
) -> None:
    await w.tell(bearer(server))
    for name, pem in (
        ("other", leaf(w.outside, "other.example.org")),
        ("self", leaf(w.machine, NAME)),
    ):
        path = tmp_path / f"{name}.pem"
        path.write_text(pem)
        with serving(path) as imposter:
            await w.tell(bearer(imposter))
            status, _, _ = await asked(w, imposter)
            assert status.split()[1] == "502"
            assert imposter.seen == []


async def test_in_clear_only_where_it_says_so(w: World) -> None:
    with serving(None) as plain:
        await w.tell(secret(hosts=[{"name": NAME, "ports": [plain.port]}], header="Authorization"))

        def work() -> str:
            with w.dial(plain.port) as sock:
                return ask(sock, GET)[0]

        assert (await asyncio.to_thread(work)).split()[1] == "200"
        assert plain.last.all("authorization") == []


async def test_an_endless_answer_flows_with_flat_memory(w: World, server: Server) -> None:
    await w.tell(bearer(server))
    pieces = 300

    def answer(seen: Seen, out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        half = len(VALUE) // 2
        for _ in range(pieces):
            fill = b"x" * 65536
            for part in (fill + VALUE[:half].encode(), VALUE[half:].encode()):
                out.write(b"%x\r\n%s\r\n" % (len(part), part))
                out.flush()
        out.write(b"0\r\n\r\n")

    server.answer = answer
    pid = w.process.pid
    assert pid is not None
    before = resident(pid)
    status, _, body = await asked(w, server)
    assert status.split()[1] == "200"
    assert len(body) == pieces * (65536 + len(VALUE))
    assert VALUE.encode() not in body
    assert body.count(b"*" * len(VALUE)) == pieces
    assert resident(pid) - before < 24 * 2**20


async def test_events_are_not_held_back(w: World, server: Server) -> None:
    await w.tell(bearer(server))

    def answer(seen: Seen, out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: one\n\n")
        out.flush()
        time.sleep(30)

    server.answer = answer

    def work() -> float:
        with w.tls(w.dial(server.port)) as sock:
            sock.sendall(GET.replace("\n", "\r\n").encode())
            begun, data = time.monotonic(), b""
            while b"data: one\n\n" not in data:
                data += sock.recv(4096)
            return time.monotonic() - begun

    assert await asyncio.to_thread(work) < 20


async def test_what_is_encoded_all_the_same_does_not_pass(w: World, server: Server) -> None:
    await w.tell(bearer(server))

    def answer(seen: Seen, out: Any) -> None:
        data = gzip.compress(VALUE.encode())
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        out.write(head % len(data) + data)

    server.answer = answer
    status, _, body = await asked(w, server)
    assert status.split()[1] == "502"
    assert gzip.compress(VALUE.encode())[10:] not in body


@pytest.mark.parametrize("encoding", ["gzip,chunked", "deflate, chunked", "gzip", "identity"])
async def test_nor_what_is_encoded_for_the_way(w: World, server: Server, encoding: str) -> None:
    await w.tell(bearer(server))
    data = gzip.compress(VALUE.encode())

    def answer(seen: Seen, out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n" % encoding.encode())
        out.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
        out.close()

    server.answer = answer
    status, _, body = await asked(w, server)
    assert status.split()[1] == "502"
    assert data[10:] not in body


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n\r\n",
        "HTTP/1.1 20x {}\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: {}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX {}: x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-{}: x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 {}\r\nContent-Length: 0\r\n\r\n",
        "{}",
    ],
)
async def test_no_error_says_what_the_server_said(w: World, server: Server, head: str) -> None:
    value = "canary-value-that-is-a-token"
    await w.tell(bearer(server) | {"value": value})

    def answer(seen: Seen, out: Any) -> None:
        (told,) = seen.all("authorization")
        out.write(head.format(told if "X-" not in head else told.split()[1]).encode())
        out.close()

    server.answer = answer

    def work() -> bytes:
        with w.tls(w.dial(server.port)) as sock:
            sock.sendall(GET.replace("\n", "\r\n").encode())
            return received(sock)

    said = await asyncio.to_thread(work)
    assert server.last.all("authorization") == [f"Bearer {value}"]
    assert said.startswith(b"HTTP/1.1 ")
    assert b"canary" not in said


def received(sock: ssl.SSLSocket) -> bytes:
    """Until it is over, or an empty body's head is."""
    data = b""
    with contextlib.suppress(OSError):
        while part := sock.recv(65536):
            data += part
            if data.endswith(b"\r\n\r\n"):
                break
    return data


async def test_a_head_has_an_end(w: World, server: Server) -> None:
    await w.tell(bearer(server))

    def work() -> int:
        sent = 0
        with w.tls(w.dial(server.port)) as sock, contextlib.suppress(OSError):
            sock.sendall(b"GET / HTTP/1.1\r\n")
            for _ in range(400):
                sock.sendall(b"X: " + b"x" * 16000 + b"\r\n")
                sent += 16000
                time.sleep(0.05)
        return sent

    assert await asyncio.to_thread(work) < 2**21
    assert server.seen == []

    def answer(seen: Seen, out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(400):
            out.write(b"X: " + b"x" * 16000 + b"\r\n")
        out.write(b"\r\n")

    server.answer = answer
    status, _, _ = await asked(w, server)
    assert status.split()[1] == "502"


async def test_connections_of_a_machine_are_counted(w: World, server: Server) -> None:
    await w.tell(bearer(server))
    await w.tell(bearer(server), machine="n" * 26)

    def fill(socks: list[socket.socket]) -> None:
        for _ in range(200):
            socks.append(w.dial(server.port))

    socks: list[socket.socket] = []
    try:
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(fill, socks)
        assert len(socks) == 128
        await asyncio.to_thread(lambda: w.dial(server.port, machine="n" * 26).close())
    finally:
        for each in socks:
            each.close()
    for _ in range(50):
        with contextlib.suppress(ConnectionError):
            assert (await asked(w, server))[0].split()[1] == "200"
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("those that ended still count")


async def test_bodies_held_for_a_machine_are_bounded(w: World, server: Server) -> None:
    await w.tell(marked(server, in_body=True))
    text = f"POST / HTTP/1.1\nHost: {NAME}\nContent-Length: {2**20}\n\n".replace("\n", "\r\n")

    def work() -> list[bool]:
        """Whether each of them is waited for."""
        waiting = []
        with contextlib.ExitStack() as stack:
            for n in range(18):
                sock = stack.enter_context(w.tls(w.dial(server.port)))
                sock.sendall(text.encode())
                sock.settimeout(0.3 if n < 16 else 20)
                try:
                    sock.recv(1)
                    waiting.append(False)
                except TimeoutError:
                    waiting.append(True)
                except OSError:
                    waiting.append(False)
        return waiting

    assert await asyncio.to_thread(work) == [True] * 16 + [False] * 2


async def test_a_websocket_says_it_nowhere(w: World, server: Server) -> None:
    await w.tell(bearer(server))

    def answer(seen: Seen, out: Any) -> None:
        out.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        )
        out.write(b"Sec-WebSocket-Accept: x\r\n\r\n")
        told = seen.all("authorization")[0].encode()
        for kind, data in ((0x81, told), (0x89, told), (0x88, b"\x03\xe8" + told)):
            out.write(bytes([kind, len(data)]) + data)
        out.flush()
        time.sleep(2)

    server.answer = answer
    asking = GET.replace(
        "\n\n",
        "\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\n\n",
    )

    def work() -> bytes:
        with w.tls(w.dial(server.port)) as sock, contextlib.suppress(OSError):
            sock.sendall(asking.replace("\n", "\r\n").encode())
            data = b""
            while part := sock.recv(65536):
                data += part
        return data

    said = await asyncio.to_thread(work)
    assert said.startswith(b"HTTP/1.1 101")
    assert said.count(b"Bearer " + b"*" * len(VALUE)) == 3
    assert VALUE.encode() not in said


async def test_no_line_of_the_machines_becomes_two(w: World, server: Server) -> None:
    await w.tell(bearer(server))
    for text in (
        GET.replace("\n\n", "\nX: a\n folded\n\n"),
        GET.replace("\n\n", "\nX: a\0b\n\n"),
        GET.replace("/x", "/x\0"),
    ):
        status, _, _ = await asked(w, server, text)
        assert status.split()[1:2] != ["200"]
    assert server.seen == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_http_2(w: World, tmp_path: Path) -> None:
    pem, mine = tmp_path / "h2.pem", tmp_path / "machine.pem"
    pem.write_text(leaf(w.outside, NAME))
    mine.write_text(w.machine.certificate)
    program = Path(__file__).with_name("h2_server.py")
    served = await asyncio.create_subprocess_exec(
        INSTALLED, program, pem, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert served.stdout is not None
        port = int(await served.stdout.readline())
        await w.tell(secret(hosts=[{"name": NAME, "ports": [port]}], header="Authorization"))
        _, host, at = w.process.endpoint.split(":")
        asked = await asyncio.create_subprocess_exec(
            "curl", "-sSi", "--http2", "--noproxy", "", "--cacert", mine, "--proxy", f"socks5://{host}:{at}",
            "--proxy-user", f"{M}@{NAME}:{w.process.password}", "--resolve", f"{NAME}:{port}:127.0.0.1",
            "-H", "Authorization: mine", f"https://{NAME}:{port}/x",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said = (await asked.communicate())[0].decode()
    finally:
        served.kill()
        await served.wait()
    assert said.startswith("HTTP/2 200")
    assert f"(b'authorization', b'{'*' * len(VALUE)}')" in said
    assert "mine" not in said


async def test_rotation_counts_from_the_next_request_on_a_live_connection(
    w: World, server: Server
) -> None:
    await w.tell(bearer(server))
    sock = await asyncio.to_thread(lambda: w.tls(w.dial(server.port)))
    with sock:
        await asyncio.to_thread(ask, sock, GET)
        await w.tell(bearer(server) | {"value": "another-value-entirely"})
        _, headers, _ = await asyncio.to_thread(ask, sock, GET)
        assert server.last.all("authorization") == ["Bearer another-value-entirely"]
        assert "another" not in headers["x-told"]
        await w.process.tell({M: None})  # all of them are gone: nothing goes on
        assert await asyncio.to_thread(over, sock)


def over(sock: ssl.SSLSocket) -> bool:
    sock.sendall(GET.replace("\n", "\r\n").encode())
    return b" 200 " not in sock.recv(65536)


async def test_it_comes_back_with_all_it_knew(w: World, server: Server) -> None:
    await w.tell(bearer(server))
    endpoint, pid = w.process.endpoint, w.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while w.process.pid in (pid, None):
        await asyncio.sleep(0.02)
    await w.process.tell({})
    assert w.process.endpoint == endpoint
    await asked(w, server)
    assert server.last.all("authorization") == [f"Bearer {VALUE}"]


async def test_nothing_secret_is_to_be_read_of_the_process(w: World, server: Server) -> None:
    await w.tell(bearer(server))
    await asked(w, server)
    proc = Path(f"/proc/{w.process.pid}")
    said = proc.joinpath("cmdline").read_bytes() + proc.joinpath("environ").read_bytes()
    for each in (VALUE, w.process.password, "PRIVATE KEY"):
        assert each.encode() not in said
    limits = proc.joinpath("limits").read_text()
    assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]
    assert "NoNewPrivs:\t1" in proc.joinpath("status").read_text()


def resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024
