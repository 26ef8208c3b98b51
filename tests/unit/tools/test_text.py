"""Bounds and edits of text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.tools._errors import ToolFailure
from roost.tools._text import LINE_CHARS, Clip, Pager, inserted, numbered, replaced


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(2, 60))
def test_what_is_kept_is_the_beginning_and_the_end(pieces: list[bytes], limit: int) -> None:
    clip = Clip(limit)
    for piece in pieces:
        clip.feed(piece)
    whole, half = b"".join(pieces), limit // 2
    assert clip.size == len(whole)
    assert clip.cut == max(0, len(whole) - 2 * half)
    if not clip.cut:
        assert clip.text() == whole.decode("utf-8", "replace")
    else:
        head, tail = clip.text("<{cut}>").split(f"\n<{clip.cut}>\n")
        assert head == whole[:half].decode("utf-8", "replace")
        assert tail == whole[-half:].decode("utf-8", "replace")


def test_a_flood_takes_no_memory() -> None:
    clip = Clip(1000)
    for _ in range(1000):
        clip.feed(b"x" * 10_000)
    assert len(clip._head) + len(clip._tail) <= 11_500
    assert clip.cut == 10_000_000 - 1000


def paged(
    text: bytes, *args: int | None, piece: int = 7, **options: int
) -> tuple[list[str], int | None]:
    pager = Pager(*args, **options)  # type: ignore[arg-type]
    for at in range(0, len(text), piece):
        if not pager.feed(text[at : at + piece]):
            break
    page = pager.end()
    assert page.last == page.first + len(page.lines) - 1
    return page.lines, page.following


def test_pages() -> None:
    text = b"one\ntwo\r\nthree\nfour"
    assert paged(text) == (["one", "two", "three", "four"], None)
    assert paged(text, 2, 3) == (["two", "three"], 4)
    assert paged(text, 3, 9) == (["three", "four"], None)
    assert paged(text, 1, None, limit=9) == (["one", "two"], 3)
    assert paged(b"") == ([], None)
    assert paged(b"\n\n") == (["", ""], None)
    with pytest.raises(ToolFailure, match="There is no line 9: the file has 4"):
        paged(text, 9)
    with pytest.raises(ToolFailure, match="NUL"):
        paged(b"a\0b")


def test_a_line_without_end_is_cut() -> None:
    (line,), following = paged(b"x" * 1_000_000, piece=65536)
    assert len(line) < LINE_CHARS + 50
    assert line.endswith("[line cut: 1000000 bytes]")
    assert following is None


def test_replaced() -> None:
    assert replaced("a\nb\nc\n", "b", "B") == ("a\nB\nc\n", 1, 2)
    assert replaced("a b a", "a", "", every=True) == (" b ", 2, 1)
    with pytest.raises(ToolFailure, match=r"3 times \(lines 1, 2, 4\)"):
        replaced("x\nx\n\nx", "x", "y")
    with pytest.raises(ToolFailure, match=r"not in the file.*CR LF"):
        replaced("a\r\nb", "a\nb", "c")
    with pytest.raises(ToolFailure, match="empty"):
        replaced("a", "", "b")
    with pytest.raises(ToolFailure, match="the same"):
        replaced("a", "a", "a")


def test_inserted() -> None:
    assert inserted("a\nb\n", 0, "x") == "x\na\nb\n"
    assert inserted("a\nb", 2, "x\n") == "a\nb\nx\n"
    assert inserted("a\r\nb\r\n", 1, "x") == "a\r\nx\r\nb\r\n"
    assert inserted("", 0, "x") == "x\n"
    with pytest.raises(ToolFailure, match="no line 3: the file has 2"):
        inserted("a\nb\n", 3, "x")


def test_numbered() -> None:
    assert numbered(["a", "b"], 9) == "     9\ta\n    10\tb"
