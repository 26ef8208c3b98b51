"""Accepts SSH connections and counts them: unknown ones few and for a short time, known ones by their tenant.

```
accept --> too many unknown ones, in all or of one address: the oldest of whoever has most of them is closed for it
       '-> too many in all and none of them unknown: closed at once
       '-> LOGIN_S to prove who it is --> too many of this tenant: told so
                                      '-> open until the client goes, its key is revoked, or the daemon stops
```
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import asyncssh
import structlog

from roost.errors import LimitError, RoostError
from roost.gateway.front import party
from roost.services.keys import Keys
from roost.services.models import Principal
from roost.services.rates import Rates
from roost.services.ssh_keys import SshKeys
from roost.ssh.connection import Connection, Visitor
from roost.ssh.names import Login
from roost.ssh.visit import Inside

log = structlog.get_logger(__name__)

CONNECTIONS = 512
UNKNOWN = 256  # that have not proved who they are, from everywhere
UNKNOWN_OF_PARTY = 16  # of one address, of IPv6 its /64; this host's own stand for many
OF_TENANT = 64
LOGIN_S = 20.0
# Of what every OpenSSH since 2014 knows. Not those that take tens of milliseconds, which anybody could ask for at will: all
# that the daemon does would wait.
KEX = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group14-sha256",
    "diffie-hellman-group16-sha512",
)
ALIVE_S = 30.0  # a client that is silent is asked so often whether it lives
ALIVE_TRIES = 4
ACCEPT_PAUSE_S = 0.1  # after a failure to accept: descriptors are short
LAST_WORDS_S = 3.0
WRITE_BUFFER = 512 * 1024


class SshServer:
    """``sockets`` are bound."""

    def __init__(
        self,
        services: Inside,
        keys: Keys,
        ssh_keys: SshKeys,
        rates: Rates,
        now: Callable[[], datetime],
        host_key: asyncssh.SSHKey,
        sockets: list[socket.socket],
    ) -> None:
        self.services = services
        self.keys = keys
        self.ssh_keys = ssh_keys
        self._rates = rates
        self._now = now
        self._host_key = host_key
        self._sockets = sockets
        self._visitors: dict[Visitor, str | None] = {}  # with the party an unknown one counts for
        self._unknown: Counter[str | None] = Counter()
        self._of_tenant: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._options: asyncssh.SSHServerConnectionOptions | None = None

    async def start(self) -> None:
        logging.getLogger("asyncssh").setLevel(logging.ERROR)  # it would log commands and names
        self.keys.on_end(self._end)
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            sock.setblocking(False)
            task = loop.create_task(self._accept(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Ends every connection, and what their channels started."""
        for task in list(self._tasks):
            task.cancel()
        for visitor in list(self._visitors):
            with contextlib.suppress(Exception):
                visitor.end("The daemon is stopping.")
        await asyncio.sleep(0)
        for visitor in list(self._visitors):
            visitor.abort()
        await asyncio.sleep(0)
        if self.services.afterwards:
            await asyncio.wait(set(self.services.afterwards), timeout=LAST_WORDS_S)

    @property
    def connections(self) -> int:
        return len(self._visitors)

    # --- for the visitors -------------------------------------------------------------------------

    async def find(self, tenant: str, login: Login) -> str | None:
        """The tenant's machine. By id alone where that is meant: another tenant, who registered the same public key,
        may have given it to a machine as name or key."""
        try:
            found = (await self.services.machines.named(tenant, login.machine)).id
        except RoostError:
            return None
        return None if login.by_id and found != login.machine else found

    def check(self, who: Principal) -> None:
        """Whether one more of the tenant may come in. Raises LIMIT_EXCEEDED, RATE_LIMITED."""
        if self._of_tenant[who.tenant] >= OF_TENANT:
            raise LimitError(
                f"{OF_TENANT} SSH connections of this tenant are open, the most there may be.",
                code="LIMIT_EXCEEDED",
            )
        self.take(who)

    def take(self, who: Principal) -> None:
        """Raises RATE_LIMITED."""
        self._rates.take(who)

    def entered(self, visitor: Visitor) -> None:
        assert visitor.visit is not None
        self._known(visitor)
        self._of_tenant[visitor.visit.tenant] += 1

    def left(self, visitor: Visitor) -> None:
        if visitor not in self._visitors:
            return
        if visitor.visit is not None:
            tenant = visitor.visit.tenant
            self._of_tenant[tenant] -= 1
            if not self._of_tenant[tenant]:
                del self._of_tenant[tenant]
        else:
            self._known(visitor)
        del self._visitors[visitor]

    def left_until(self, when: datetime) -> float:
        return max(0.0, (when - self._now()).total_seconds())

    def _known(self, visitor: Visitor) -> None:
        party = self._visitors[visitor]
        self._unknown[party] -= 1
        if not self._unknown[party]:
            del self._unknown[party]

    def _end(self, key_id: str) -> None:
        for visitor in list(self._visitors):
            if visitor.key_id == key_id:
                visitor.end("This key was revoked.")

    # --- accepting --------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as failure:
                log.warning("ssh.accept", error=str(failure))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            try:
                await self._take_in(sock, str(address[0]))
            except Exception as failure:
                log.warning("ssh.accept", error=repr(failure)[:200])
                sock.close()

    async def _take_in(self, sock: socket.socket, peer: str) -> None:
        whose = party(peer)
        if not self._make_room(whose):
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        visitor = Visitor(self, peer)
        options = await self._made_options()
        options = await asyncssh.SSHServerConnectionOptions.construct(
            options, server_factory=lambda: visitor
        )
        loop = asyncio.get_running_loop()
        self._visitors[visitor] = whose
        self._unknown[whose] += 1
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: Connection(loop, options), sock
            )
            transport.set_write_buffer_limits(high=WRITE_BUFFER)
        except BaseException:
            self.left(visitor)
            raise

    def _make_room(self, whose: str | None) -> bool:
        """For one more of that party. Who says nothing must keep nobody out: whatever is too much goes from the party
        that has most unknown ones, its oldest first."""
        if whose is not None and self._unknown[whose] >= UNKNOWN_OF_PARTY:
            self._drop(whose)
        if self._unknown.total() >= UNKNOWN or len(self._visitors) >= CONNECTIONS:
            if not self._unknown:
                return False
            self._drop(max(self._unknown, key=self._unknown.__getitem__))
        return True

    def _drop(self, whose: str | None) -> None:
        oldest = next(v for v, of in self._visitors.items() if v.visit is None and of == whose)
        self.left(oldest)
        oldest.abort()

    async def _made_options(self) -> asyncssh.SSHServerConnectionOptions:
        if self._options is None:
            self._options = await asyncssh.SSHServerConnectionOptions.construct(
                server_host_keys=[self._host_key],
                server_version="Roost",
                kex_algs=KEX,
                login_timeout=LOGIN_S,
                keepalive_interval=ALIVE_S,
                keepalive_count_max=ALIVE_TRIES,
                compression_algs=None,  # nothing that unpacks to more than it is
                host_based_auth=False,
                kbdint_auth=False,
                gss_host=None,
                gss_kex=False,
                gss_auth=False,
                allow_pty=True,
                line_editor=False,
                x11_forwarding=False,
                agent_forwarding=False,
                rdns_lookup=False,
                encoding=None,
                allow_scp=False,
            )
        return self._options
