"""One SSH connection: bounded, and known by a public key of a tenant or an API key as password.

```
 user name, public key (asked about) --> is it anybody's?        no --> failure
 user name, public key + signature   --> whose, and has that tenant such a machine?   no --> the same failure
 user name, password                 --> an API key that may change things, and such a machine?  no --> the same
```

Whether a machine exists is looked up only for who has proved to hold a key, and no failure says which of the two was
wrong; those that follow a proof all take the same time. ``TRIES`` failures end the connection.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncssh
import structlog

from roost.errors import RoostError
from roost.services.models import Principal, Role
from roost.services.ssh_keys import SshKey
from roost.ssh import names
from roost.ssh.forward import Forward
from roost.ssh.names import Login
from roost.ssh.session import Session
from roost.ssh.visit import Visit

if TYPE_CHECKING:
    from roost.ssh.server import SshServer

log = structlog.get_logger(__name__)

TRIES = 8  # failures: an agent offers several keys before the right one
FAILURE_S = 0.4  # what a failed proof takes, whatever was wrong
CHANNELS = 32  # open at once in a connection, sessions and forwards together
UNREAD = 8 * 2**20  # received and not yet taken apart: windows of all channels fit in
UNREAD_UNKNOWN = (
    256 * 1024
)  # of who has not proved who they are; no packet is larger (RFC 4253, 6.1: 35,000)
MOST_PACKET = (
    256 * 1024
)  # of a client, as with OpenSSH: what is asked for with it, a command, is kept
REKEY_LOOK_S = 0.02
DEFERRED = (
    4096  # answers that wait for a key exchange's end; a client that never ends it gets no more
)
PIECES = (
    256  # that a paused channel holds; of one byte each they would take a hundred times their size
)
LEAST_PACKET = 1024  # that a client takes: byte for byte everybody else would wait
MAY_ENTER = frozenset({Role.ADMIN, Role.TENANT, Role.RUNNER})


class Connection(asyncssh.SSHServerConnection):
    """asyncssh takes no notice of a socket that is full: this does, both for what we send (``room``) and by not reading
    from a client that does not read us."""

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._writable = asyncio.Event()
        self._writable.set()

    async def room(self) -> None:
        """Returns when more may be sent."""
        await self._writable.wait()
        while not self._kex_complete and self._transport is not None:  # noqa: ASYNC110
            await asyncio.sleep(REKEY_LOOK_S)  # what is sent meanwhile piles up

    def pause_writing(self) -> None:
        self._writable.clear()
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None = None) -> None:
        self._writable.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        super().data_received(data, datatype)
        for channel in self._channels.values():
            if len(channel._recv_buf) > PIECES:
                channel._recv_buf = [(b"".join(part for part, _ in channel._recv_buf), None)]
        known = isinstance(self._owner, Visitor) and self._owner.visit is not None
        if (
            len(self._inpbuf) > (UNREAD if known else UNREAD_UNKNOWN)
            or self._pktlen > MOST_PACKET
            or len(self._deferred_packets) > DEFERRED
        ):
            self.abort()

    async def validate_public_key(
        self, username: str, key_data: bytes, msg: bytes, signature: bytes
    ) -> bool:
        """Asked without a signature, whether the key is anybody's; with one, whether its holder may come in."""
        owner = self._owner
        assert isinstance(owner, Visitor)
        if not msg:
            return await owner.knows(key_data)
        return await owner.prove(super().validate_public_key(username, key_data, msg, signature))


class Visitor(asyncssh.SSHServer):
    """Who is at the other end: nobody, until ``visit`` is set."""

    def __init__(self, server: SshServer, peer: str) -> None:
        self._server = server
        self._peer = peer
        self._failures = 0
        self._begun = time.monotonic()
        self._expiry: asyncio.TimerHandle | None = None
        self._conn: Connection | None = None
        self._offered: tuple[Principal, str, Login] | None = None
        self._aborted = False
        self.channels = 0
        self.visit: Visit | None = None

    # --- the connection's life --------------------------------------------------------------------

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, Connection)
        self._conn = conn
        if self._aborted:
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._server.left(self)

    def end(self, why: str) -> None:
        """From our side: the client is told why."""
        if self._conn is not None:
            self._conn.disconnect(asyncssh.DISC_BY_APPLICATION, why)

    def abort(self) -> None:
        self._aborted = True
        if self._conn is not None:
            self._conn.abort()

    @property
    def key_id(self) -> str | None:
        return self.visit.who.key_id if self.visit is not None else None

    # --- who is it --------------------------------------------------------------------------------

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    async def knows(self, key_data: bytes) -> bool:
        found = await self._keys_of(key_data)
        return self._judged(bool(found))

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """The signature is looked at after this."""
        self._offered = None
        login = names.parse(username)
        found = await self._keys_of(key.public_data)
        # Of several tenants' key only an id says which of them is meant.
        if login is None or (len(found) != 1 and not login.by_id):
            return False
        for ssh_key in found:
            if machine_id := await self._server.find(ssh_key.tenant_id, login):
                self._server.ssh_keys.used(ssh_key.id)
                who = Principal(ssh_key.tenant_id, ssh_key.id, "", Role.TENANT)
                self._offered = (who, machine_id, login)
                return True
        return False

    async def validate_password(self, username: str, password: str) -> bool:
        return await self.prove(self._by_password(username, password))

    async def _by_password(self, username: str, password: str) -> bool:
        self._offered = None
        login = names.parse(username)
        try:
            who = await self._server.keys.authenticate(password)
        except RoostError:
            return False
        if who.role not in MAY_ENTER or login is None:
            return False
        machine_id = await self._server.find(who.tenant, login)
        if machine_id is None:
            return False
        self._offered = (who, machine_id, login)
        return True

    async def prove(self, proof: Awaitable[bool]) -> bool:
        """The proof's outcome; a failure comes no sooner than any other. What it is about counts once it holds."""
        begun = time.monotonic()
        good = False
        with contextlib.suppress(RoostError):
            good = await proof
        if good and self._offered is not None:
            return self._admit(*self._offered)
        await asyncio.sleep(max(0.0, begun + FAILURE_S - time.monotonic()))
        return self._judged(False)

    def _admit(self, who: Principal, machine_id: str, login: Login) -> bool:
        if self._aborted:
            return False
        try:
            self._server.check(who)
        except RoostError as failure:
            self.end(failure.message)
            return False
        self.visit = Visit(self._server.services, who, machine_id, login.user, self._peer)
        self._server.entered(self)
        if who.expires_at is not None:
            left = self._server.left_until(who.expires_at)
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(left, self.end, "This key has expired.")
        return True

    def _judged(self, good: bool) -> bool:
        if not good:
            self._failures += 1
            if self._failures >= TRIES:
                self.end("Too many authentication failures.")
        return good

    async def _keys_of(self, key_data: bytes) -> list[SshKey]:
        if len(key_data) > 8192:
            return []
        size = int.from_bytes(key_data[:4], "big")
        try:
            kind = key_data[4 : 4 + size].decode("ascii")
        except (UnicodeDecodeError, binascii.Error):
            return []
        return await self._server.ssh_keys.known(f"{kind} {base64.b64encode(key_data).decode()}")

    def auth_completed(self) -> None:
        visit = self.visit
        if visit is None:  # cannot be: nobody is let in without
            self.abort()
            return
        visit.note("ssh_connect")
        log.info(
            "ssh.connect",
            machine_id=visit.machine_id,
            tenant=visit.tenant,
            key_id=visit.who.key_id,
            peer=self._peer,
        )

    # --- what they may open -----------------------------------------------------------------------

    def session_requested(self) -> Any:
        visit = self._channel()
        assert self._conn is not None
        channel = self._conn.create_server_channel(**Session.CHANNEL)
        session = Session(visit, self._conn, self._closed)

        async def opening() -> Session:
            self._require_packets(channel)
            return session

        return channel, opening()

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Any:
        """``-L`` and ``-D``: to the machine's own loopback and nowhere else, since it would else be a way around
        its egress policy."""
        visit = self._channel()
        assert self._conn is not None
        connection = self._conn
        channel = connection.create_tcp_channel(**Forward.CHANNEL)

        async def opening() -> Forward:
            self._require_packets(channel)
            return await Forward.open(visit, connection, dest_host, dest_port, self._closed)

        return channel, opening()

    def _require_packets(self, channel: Any) -> None:
        """Raises ChannelOpenError; known only once asyncssh opens the channel."""
        if channel._send_pktsize < LEAST_PACKET:
            self._closed()
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, f"packets of {LEAST_PACKET} bytes are the least"
            )

    def _channel(self) -> Visit:
        if self.visit is None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "")
        if self.channels >= CHANNELS:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE,
                f"{CHANNELS} channels are open, the most there may be",
            )
        try:
            self._server.take(self.visit.who)
        except RoostError as failure:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, failure.message
            ) from failure
        self.channels += 1
        return self.visit

    def _closed(self) -> None:
        self.channels -= 1


Ended = Callable[[], None]
