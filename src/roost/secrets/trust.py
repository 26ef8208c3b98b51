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
# Where the system's cannot be written (rung 1): for programs told by their environment, until the machine stops.
OWN_BUNDLE = b"/run/roost/ca-certificates.crt"
OWN_CERTIFICATE = b"/run/roost/machine.crt"
BEGIN, END = b"# Roost machine authority\n", b"# end of Roost machine authority\n"
MAX_BUNDLE = 4 * 2**20
PROGRAM_MS = 20_000

_TOLD = (
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
)


def environment(one_user: bool) -> dict[str, str]:
    return dict.fromkeys(_TOLD, (OWN_BUNDLE if one_user else BUNDLE).decode())


# Of every user with a home: Chromium reads ~/.pki/nssdb. Without certutil there is nothing to be done.
_STORES = """
command -v certutil >/dev/null 2>&1 || exit 0
for home in /root /home/*; do
  [ -w "$home" ] || continue
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


async def install(agent: AgentClient, certificate: str, one_user: bool = False) -> None:
    """Idempotent. Raises what the agent's calls raise (MACHINE_DISK_FULL, AGENT_LOST, ...)."""
    pem = certificate.encode()
    at, beside = (OWN_BUNDLE, OWN_CERTIFICATE) if one_user else (BUNDLE, CERTIFICATE)
    bundle = await _read(agent, at)
    known = await _read(agent, BUNDLE) if bundle is None and one_user else bundle
    if known is None:  # then a list of programs' own is all there was: the host's is no worse
        known = HOST_CA.read_bytes() if HOST_CA.exists() else b""
    wanted = _without(known) + BEGIN + pem + END
    if wanted != bundle:
        await _write(agent, at, wanted)
    if await _read(agent, beside) != pem:
        await _write(agent, beside, pem)
        await _stores(agent, "add", beside, one_user)


async def remove(agent: AgentClient, one_user: bool = False) -> None:
    """Idempotent."""
    at, beside = (OWN_BUNDLE, OWN_CERTIFICATE) if one_user else (BUNDLE, CERTIFICATE)
    bundle = await _read(agent, at)
    if bundle is not None and _without(bundle) != bundle:
        await _write(agent, at, _without(bundle))
    if await _read(agent, beside) is not None:
        await _stores(agent, "remove", beside, one_user)
        with contextlib.suppress(NotFoundError):
            await agent.remove(beside, recursive=False)


def _without(bundle: bytes) -> bytes:
    """Where ``update-ca-certificates`` has run, ours is in it once more, without our marks: that one may stay."""
    before, found, rest = bundle.partition(BEGIN)
    if not found:
        return bundle if not bundle or bundle.endswith(b"\n") else bundle + b"\n"
    return before + rest.partition(END)[2]


async def _stores(agent: AgentClient, what: str, certificate: bytes, one_user: bool) -> None:
    request = pb.StartRequest(
        execution_id=ids.new(),
        argv=["/bin/sh", "-c", _STORES, "sh", what, certificate.decode()],
        user="" if one_user else "root",
        timeout_ms=PROGRAM_MS,
        ring_bytes=4096,
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
