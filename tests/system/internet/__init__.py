"""The internet of the tests: public addresses, names and servers in a namespace that only this host routes to.

    names         which name has which addresses; asked by ``dns``
    dns           the resolver at RESOLVER (UDP, TCP, TLS, and by HTTPS through ``web``); what is not under ``.test``
                  goes to the host's own resolver
    web           HTTP, HTTPS and WebSocket on every address of WEB, the metadata service at METADATA among them
    certificates  the authority that signs for any name
    packets       what arrives on the wire
    place         the namespace, its links, the thread that serves; the fixture ``internet``

Whatever arrives is written down: ``internet.seen("dns", ...)``. Of ATTACKERS every address answers on every port of
TCP and UDP and to ICMP, and every packet to it counts; a test takes one of its own with ``internet.attacker()``.
A host has one of each address: sessions wait for one another.
"""

from tests.system.internet.names import ATTACKERS, INTERNET, LAN, METADATA, RESOLVER, WEB
from tests.system.internet.place import Internet, internet
from tests.system.internet.record import Seen

__all__ = [
    "ATTACKERS",
    "INTERNET",
    "LAN",
    "METADATA",
    "RESOLVER",
    "WEB",
    "Internet",
    "Seen",
    "internet",
]
