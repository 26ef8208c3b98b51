"""Which name has which addresses.

allowed.test, other.test        a web server each
one.cdn.test, two.cdn.test      two names behind one address
*.wild.test                     any name below
A-B-C-D.at.test                 the address A.B.C.D
A-B-C-D.mixed.test              that of allowed.test and A.B.C.D in one answer
A-B-C-D.rebind.test             that of allowed.test when first asked for, then A.B.C.D (below any label:
x.A-B-C-D.rebind.test           so that each test has a name that nobody asked for)
A-B-C-D.alias.test              CNAME of A-B-C-D.at.test
alias.test                      CNAME of other.test
svcb.test                       as allowed.test, with HTTPS and SVCB records that hint at an attacker
v6.test, mapped.test            AAAA alone; the second the metadata service, mapped
*.tunnel.test                   whatever is asked; TXT too long for a datagram
doh.test, dot.test              resolvers
"""

from __future__ import annotations

import re
from collections import Counter

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

# Of the networks for documentation the one that test hosts leave free: others were seen to be a host's own and its
# mirror's.
NETWORK = "198.51.100.0/24"
INTERNET = "198.51.100.10"  # greets on 80
RESOLVER = "198.51.100.53"
ATTACKERS = "198.51.100.128/25"
LAN = "192.168.77.7"  # a private network's machine, which the host reaches
METADATA = "169.254.169.254"
ALLOWED, OTHER, CDN, WILD, PUBLIC_RESOLVER = (
    "198.51.100.20",
    "198.51.100.21",
    "198.51.100.30",
    "198.51.100.31",
    "198.51.100.54",
)
WEB = (ALLOWED, OTHER, CDN, WILD, PUBLIC_RESOLVER, LAN, METADATA)
HINTED = "198.51.100.254"

_FIXED = {
    "allowed.test": ALLOWED,
    "other.test": OTHER,
    "one.cdn.test": CDN,
    "two.cdn.test": CDN,
    "svcb.test": ALLOWED,
    "doh.test": PUBLIC_RESOLVER,
    "dot.test": PUBLIC_RESOLVER,
    "metadata.test": METADATA,
}
_AAAA = {"v6.test": "2001:db8::20", "mapped.test": f"::ffff:{METADATA}"}
_BY_ADDRESS = re.compile(r"(?:.+\.)?(\d+)-(\d+)-(\d+)-(\d+)\.(at|mixed|rebind|alias)\.test")


class Zone:
    """Answers for ``.test``."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        answer = dns.message.make_response(query, recursion_available=True)
        answer.flags |= dns.flags.AA
        records = self._records(name, question.rdtype)
        if records is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
            return answer
        for owner, kind, values in records:
            answer.answer.append(
                dns.rrset.from_text(dns.name.from_text(owner), 1, "IN", kind, *values)
            )
        return answer

    def _records(
        self, name: str, kind: dns.rdatatype.RdataType
    ) -> list[tuple[str, str, list[str]]] | None:
        """Owner, type, values; None where there is no such name."""
        kinds = dns.rdatatype
        if name.endswith("tunnel.test"):
            if kind == kinds.TXT:
                return [(name, "TXT", [f'"{str(n) * 100}"' for n in range(10, 40)])]
            return [(name, "A", [WILD])] if kind == kinds.A else []
        if name in _AAAA:
            return [(name, "AAAA", [_AAAA[name]])] if kind == kinds.AAAA else []
        if name == "alias.test":
            return [(name, "CNAME", ["other.test."]), ("other.test", "A", [OTHER])]
        if name == "svcb.test" and kind in (kinds.HTTPS, kinds.SVCB):
            return [(name, kind.name, [f"1 . alpn=h3,h2 ipv4hint={HINTED}"])]
        if (found := _BY_ADDRESS.fullmatch(name)) is not None:
            return self._by_address(name, ".".join(found.groups()[:4]), found[5], kind)
        address = _FIXED.get(name) or (WILD if name.endswith(".wild.test") else None)
        if address is None:
            return None
        return [(name, "A", [address])] if kind == kinds.A else []

    def _by_address(
        self, name: str, address: str, how: str, kind: dns.rdatatype.RdataType
    ) -> list[tuple[str, str, list[str]]]:
        target = f"{address.replace('.', '-')}.at.test"
        if how == "alias":
            cname = (name, "CNAME", [f"{target}."])
            return [cname, (target, "A", [address])] if kind == dns.rdatatype.A else [cname]
        if kind != dns.rdatatype.A:
            return []
        if how == "mixed":
            return [(name, "A", [ALLOWED, address])]
        if how == "rebind":
            self._asked[name] += 1
            return [(name, "A", [ALLOWED if self._asked[name] == 1 else address])]
        return [(name, "A", [address])]
