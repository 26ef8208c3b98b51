"""A machine's authority, put where its programs look for it: through its agent, so alike on every rung.

The system's bundle is appended to, and the certificate lies where ``update-ca-certificates`` finds it again. Chromium
has a store of its own (NSS) for each user, which ``certutil`` writes where the machine has it. Programs that bring a list
of theirs are told of the system's by their environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from roost import ids
from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import NotFoundError
from roost.secrets.process import HOST_CA

BUNDLE = b"/etc/ssl/certs/ca-certificates.crt"
CERTIFICATE = b"/usr/local/share/ca-certificates/roost-machine.crt"
BEGIN, END = b"# Roost machine authority\n", b"# end of Roost machine authority\n"
MAX_BUNDLE = 4 * 2**20
PROGRAM_MS = 20_000

ENVIRONMENT = dict.fromkeys(
    (
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
    ),
    BUNDLE.decode(),
)

# Of every user with a home: Chromium reads ~/.pki/nssdb. Without certutil there is nothing to be done.
_STORES = """
command -v certutil >/dev/null 2>&1 || exit 0
for home in /root /home/*; do
  [ -d "$home" ] || continue
  owner=$(stat -c %U:%G "$home"); store=$home/.pki/nssdb
  if [ ! -e "$store/cert9.db" ]; then
    [ "$1" = add ] || continue
    mkdir -p -m 700 "$store" && certutil -d "sql:$store" -N --empty-password
  fi
  certutil -d "sql:$store" -D -n roost-machine 2>/dev/null
  [ "$1" = add ] && certutil -d "sql:$store" -A -t C,, -n roost-machine -i "$2"
  chown -R "$owner" "$home/.pki"
done
exit 0
"""


async def install(agent: AgentClient, certificate: str) -> None:
    """Idempotent. Raises what the agent's calls raise (MACHINE_DISK_FULL, AGENT_LOST, ...)."""
    pem = certificate.encode()
    bundle = await _read(agent, BUNDLE)
    if bundle is None:  # then a list of programs' own is all there was: the host's is no worse
        bundle = HOST_CA.read_bytes() if HOST_CA.exists() else b""
    wanted = _without(bundle) + BEGIN + pem + END
    if wanted != bundle:
        await _write(agent, BUNDLE, wanted)
    if await _read(agent, CERTIFICATE) != pem:
        await _write(agent, CERTIFICATE, pem)
        await _stores(agent, "add")


async def remove(agent: AgentClient) -> None:
    """Idempotent."""
    bundle = await _read(agent, BUNDLE)
    if bundle is not None and _without(bundle) != bundle:
        await _write(agent, BUNDLE, _without(bundle))
    if await _read(agent, CERTIFICATE) is not None:
        await _stores(agent, "remove")
        with contextlib.suppress(NotFoundError):
            await agent.remove(CERTIFICATE, recursive=False)


def _without(bundle: bytes) -> bytes:
    """Where ``update-ca-certificates`` has run, ours is in it once more, without our marks: that one may stay."""
    before, found, rest = bundle.partition(BEGIN)
    if not found:
        return bundle if not bundle or bundle.endswith(b"\n") else bundle + b"\n"
    return before + rest.partition(END)[2]


async def _stores(agent: AgentClient, what: str) -> None:
    argv = ["/bin/sh", "-c", _STORES, "sh", what, CERTIFICATE.decode()]
    request = pb.StartRequest(
        execution_id=ids.new(), argv=argv, user="root", timeout_ms=PROGRAM_MS, ring_bytes=4096
    )
    await agent.run(request)


async def _read(agent: AgentClient, path: bytes) -> bytes | None:
    """None where it is missing, or larger than any such file."""
    try:
        head, data = await agent.read_file(path, 0, MAX_BUNDLE)
    except NotFoundError:
        return None
    async with contextlib.aclosing(data):
        content = b"".join([each async for each in data])
    return None if head.info.size > MAX_BUNDLE else content


async def _write(agent: AgentClient, path: bytes, content: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 1 << 20):
            yield content[at : at + (1 << 20)]

    header = pb.WriteFileHeader(
        path=path, mode=pb.WriteFileHeader.MODE_REPLACE, permissions=0o644, make_parents=True
    )
    await agent.write_file(header, pieces())


def host_ca(setting: str) -> Path:
    """What servers of hosts with secrets are verified with."""
    return Path(setting) if setting else HOST_CA
