from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.cli._inert import Inert, plain
from tests.attack.record import case

pytestmark = case(28)

ALLOWED = set("\t\n\r\x08\x07")


def show(*pieces: str) -> str:
    inert = Inert()
    return "".join(inert.feed(p) for p in pieces) + inert.end()


def test_colours_and_text_pass() -> None:
    text = "a\tb\r\n\x1b[1;31mred\x1b[0m \x1b[38:2::1:2:3mrgb\x1b[m\x1b[K €"
    assert show(text) == text


def test_what_drives_a_terminal_is_shown() -> None:
    assert show("\x1b]0;title\x07") == "^[]0;title\x07"
    assert show("\x1b]52;c;aGk=\x1b\\") == "^[]52;c;aGk=^[\\"
    assert show("\x1b[6n") == "^[[6n"
    assert show("\x1bP+q\x1b\\") == "^[P+q^[\\"
    assert show("\x9b2J") == "\\x9b2J"
    assert show("\x1b[2J\x1b[H") == "^[[2J^[[H"
    assert show("\u202etxt.exe") == "\\u202etxt.exe"


@pytest.mark.parametrize(
    "code",
    [0xAD, 0x34F, 0x61C, 0x115F, 0x200B, 0x200E, 0x202E, 0x2060, 0x2066, 0x3164, 0xFEFF, 0xE0041],
)
def test_what_has_no_look_of_its_own_is_shown(code: int) -> None:
    number = chr(code).encode("unicode_escape").decode()
    for made in (plain, show):
        assert made(f"/work/x{chr(code)}y") == f"/work/x{number}y"


@pytest.mark.parametrize("unseen", ["\u200c", "\u200d", "\ufe0f", "\U000e0100", "\xa0", "\u2800"])
def test_two_texts_that_look_alike_are_not_told_alike(unseen: str) -> None:
    assert plain(f"rm{unseen}") == "rm" + unseen.encode("unicode_escape").decode()


def test_no_two_texts_are_told_alike_for_a_format_character() -> None:
    passes = set(
        "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
    )
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert (chr(code) in plain(f"a{chr(code)}b")) is (chr(code) in passes), hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "áçñ ß Ελληνικά Кириллица",
        "日本語、한국어 ภาษาไทย",
        "العربية עברית हिन्दी",
        "\u0661\u06dd \u0600\u0661",  # signs around numbers
        "a\u0301",  # a mark of its own
        "👍🏽 ✓ 🇩🇪 ❤\ufe0f ☁\ufe0f prod",
    ],
)
def test_ordinary_text_passes(text: str) -> None:
    assert plain(text) == show(text) == text
    assert show(*text) == text


def test_what_scripts_and_emoji_are_joined_with_passes_in_a_stream() -> None:
    text = "می\u200cخواهم ක්\u200dෂ 👩\u200d💻 1\ufe0f\u20e3 葛\U000e0100"
    assert show(text) == show(*text) == text


def test_sequences_cut_in_two() -> None:
    assert show("\x1b", "[3", "1mred") == "\x1b[31mred"
    assert show("\x1b", "]0;x") == "^[]0;x"
    assert show("end\x1b[") == "end^[["


@given(
    st.lists(st.text(alphabet="\x1b[]0;1mKnHJ\x07\x9b\\a\u202e\u200b\U000e0041\x00\n"), max_size=6)
)
def test_nothing_dangerous_is_left_however_it_is_cut(pieces: list[str]) -> None:
    import re

    left = re.sub(r"\x1b\[[0-9;:]*[mK]", "", show(*pieces))
    assert all(c.isprintable() or c in ALLOWED for c in left)
    assert show(*pieces) == show("".join(pieces))


@given(st.text())
def test_plain_is_one_line(text: str) -> None:
    assert len(plain(text).splitlines()) <= 1
    assert "\x1b" not in plain(text)
