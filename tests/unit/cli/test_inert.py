from __future__ import annotations

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


def test_sequences_cut_in_two() -> None:
    assert show("\x1b", "[3", "1mred") == "\x1b[31mred"
    assert show("\x1b", "]0;x") == "^[]0;x"
    assert show("end\x1b[") == "end^[["


@given(st.lists(st.text(alphabet="\x1b[]0;1mKnHJ\x07\x9b\\a\u202e\x00\n"), max_size=6))
def test_nothing_dangerous_is_left_however_it_is_cut(pieces: list[str]) -> None:
    import re

    left = re.sub(r"\x1b\[[0-9;:]*[mK]", "", show(*pieces))
    assert all(c.isprintable() or c in ALLOWED for c in left)
    assert show(*pieces) == show("".join(pieces))


@given(st.text())
def test_plain_is_one_line(text: str) -> None:
    assert len(plain(text).splitlines()) <= 1
    assert "\x1b" not in plain(text)
