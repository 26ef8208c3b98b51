from __future__ import annotations

from pathlib import Path

import pytest

from roost.errors import UnsupportedError
from roost.network import resolver


def _file(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_the_hosts_first_usable_one(tmp_path: Path) -> None:
    file = _file(
        tmp_path, "r", "search x\nnameserver ::1\nnameserver 192.0.2.53\nnameserver 1.1.1.1\n"
    )
    assert resolver.choose("", (file,)) == "192.0.2.53"


def test_past_systemds_stub_to_its_upstream(tmp_path: Path) -> None:
    stub = _file(tmp_path, "a", "nameserver 127.0.0.53\n")
    upstream = _file(tmp_path, "b", "nameserver 198.51.100.1\n")
    assert resolver.choose("", (stub, upstream)) == "198.51.100.1"


def test_none_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        resolver.choose("", (_file(tmp_path, "a", "nameserver 127.0.0.53\n"), "/nonexistent"))
    assert caught.value.code == "HOST_UNSUPPORTED"
    assert "ROOST_DNS" in caught.value.message


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "dns.example", "0.0.0.0", "224.0.0.1"])
def test_a_configured_one_that_cannot_be(address: str) -> None:
    with pytest.raises(UnsupportedError):
        resolver.choose(address)
