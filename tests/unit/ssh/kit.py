"""The SSH side on a port of its own, in front of the real services and a real agent; asyncssh's client and OpenSSH's."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from roost.clock import SystemClock
from roost.gateway.front import bind
from roost.services.ssh_keys import SshKey
from roost.ssh import host_key
from roost.ssh.server import SshServer
from roost.ssh.visit import Inside
from tests.unit.api.kit import Served

HAS_OPENSSH = all(shutil.which(each) for each in ("ssh", "scp", "sftp", "ssh-keygen"))


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: bytes


class Ssh:
    def __init__(self, served: Served, directory: Path) -> None:
        self.served = served
        self.directory = directory
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.machine = served.machine()
        self.identity = directory / "id"
        self.identity.write_bytes(self.key.export_private_key())
        self.identity.chmod(0o600)

    async def open(self) -> None:
        s = self.served
        inside = Inside(
            s.machines,
            s.executions,
            s.services.terminals,
            s.services.files,
            s.doors,
            s.audit,
            set(),
        )
        self.host_key = host_key.load(self.directory)
        self.sockets = bind("127.0.0.1", 0)
        self.server = SshServer(
            inside, s.keys, s.ssh_keys, s.rates, SystemClock().now, self.host_key, self.sockets
        )
        await self.server.start()
        self.port = int(self.sockets[0].getsockname()[1])
        known = f"[127.0.0.1]:{self.port} {host_key.public(self.host_key)}\n"
        (self.directory / "known_hosts").write_text(known)

    async def close(self) -> None:
        await self.server.stop()
        for sock in self.sockets:
            sock.close()

    async def register(self, tenant: str, key: asyncssh.SSHKey | None = None) -> SshKey:
        public = (key or self.key).export_public_key().decode()
        return await self.served.ssh_keys.add(tenant, public, "laptop")

    def connect(self, user: str | None = None, **kw: Any) -> Any:
        """asyncssh's client, with our key unless told otherwise."""
        options: dict[str, Any] = {"client_keys": [self.key], "agent_path": None, "config": None}
        return asyncssh.connect(
            "127.0.0.1",
            self.port,
            username=user or self.machine,
            known_hosts=None,
            **{**options, **kw},
        )

    async def openssh(
        self, program: str, *arguments: str, stdin: bytes = b"", timeout: float = 30, **env: str
    ) -> Done:
        process = await asyncio.create_subprocess_exec(
            program,
            *self.options(program),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env},
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), timeout)
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
            raise AssertionError(f"{program} {arguments} hangs: {out!r} {err!r}") from None
        return Done(process.returncode or 0, out, err)

    def options(self, program: str) -> list[str]:
        port = "-p" if program == "ssh" else "-P"
        settings = {
            "IdentityFile": str(self.identity),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.directory / "known_hosts"),
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        pairs = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        return ["-F", "none", port, str(self.port), *pairs]
