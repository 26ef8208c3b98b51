"""What an SSH user name says: which machine, and who to be in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from roost import ids

# A machine's id, key (the widest of the three) or name; no key holds a "+".
_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Login:
    machine: str  # id, key or name
    user: str | None  # None: the template's

    @property
    def by_id(self) -> bool:
        """Whether it is an id's form: then it is one, never a key or name, and names one machine in all the world."""
        return ids.formed(self.machine)


def parse(text: str) -> Login | None:
    """``MACHINE`` or ``MACHINE+USER``; None for what can be neither."""
    machine, plus, user = text.partition("+")
    if not _MACHINE.fullmatch(machine) or (plus and not _USER.fullmatch(user)):
        return None
    return Login(machine, user or None)
