"""Dockerfiles as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.errors import InvalidRequestError
from roost.templates.dockerfile import Dockerfile, parse


def one(text: str) -> Dockerfile:
    return parse(f"FROM base\n{text}")


def test_lines_comments_and_continuations() -> None:
    found = parse(
        "# syntax=docker/dockerfile:1\n"
        "# a comment\n"
        "ARG V=12\n"
        "from base AS x\n"
        "\n"
        "RUN apt-get update \\\n"
        "    # why\n"
        "\n"
        "    && apt-get install -y git   \n"
        "env A=1\n"
    ).instructions
    assert [(i.keyword, i.line) for i in found] == [
        ("ARG", 3),
        ("FROM", 4),
        ("RUN", 6),
        ("ENV", 10),
    ]
    assert found[2].text.split() == ["apt-get", "update", "&&", "apt-get", "install", "-y", "git"]


def test_another_escape_character() -> None:
    found = parse("# escape=`\nFROM base\nRUN a `\n b\\\nCMD x\n")
    assert found.escape == "`"
    assert [i.text.split() for i in found.instructions[1:]] == [["a", "b\\"], ["x"]]


def test_json_and_shell_forms() -> None:
    found = one('RUN ["a", "b c"]\nCMD ["x"\nCOPY ["a b", "/c"]\n').instructions[1:]
    assert found[0].words == ("a", "b c")
    assert found[1].words is None  # what is no JSON is the shell's
    assert found[2].words == ("a b", "/c")


def test_flags() -> None:
    found = one(
        "RUN --mount=type=secret,id=a --mount=type=secret,id=b echo --x\nCOPY --chown=1:2 --chmod=755 a /b\n"
    ).instructions[1:]
    assert found[0].flags == (("mount", "type=secret,id=a"), ("mount", "type=secret,id=b"))
    assert found[0].text == "echo --x"
    assert (found[1].flag("chown"), found[1].flag("chmod")) == ("1:2", "755")


def test_here_documents() -> None:
    found = one(
        "RUN <<EOF\necho $A\nFROM is text\nEOF\n"
        "COPY <<-'A' <<B /x/\n\tone\nA\ntwo\nB\n"
        "RUN python3 <<END && echo done\nprint(1)\nEND\n"
        "RUN echo $((1<<2))\n"
    ).instructions[1:]
    assert [i.line for i in found] == [2, 6, 11, 14]
    assert found[0].heredocs[0].content == "echo $A\nFROM is text\n"
    a, b = found[1].heredocs
    assert (a.content, a.raw, b.content, b.raw) == ("one\n", True, "two\n", False)
    assert found[2].heredocs[0].name == "END"
    assert found[3].heredocs == ()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "no instruction"),
        ("RUN x\n", 1, "before FROM"),
        ("ARG X\n", 1, "no FROM"),
        ("FROM a\nFROM b\n", 2, "one stage"),
        ("FROM a\n\nRNU x\n", 3, "did you mean RUN"),
        ("FROM a\nRUN --mout=type=secret x\n", 2, "did you mean --mount"),
        ("FROM a\nRUN\n", 2, "says nothing"),
        ("FROM a\nRUN <<EOF\nx\n", 2, "has no end"),
        ("# escape=x\nFROM a\n", 1, "escape"),
        ("FROM a\nRUN a\0b\n", 2, "NUL"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(text)
    assert caught.value.code == "DOCKERFILE_INVALID"
    assert caught.value.details["line"] == line
    assert says in caught.value.message
    assert f"line {line}" in caught.value.message


@given(st.text(alphabet=st.sampled_from("FROM base\nRUNCOPY<<EOF\\#$\"'[]{}=-\t`x"), max_size=200))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        found = parse(f"FROM base\n{text}")
    except InvalidRequestError as failure:
        code = failure.code
    else:
        code = "DOCKERFILE_INVALID"
        lines = [i.line for i in found.instructions]
        assert lines == sorted(lines)
    assert code == "DOCKERFILE_INVALID"
