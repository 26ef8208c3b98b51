from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import dns.rcode
import dns.rdatatype
import pytest

from roost.egress import upstream
from roost.egress.upstream import MAX_OF_ONE, Upstream
from roost.host import doctor
from roost.settings import Settings


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


def test_the_hosts_own_are_asked_wherever_they_are(tmp_path: Path) -> None:
    """On loopback and by IPv6 too: it is not the machine that asks, but we."""
    file = tmp_path / "resolv.conf"
    file.write_text("search x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver\n")
    assert upstream.of_host(file) == (("127.0.0.53", 53), ("::1", 53))


def test_doctor_names_whom_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(**settings: str) -> doctor.Check:
        return doctor._resolver(Settings(**settings))  # type: ignore[arg-type]

    assert "127.0.0.1" in check(dns="127.0.0.1").detail
    monkeypatch.setattr(upstream, "of_host", lambda: (("127.0.0.53", 53),))
    assert check().ok and "127.0.0.53" in check().detail
    monkeypatch.setattr(upstream, "of_host", tuple)
    assert not check().ok and "ROOST_DNS" in (check().remedy or "")


def test_a_resolver_is_an_address() -> None:
    for wrong in ("dns.example", "127.0.0.1:53", "1.2.3"):
        with pytest.raises(ValueError, match="dns"):
            Settings(dns=wrong)
