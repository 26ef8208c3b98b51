"""Who a call is made as: the machine's own users, and what a path means to one of them.

/etc/passwd is the machine's to write: it is read through its agent, bounded, and believed for a few seconds.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from roost.dialects.e2b.envd.place import MAX_USER, Place
from roost.dialects.e2b.envd.refusals import Refused
from roost.errors import RoostError
from roost.services.files import Files
from roost.services.machines import Machines

DEFAULT = "user"  # of E2B's templates
FRESH_S = 10.0
AGAIN_S = 1.0  # so often a name that is not there is looked for anew
MAX_BYTES = 64 * 1024
MAX_USERS = 256
MACHINES = 1000
_ID = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: int
    gid: int
    home: str
    runs_as: (
        str | None
    )  # as executions are told; None: the template's own user, in its own directory
    owner: str  # of what is written

    def path(self, said: str) -> bytes:
        """Absolute and plain: what is relative is below its home. Raises Refused."""
        if said == "~" or said.startswith("~/"):
            said = self.home + said[1:]
        elif said.startswith("~"):
            raise Refused("invalid_argument", "cannot expand user-specific home dir")
        plain = posixpath.normpath(posixpath.join(self.home, said))
        if plain.startswith("//"):
            plain = plain[1:]
        try:
            return plain.encode()
        except UnicodeEncodeError:
            raise Refused("invalid_argument", "the path is not Unicode text") from None


@dataclass(slots=True)
class _Known:
    generation: int
    at: float
    by_name: Mapping[str, Account]


class Accounts:
    def __init__(self, files: Files, machines: Machines) -> None:
        self._files = files
        self._machines = machines
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def of(self, place: Place, name: str | None) -> Account:
        """Of that name, or the sandbox's own: the template's where that is not root, else ``user`` where there is one,
        as in E2B's own templates, else the machine's. Wakes the machine. Raises Refused (unauthenticated), and what ``Machines.awake`` raises."""
        live = await self._machines.awake(place.tenant, place.machine_id)
        own = live.config.get("user")
        own = own.partition(":")[0] if isinstance(own, str) else ""
        own = "" if own in ("root", "0") else own
        wanted = name or own or DEFAULT
        if len(wanted) > MAX_USER:
            raise Refused("unauthenticated", "invalid username")
        found = await self._find(place, live.machine.generation, wanted)
        if found is not None:
            return found if name or not own else dataclasses.replace(found, runs_as=None)
        if not name and not own:
            root = (await self._table(place, live.machine.generation)).get("root")
            return Account("root", 0, 0, root.home if root else "/root", None, "")
        raise Refused("unauthenticated", f"invalid username: {wanted!r}")

    async def _find(self, place: Place, generation: int, wanted: str) -> Account | None:
        table = await self._table(place, generation)
        found = _named(table, wanted)
        if found is None and wanted != DEFAULT:
            table = await self._table(place, generation, AGAIN_S)
            found = _named(table, wanted)
        return found

    async def _table(
        self, place: Place, generation: int, fresh_s: float = FRESH_S
    ) -> Mapping[str, Account]:
        known = self._known.get(place.machine_id)
        now = time.monotonic()
        if known is not None and known.generation == generation and now - known.at < fresh_s:
            self._known.move_to_end(place.machine_id)
            return known.by_name
        table = parsed(await self._read(place))
        self._known[place.machine_id] = _Known(generation, now, table)
        self._known.move_to_end(place.machine_id)
        if len(self._known) > MACHINES:
            self._known.popitem(last=False)
        return table

    async def _read(self, place: Place) -> bytes:
        try:
            reading = await self._files.read(
                place.tenant, place.machine_id, b"/etc/passwd", length=MAX_BYTES
            )
        except RoostError as failure:
            if failure.code in ("FILE_NOT_FOUND", "FILE_KIND_REFUSED", "IS_A_DIRECTORY"):
                return b""
            raise
        try:
            return b"".join([piece async for piece in reading.data])
        finally:
            await reading.data.aclose()


def parsed(text: bytes) -> Mapping[str, Account]:
    """The first of each name. A home that is no absolute path is ``/``."""
    table: dict[str, Account] = {}
    for line in text.decode(errors="replace").split("\n"):
        fields = line.split(":")
        if len(fields) != 7 or not (_ID.fullmatch(fields[2]) and _ID.fullmatch(fields[3])):
            continue
        name, home = fields[0], fields[5]
        if not name or len(name) > MAX_USER or name in table:
            continue
        if not home.startswith("/") or "\0" in home or len(home) > 1024:
            home = "/"
        if len(table) == MAX_USERS:
            break
        table[name] = Account(
            name, int(fields[2]), int(fields[3]), home, name, f"{int(fields[2])}:{int(fields[3])}"
        )
    return table


def _named(table: Mapping[str, Account], wanted: str) -> Account | None:
    if wanted in table:
        return table[wanted]
    if _ID.fullmatch(wanted):
        return next((each for each in table.values() if each.uid == int(wanted)), None)
    return None
