"""Variables and quotes in words."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.templates.substitute import Unreadable, expand, split, word

V = {"A": "1", "E": "", "P": "/bin"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$A/${A}x$Ax", "1/1x"),
        ("${N:-d}${E:-d}${A:-d}", "dd1"),
        ("${N-d}${E-d}", "d"),
        ("${N:+s}${E:+s}${A:+s}", "s"),
        ("${E+s}", "s"),
        ("${N:-${A:+y$P}}", "y/bin"),
        ("'$A' \"$A\" \\$A", "$A 1 $A"),
        ('"a\\"b\\c"', 'a"b\\c'),
        ("a$", "a$"),
        ("$N", ""),
        ("${N:-'a}b'}", "a}b"),
    ],
)
def test_words(text: str, found: str) -> None:
    assert word(text, V) == found


@pytest.mark.parametrize("text", ["${A", "'x", '"x', "${A#x}", "${}", "${N:?why}", "${N:-"])
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(Unreadable):
        word(text, V)


def test_a_missing_one_says_why() -> None:
    with pytest.raises(Unreadable, match="N is not set: give it"):
        word("${N:?give it}", V)


def test_another_escape_character() -> None:
    assert word("C:\\x`$A", V, "`") == "C:\\x$A"


def test_here_documents_keep_their_quotes() -> None:
    assert expand("a '$A' \"$A\" \\$A \\n", V) == "a '1' \"1\" $A \\n"


def test_splitting() -> None:
    assert split("a=\"b c\" d\\ e  'f g'h") == ['a="b c"', "d\\ e", "'f g'h"]
    with pytest.raises(Unreadable):
        split("'a")


@given(st.text(max_size=100))
def test_plain_text_in_quotes_is_itself(text: str) -> None:
    plain = text.replace("'", "")
    assert word(f"'{plain}'", V) == plain


@given(st.text(alphabet=st.sampled_from("$A{}:-+?\\'\" x"), max_size=60))
def test_anything_is_read_or_refused(text: str) -> None:
    for function in (word, expand):
        try:
            assert isinstance(function(text, V), str)
        except Unreadable:
            pass


def test_it_does_not_nest_for_ever() -> None:
    with pytest.raises(Unreadable):
        word("${N:-" * 100 + "}" * 100, V)


@pytest.mark.parametrize("text", ["$A", "${A}", "${A:-x}", "${B-$A}", "${A:?x}", '"$A"'])
def test_a_short_text_becomes_no_long_one(text: str) -> None:
    """It is told before it is put together: 1 MiB of Dockerfile would be hundreds of GiB."""
    variables = {"A": "x" * 100_000}
    for replaced in (word, expand):
        tracemalloc.start()
        with pytest.raises(Unreadable, match="longer"):
            replaced(text * 1000, variables)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()
