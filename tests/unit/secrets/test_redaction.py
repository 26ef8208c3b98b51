"""However a stream is cut into pieces, what comes out is as long, and says no value."""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path
from urllib.parse import quote, quote_plus

from hypothesis import given
from hypothesis import strategies as st

import roost.secrets
from roost.secrets.secret import weight

sys.path.insert(0, str(Path(roost.secrets.__file__).parent / "boundary"))
from redaction import Needles, Redactor, forms

VALUES = ["sk-live_AB12cd34", "aaaaaaaa", 'p/w+x y=&"<q~z']
NEEDLES = Needles(VALUES)

_noise = st.binary(max_size=6)
_part = st.one_of(
    _noise,
    st.sampled_from(NEEDLES.all),
    st.sampled_from(VALUES).map(str.encode),
    st.tuples(st.sampled_from(NEEDLES.all), st.integers(0, 12)).map(lambda t: t[0][: t[1]]),
    st.tuples(_noise, st.sampled_from(VALUES), _noise).map(
        lambda t: base64.b64encode(t[0] + t[1].encode() + t[2])
    ),
    st.just(b"aaaaaaaaaaa"),
)


@given(st.lists(_part, max_size=8), st.lists(st.integers(1, 9), max_size=60))
def test_any_split_gives_the_same(parts: list[bytes], sizes: list[int]) -> None:
    data = b"".join(parts)
    redactor, out, at = Redactor(NEEDLES), b"", 0
    for size in [*sizes, len(data)]:
        out += redactor.feed(data[at : at + size])
        at += size
    out += redactor.feed(b"") + redactor.end()
    assert out == NEEDLES.mask(data)
    assert len(out) == len(data)
    for needle in NEEDLES.all:
        assert needle not in out
    for here, there in zip(data, out, strict=True):
        assert there in (here, ord("*"))


@given(st.lists(_part, max_size=8))
def test_stars_are_where_a_form_is_and_nowhere_else(parts: list[bytes]) -> None:
    data = b"".join(parts)
    expected = bytearray(data)
    for needle in NEEDLES.all:
        at = data.find(needle)
        while at >= 0:
            expected[at : at + len(needle)] = b"*" * len(needle)
            at = data.find(needle, at + 1)
    assert NEEDLES.mask(data) == expected


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=8))
def test_what_is_counted_is_no_less_than_what_is_looked_for(value: str) -> None:
    assert weight(value) >= sum(map(len, forms(value)))


def test_hard_values_cost_no_more_than_the_length() -> None:
    """Which share long beginnings with each other and with what is said."""
    needles = Needles(['"' * 1000 + f"{i:02d}" for i in range(8)])
    begun = time.process_time()
    for text in (b'"' * 65536, (b'"' * 999 + b"x") * 65, b"22" * 32768):
        redactor = Redactor(needles)
        for at in range(0, len(text), 512):
            redactor.feed(text[at : at + 512])
    assert time.process_time() - begun < 2


@given(st.binary(max_size=200))
def test_what_says_none_stays_as_it_is(data: bytes) -> None:
    if not any(needle in data for needle in NEEDLES.all):
        assert NEEDLES.mask(data) == data


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=40),
    st.binary(max_size=9),
    st.binary(max_size=9),
)
def test_common_forms_are_found(value: str, before: bytes, after: bytes) -> None:
    needles = Needles([value])
    raw = value.encode()
    for form in (quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1], raw.hex()):
        assert form.encode() not in needles.mask(b"a" + form.encode() + b"b").replace(b"*", b"")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        shown = needles.mask(encode(before + raw + after))
        assert shown.count(b"*") >= len(raw) * 8 // 6 - 1  # all but what shares bits with others


def test_only_a_beginning_is_held_back() -> None:
    redactor = Redactor(Needles(["secret-value"]))
    assert redactor.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert redactor.feed(b"data: secret") == b"data: "
    assert redactor.feed(b"-val") == b""
    assert redactor.feed(b"ley") == b"secret-valley"
    assert redactor.end() == b""
