"""The machines' only DNS. What is not allowed is never asked for elsewhere.

A name that is not allowed does not exist (NXDOMAIN): that ends a look-up at once, with the message everybody knows,
where REFUSED would have the C library ask again and speak of a temporary failure. There is no SOA with it, so nobody
remembers it (RFC 2308, 5) and a widened policy holds at once; who can read extended errors is told why (RFC 8914).
"""

from __future__ import annotations

from collections.abc import Callable

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from roost.egress.policy import Mode, Policy, Reach, clean_name
from roost.egress.upstream import Answer

MAX_QUESTION = 1232
_MAX_UDP = 1232
_PLAIN_UDP = 512
_T = dns.rdatatype
# Nothing is of these types: IPv6 is off; service bindings carry addresses of their own and keys that hide names.
_EMPTY = frozenset({_T.AAAA, _T.HTTPS, _T.SVCB, _T.A6})
# What is asked for about an allowed name. The rest has no use but to carry something.
_USUAL = frozenset({_T.A, _T.CNAME, _T.TXT, _T.MX, _T.SRV, _T.NS, _T.SOA, _T.CAA, _T.PTR, _T.NAPTR})
_NOT_EVEN_OPEN = frozenset({_T.ANY, _T.AXFR, _T.IXFR, _T.MAILA, _T.MAILB, _T.OPT, _T.TSIG, _T.TKEY})


def read(wire: bytes) -> dns.message.QueryMessage | None:
    """A question as resolvers get them, None for anything else. Raises nothing."""
    if not 12 <= len(wire) <= MAX_QUESTION:
        return None
    counts = [int.from_bytes(wire[at : at + 2]) for at in (4, 6, 8, 10)]
    if wire[2] & 0xF8 or counts[0] != 1 or counts[1] or counts[2] or counts[3] > 2:
        return None  # an answer, another operation, or more than one question
    try:
        message = dns.message.from_wire(wire)
    except Exception:  # whatever a parser can say of a stranger's bytes
        return None
    if not isinstance(message, dns.message.QueryMessage) or len(message.question) != 1:
        return None
    return message


def asked(query: dns.message.QueryMessage) -> tuple[str | None, int]:
    """The name in the form that is compared, None where it is no host's, and the type."""
    question = query.question[0]
    try:
        name = clean_name(question.name.to_text(omit_final_dot=True))
    except (dns.exception.DNSException, UnicodeError):
        name = None
    return name, int(question.rdtype)


def judge(policy: Policy, name: str | None, kind: int) -> str:
    """Why it is not asked for, "" where it is."""
    if policy.mode is Mode.OFF:
        return "off"
    if name is None or kind in _NOT_EVEN_OPEN:
        return "malformed"
    if not policy.allows_name(name):
        return "not_allowed"
    if policy.mode is Mode.ALLOWLIST and kind not in _USUAL | _EMPTY:
        return "type"
    return ""


def empty(kind: int) -> bool:
    """Whether there is nothing of that type for anybody, so that nobody need be asked."""
    return kind in _EMPTY


def refused(query: dns.message.QueryMessage, reason: str) -> dns.message.Message:
    """For a name that is there for others only; or a question that is not answered."""
    missing = reason in ("off", "not_allowed")
    text = f"roost egress: {reason}"
    return _reply(query, dns.rcode.NXDOMAIN if missing else dns.rcode.REFUSED, text)


def nothing(query: dns.message.QueryMessage, text: str = "") -> dns.message.Message:
    return _reply(query, dns.rcode.NOERROR, text)


def failed(query: dns.message.QueryMessage) -> dns.message.Message:
    return _reply(query, dns.rcode.SERVFAIL)


def answered(
    query: dns.message.QueryMessage, answer: Answer, reach: Reach
) -> tuple[dns.message.Message, str]:
    """The answer without addresses that may not be spoken to; "private" where none is left."""
    kind = query.question[0].rdtype
    found = answer.found
    if found is not None and found.rdtype == _T.A:
        kept = [each for each in found if reach.permits(each.address)]
        if not kept:
            return nothing(query, "roost egress: private"), "private"
        found = _same(found, kept)
    if found is not None and found.rdtype != kind:
        found = None
    reply = _reply(query, answer.rcode)
    owner = query.question[0].name
    for each in (*answer.chain, *([found] if found is not None else [])):
        # The first owner is spelt as it was asked for: some look whether the case comes back.
        said = _same(each, list(each))
        if said.name == owner:
            said.name = owner
        reply.answer.append(said)
    return reply, ""


def placeholder(query: dns.message.QueryMessage, address: str) -> dns.message.Message:
    """An address that is nobody's, for a name that only an upstream proxy can resolve."""
    reply = _reply(query, dns.rcode.NOERROR)
    reply.answer.append(
        dns.rrset.from_text(query.question[0].name, 5, dns.rdataclass.IN, _T.A, address)
    )
    return reply


def wire(query: dns.message.QueryMessage, reply: dns.message.Message, *, udp: bool) -> bytes:
    """As it is sent; by UDP cut to what the asker takes, so that it comes again by TCP."""
    room = 65535
    if udp:
        room = min(_MAX_UDP, max(_PLAIN_UDP, query.payload)) if query.edns >= 0 else _PLAIN_UDP
    try:
        return reply.to_wire(max_size=room)
    except dns.exception.TooBig:
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return reply.to_wire(max_size=room)


def _same(found: dns.rrset.RRset, rdatas: list[object]) -> dns.rrset.RRset:
    build: Callable[..., dns.rrset.RRset] = dns.rrset.from_rdata_list
    return build(found.name, found.ttl, rdatas)


def _reply(query: dns.message.QueryMessage, rcode: int, text: str = "") -> dns.message.Message:
    reply = dns.message.make_response(query, recursion_available=True, our_payload=_MAX_UDP)
    if query.edns >= 0:
        blocked: list[dns.edns.Option] = (
            [dns.edns.EDEOption(dns.edns.EDECode.BLOCKED, text)] if text else []
        )
        reply.use_edns(0, 0, _MAX_UDP, options=blocked)
    reply.set_rcode(dns.rcode.Rcode(rcode))
    return reply
