from __future__ import annotations

import json
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.egress import control
from roost.egress.control import Frames, ProtocolError
from roost.egress.dialling import UpstreamProxy
from roost.egress.interface import Decision, Intercept
from roost.egress.policy import Reach
from roost.errors import InvalidRequestError


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers()), max_size=5), st.integers(1, 9))
def test_frames_in_pieces(messages: list[dict[str, int]], size: int) -> None:
    wire = b"".join(control.frame(each) for each in messages)
    frames, found = Frames(), []
    for at in range(0, len(wire), size):
        found += frames.feed(wire[at : at + size])
    assert found == messages


@pytest.mark.parametrize("wire", [b"\xff\xff\xff\xff", b"\0\0\0\1x", b"\0\0\0\2[]"])
def test_what_is_no_frame(wire: bytes) -> None:
    with pytest.raises(ProtocolError):
        Frames().feed(wire)


def _sent(value: object) -> object:
    return json.loads(json.dumps(value))


def test_values_come_back() -> None:
    reach = Reach((IPv4Network("10.1.0.0/16"),), (IPv4Network("192.0.2.0/24"),))
    assert control.read_reach(control.reach_to_json(reach)) == reach
    ways = (Intercept(("a.example",), "unix:/x", "u", "p", (443,)),)
    assert control.read_intercepts(_sent(control.intercepts_to_json(ways))) == ways
    assert "password" not in repr(ways[0])
    rows = [Decision("a", 443, "tcp", "tls", False, "private", 2, 1.0, 2.0)]
    assert control.read_decisions(_sent(control.decisions_to_json(rows))) == rows


@pytest.mark.parametrize("value", [None, {}, [{}], [{"names": [1]}], [[]]])
def test_interceptions_that_are_none(value: object) -> None:
    with pytest.raises(ProtocolError):
        control.read_intercepts(value)


def test_the_upstream_proxy() -> None:
    proxy = UpstreamProxy.parse("http://u:p%3A@proxy.example:3128")
    assert (proxy.host, proxy.port) == ("proxy.example", 3128)
    assert proxy.authorization == b"Basic dTpwOg=="
    assert "dTpwOg" not in repr(proxy)
    for url in (
        "https://p:1",
        "http://p",
        "p:1",
        "http://:secret@:x",
        "http://p:1/path",
        "http://u:secret@p:99999",
    ):
        with pytest.raises(InvalidRequestError) as caught:
            UpstreamProxy.parse(url)
        assert "secret" not in str(caught.value)
