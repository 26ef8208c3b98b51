"""By domain, as E2B's own clients are set up at first: TLS, ``api.{domain}``, ``49983-{id}.{domain}``, hosts of ports.

No name of the domain is known to anybody here: the clients are told a proxy, which leads each of them to the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.conformance.conftest import key_in_form
from tests.conformance.foreign import NodeWorker, Worker
from tests.conformance.record import record
from tests.system.conftest import Daemon

from .conftest import BEGIN, PYTHON, VERSIONS, node_place, node_records

DOMAIN = "roost.test"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Of an authority of its own: (the authority's, the server's, its key)."""
    place = tmp_path_factory.mktemp("tls")
    ca, ca_key, cert, key = (place / each for each in ("ca.pem", "ca.key", "cert.pem", "key.pem"))
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}"
    for command in (
        [*new, "-subj", "/CN=Authority of tests", "-keyout", str(ca_key), "-out", str(ca)],
        [
            *new, "-subj", f"/CN={DOMAIN}", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", str(ca), "-CAkey", str(ca_key), "-keyout", str(key), "-out", str(cert),
        ],
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return ca, cert, key


@pytest.fixture(scope="module")
def tls(daemon: Daemon, certificate: tuple[Path, Path, Path]) -> Iterator[Daemon]:
    """The daemon of all tests, with a domain and a certificate for this module."""
    before, url = dict(daemon.env), daemon.url
    port = url.rpartition(":")[2]
    daemon.env |= {
        "ROOST_DOMAIN": DOMAIN,
        "ROOST_TLS_CERT": str(certificate[1]),
        "ROOST_TLS_KEY": str(certificate[2]),
        "ROOST_URL": f"https://127.0.0.1:{port}",
    }
    daemon.stop()
    daemon.url = f"https://127.0.0.1:{port}"
    os.environ["SSL_CERT_FILE"] = str(certificate[0])
    try:
        _start(daemon)
        yield daemon
    finally:
        del os.environ["SSL_CERT_FILE"]
        daemon.env.clear()
        daemon.env.update(before)
        daemon.stop()
        daemon.url = url
        daemon.start()


def _start(daemon: Daemon) -> None:
    """``Daemon.start`` asks by a name that the certificate has not."""
    whole = httpx.get

    def get(url: str, **kw: object) -> httpx.Response:
        return whole(url, **{**kw, "verify": False})  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "get", get)
        daemon.start()


@pytest.fixture(scope="module")
def proxy(tls: Daemon) -> Iterator[str]:
    """CONNECT to whatever leads to the daemon."""
    loop = asyncio.new_event_loop()
    port = int(tls.url.rpartition(":")[2])

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"CONNECT "), head
            up, down = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(pipe(reader, down), pipe(up, writer))
            down.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    at = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{at}"
    asyncio.run_coroutine_threadsafe(_end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def _end() -> None:
    """What is under way still, ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture(scope="module")
def env(tls: Daemon, proxy: str, certificate: tuple[Path, Path, Path]) -> dict[str, str]:
    port = tls.url.rpartition(":")[2]
    return {
        "E2B_DOMAIN": f"{DOMAIN}:{port}",
        "E2B_API_KEY": key_in_form(tls, "e2b"),
        "RUNG": "gvisor",
        "SSL_CERT_FILE": str(certificate[0]),
        "NODE_EXTRA_CA_CERTS": str(certificate[0]),
        "PROXY": proxy,
    }


def test_python(
    workers: Callable[[str, Mapping[str, str]], Worker],
    env: dict[str, str],
    tls: Daemon,
    certificate: tuple[Path, Path, Path],
) -> None:
    worker = workers("e2b", env)
    worker.run(BEGIN + "OPTS['proxy'] = os.environ['PROXY']\n")
    worker.run("box = Sandbox.create(**OPTS, timeout=120)")
    try:
        id_ = worker.value("box.sandbox_id")
        host = worker.value("box.get_host(8123)")
        assert host == f"8123-{id_}.{env['E2B_DOMAIN']}"
        assert worker.value("box.envd_api_url") == f"https://49983-{id_}.{env['E2B_DOMAIN']}"
        assert worker.value("box.commands.run('echo by host').stdout") == "by host\n"
        worker.run("box.files.write('index.html', 'by tls')")
        assert worker.value("box.files.read('index.html')") == "by tls"
        assert worker.value("box.is_running()") is True
        worker.run("box.commands.run('python3 -m http.server 8123', background=True)")
        context = ssl.create_default_context(cafile=str(certificate[0]))
        with httpx.Client(
            proxy=env["PROXY"], verify=context, timeout=30, trust_env=False
        ) as client:
            signed = client.get(worker.value("box.download_url('index.html')"))
            assert (signed.status_code, signed.text) == (200, "by tls")
            deadline = time.monotonic() + 60
            while (answer := client.get(f"https://{host}/")).status_code != 200:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.1)
            assert answer.text == "by tls"
            gone = client.get(f"https://49983-{'a' * 26}.{env['E2B_DOMAIN']}/health")
            assert gone.status_code == 502 and gone.json()["message"] == "The sandbox was not found"
    finally:
        worker.run("box.kill()")
    record(PYTHON, VERSIONS[PYTHON], "E2B_DOMAIN: TLS and wildcard hosts", "works")


def test_node(env: dict[str, str]) -> None:
    node = NodeWorker(node_place(), env)
    try:
        said = node.run(
            """
g.opts.proxy = process.env.PROXY;
const box = await e2b.Sandbox.create({ ...g.opts, timeoutMs: 120_000 });
try {
  await box.files.write("a.txt", "by tls");
  return [(await box.commands.run("echo by host")).stdout, await box.files.read("a.txt"), await box.isRunning()];
} finally { await box.kill(); }
"""
        )
    finally:
        node.close()
    assert said == ["by host\n", "by tls", True]
    node_records("E2B_DOMAIN: TLS and wildcard hosts")
