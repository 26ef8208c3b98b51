"""What the design has and this release has not yet: each says so at once, before any request."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from roost.errors import error

if TYPE_CHECKING:
    from roost.client._sync._machine import Machine


def refuse(what: str) -> NoReturn:
    raise error("UNSUPPORTED", f"{what} is not in this release of Roost yet.")


class LaterMixin:
    """Methods of a machine whose signatures stand already."""

    def fork(self, count: int | None = None) -> Machine | list[Machine]:
        """A copy of the running machine; ``count=N`` gives a list. Raises UnsupportedError for now."""
        refuse("fork()")

    def snapshot(self, name: str | None = None) -> str:
        """Disk and memory at this instant; its id. Raises UnsupportedError for now."""
        refuse("snapshot()")

    def rollback(self, snapshot: str) -> Machine:
        """Back to a snapshot of its own. Raises UnsupportedError for now."""
        refuse("rollback()")
