"""Trees: which machines and snapshots came of which, also of machines that are gone while others of theirs live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from roost.engine.lifecycle import Phase
from roost.services.machines import Machines
from roost.services.models import Node, Tree
from roost.store import Store, lineage

NODES = 5_000  # of each kind


class Trees:
    def __init__(self, store: Store, machines: Machines) -> None:
        self._store = store
        self._machines = machines

    async def tree(self, tenant: str, machine_id: str | None = None) -> Tree:
        """All of a tenant's, or of one machine: those it came of, itself, and all that came of it. Raises
        MACHINE_NOT_FOUND."""
        if machine_id is not None:
            await self._machines.get(tenant, machine_id)
        found = await self._store.read(lambda c: lineage.of_tenant(c, tenant, NODES + 1))
        truncated = any(len(each) > NODES for each in found)
        machines, ancestors, snapshots = (each[:NODES] for each in found)
        nodes = {
            row["id"]: Node(
                kind="machine",
                id=row["id"],
                parent_id=row["parent_id"],
                from_snapshot_id=row["from_snapshot_id"],
                name=row["name"],
                key=row.get("key"),
                phase=row.get("phase", Phase.DESTROYED.value),
                tier=row.get("tier"),
                replaces=row.get("replaces"),
                created_at=row["created_at"],
            )
            for row in (*ancestors, *machines)
        } | {
            row["id"]: Node(
                kind="snapshot",
                id=row["id"],
                parent_id=row["machine_id"],
                from_snapshot_id=None,
                name=row["name"],
                key=None,
                phase=None,
                tier=None,
                replaces=None,
                created_at=row["created_at"],
            )
            for row in snapshots
        }
        shown = _living(nodes) if machine_id is None else _around(nodes, machine_id)
        return Tree(sorted(shown, key=lambda each: (each.created_at, each.id)), truncated)


def _living(nodes: Mapping[str, Node]) -> list[Node]:
    """Without what is gone with all that came of it."""
    kept: set[str] = set()
    for node in nodes.values():
        if node.phase != Phase.DESTROYED:
            kept |= _line(nodes, node.id)
    return [node for node in nodes.values() if node.id in kept]


def _around(nodes: Mapping[str, Node], machine_id: str) -> list[Node]:
    below: defaultdict[str, list[str]] = defaultdict(list)
    for node in _living(nodes):
        if node.parent_id is not None:
            below[node.parent_id].append(node.id)
    kept = _line(nodes, machine_id)
    pending = [machine_id]
    while pending:
        children = [each for each in below[pending.pop()] if each not in kept]
        kept |= set(children)
        pending += children
    return _of(nodes, kept)


def _line(nodes: Mapping[str, Node], at: str | None) -> set[str]:
    """It and those it came of."""
    line: set[str] = set()
    while at is not None and at in nodes and at not in line:
        line.add(at)
        at = nodes[at].parent_id
    return line


def _of(nodes: Mapping[str, Node], ids: Iterable[str]) -> list[Node]:
    return [nodes[each] for each in ids if each in nodes]
