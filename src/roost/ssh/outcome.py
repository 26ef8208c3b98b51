"""How a session ended, in SSH's words (RFC 4254, 6.10)."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import asyncssh

# The names that have a place in the protocol.
NAMES = frozenset(
    ("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    signal: int | None = None

    def tell(self, channel: asyncssh.SSHServerChannel[bytes]) -> None:
        """Sent after all output; the channel is then closed."""
        name = _name(self.signal)
        if name is not None:
            channel.exit_with_signal(name)
        else:
            channel.exit(self.status)


def number(name: str) -> int | None:
    """The signal a client names; None for one that nobody may send."""
    if name not in NAMES:
        return None
    return int(signal.Signals[f"SIG{name}"])


def _name(of: int | None) -> str | None:
    if of is None:
        return None
    try:
        name = signal.Signals(of).name.removeprefix("SIG")
    except ValueError:
        return None
    return name if name in NAMES else None
