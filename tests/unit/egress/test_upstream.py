from __future__ import annotations

import asyncio
import socket

import dns.rcode
import dns.rdatatype

from roost.egress.upstream import MAX_OF_ONE, Upstream


async def test_one_slot_does_not_take_everybodys_lookups() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        upstream = Upstream([silent.getsockname()], try_s=0.2)
        asking = [
            asyncio.ensure_future(upstream.ask(f"{i}.example", dns.rdatatype.A, 1))
            for i in range(MAX_OF_ONE)
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(0.1):
            refused = await upstream.ask("more.example", dns.rdatatype.A, 1)
        assert refused.rcode == dns.rcode.SERVFAIL
        other = asyncio.ensure_future(upstream.ask("more.example", dns.rdatatype.A, 2))
        await asyncio.sleep(0.05)
        assert not other.done(), "it is asked for"
        await asyncio.gather(other, *asking)
        assert not upstream._begun
