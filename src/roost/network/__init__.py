"""Machines' networks: one slot each, default-deny, identical from the inside.

A slot is two namespaces. The machine's has ``eth0`` 10.0.0.2/30 and nothing else, the same in every
machine, so that a snapshot clones without new addresses. The gateway's has 10.0.0.1, the slot's own
address on the host side, and the rules: only the machine's own source address, DNS to one resolver,
nothing private, nothing inbound but the agent's port from the host. A table of ours on the host says
the same once more, keeps slots apart and lets only root reach an agent.

``addresses.py`` and ``rules.py`` are pure; ``plumbing.py`` makes and unmakes one slot, ``slots.py`` keeps
the pool and is what the engine calls (``interface.Network``); ``host.py`` stands in its place in a daemon that is not root.
"""

from roost.network.host import HostNetwork
from roost.network.interface import Network
from roost.network.slots import SlotNetwork

__all__ = ["HostNetwork", "Network", "SlotNetwork"]
