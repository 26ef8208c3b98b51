"""Which calls a list of tools covers: words as they are, and nothing cleverer."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.engine.tools import LOGIN_SHELL, OFF, WORD, Call, Mode, Rule, Tools, matches
from roost.errors import InvalidRequestError


def ask(*rules: dict[str, Any]) -> Tools:
    return Tools.read({"mode": "ask", "allow": list(rules)})


def covers(rule: dict[str, Any], *argv: str, **is_: Any) -> bool:
    return ask(rule).allows(Call(argv, **is_))


@pytest.mark.parametrize(
    ("pattern", "word", "fits"),
    [
        ("status", "status", True),
        ("status", "status ", False),
        ("Status", "status", False),
        ("*", "", True),
        ("*", "a/b", False),
        ("**", "a/../b", True),
        ("?", "/", False),
        ("a?c", "abc", True),
        ("*.py", "x.py", True),
        ("*.py", "x.pyc", False),
        ("*.py", "d/x.py", False),
        ("**.py", "d/x.py", True),
        ("**a*b", "xa/yab", True),  # the shortest way through is not the one that fits
        ("[ab]", "a", False),  # no classes: brackets are brackets
        ("[ab]", "[ab]", True),
        ("a\nb", "a\nb", True),
        ("*", "a\nb", True),
        ("/work/*", "/work/..", False),
        ("/work/**", "/work/../etc/passwd", False),
        ("/work/**", "/work/a..b", True),
        ("../*", "../x", True),
        ("../**", "../../x", False),
        ("--out=*", "--out=..", False),
    ],
)
def test_patterns(pattern: str, word: str, fits: bool) -> None:
    assert matches(pattern, word) is fits


@given(st.text("ab/.?*", max_size=12), st.text("ab/.", max_size=12))
def test_a_pattern_is_no_more_than_it_says(pattern: str, word: str) -> None:
    """Against the plain way to try every split."""

    def fits(p: str, w: str) -> bool:
        if not p:
            return not w
        if p.startswith("**"):
            return fits(p.lstrip("*"), w) or (w != "" and fits(p, w[1:]))
        if p[0] == "*":
            return fits(p[1:], w) or (w != "" and w[0] != "/" and fits(p, w[1:]))
        return w != "" and (p[0] == w[0] or (p[0] == "?" and w[0] != "/")) and fits(p[1:], w[1:])

    if pattern in ("**", word):
        assert matches(pattern, word)
    elif matches(pattern, word):
        assert fits(pattern, word)
    elif ".." not in word:
        assert not fits(pattern, word)


def test_no_pattern_is_slow() -> None:
    began = time.process_time()
    assert not matches("*a" * 400 + "b", "a" * WORD)
    assert not matches("**" + "a?" * 400 + "b", "a" * WORD)
    assert time.process_time() - began < 1.0
    assert not matches("a*", "a" * (WORD + 1)) and matches("**", "a" * (WORD + 1))


def test_programs_are_words_too() -> None:
    assert covers({"program": "git"}, "git", "anything")
    assert not covers({"program": "git"}, "/usr/bin/git")
    assert not covers({"program": "/usr/bin/git"}, "git")
    assert not covers({"program": "git"}, "./git")


def test_arguments() -> None:
    status = {"program": "git", "args": ["status", "..."]}
    assert covers(status, "git", "status") and covers(status, "git", "status", "-s", "/x")
    assert not covers(status, "git") and not covers(status, "git", "-c", "core.pager=id", "status")
    assert covers({"program": "ls", "args": []}, "ls")
    assert not covers({"program": "ls", "args": []}, "ls", "-l")
    assert not covers({"program": "ls", "args": ["-l"]}, "ls", "-l", "/")


def test_a_shells_text_is_one_argument_of_sh() -> None:
    whole = {"program": "sh", "args": ["-c", "make test"]}
    text = ("/bin/sh", "-c", "make test")
    assert covers(whole, *text, shell=True)
    assert not covers(whole, *text)  # an argv: its program is /bin/sh
    assert not covers(whole, "/bin/sh", "-c", "make test; id", shell=True)
    assert not covers({"program": "make", "args": ["test"]}, *text, shell=True)
    for option in ("-c", "-lc"):
        with pytest.raises(InvalidRequestError, match="word for word"):
            ask({"program": "/bin/bash", "args": [option, "make *"]})


def test_variables_and_users_must_be_allowed() -> None:
    plain = {"program": "make"}
    assert covers(plain, "make", env={"LANG": "C", "LC_ALL": "C"})
    for name in ("PATH", "LD_PRELOAD", "BASH_ENV", "CI"):
        assert not covers(plain, "make", env={name: "x"})
    assert covers({**plain, "env": ["CI*"]}, "make", env={"CI": "1", "CI_JOB": "2"})
    assert not covers(plain, "make", user="root")
    assert covers({**plain, "users": ["app"]}, "make", user="app")
    assert covers({**plain, "users": ["app"]}, "make")


def test_modes() -> None:
    assert OFF.allows(Call(["anything"])) and Tools.read("off") == OFF
    assert not Tools.read("deny").allows(Call(["ls"]))
    assert Tools.read({"allow": [{"program": "ls"}]}).mode is Mode.ASK
    assert ask({"program": LOGIN_SHELL}).allows(Call([LOGIN_SHELL]))


@pytest.mark.parametrize(
    "said",
    [
        "open",
        {"mode": "off", "allow": [{"program": "ls"}]},
        {"mode": "ask", "allow": [{"program": ""}]},
        {"mode": "ask", "allow": [{"program": "bin/ls"}]},
        {"mode": "ask", "allow": [{"program": "l*"}]},
        {"mode": "ask", "allow": [{"program": "ls", "args": ["...", "x"]}]},
        {"mode": "ask", "allow": [{"program": "ls", "args": "x"}]},
        {"mode": "ask", "allow": [{"program": "ls", "argv": []}]},
        {"mode": "ask", "allow": [{"program": "ls", "env": ["A=B"]}]},
        {"mode": "ask", "allow": [{"program": "ls", "args": ["\0"]}]},
        {"mode": "ask", "allow": [{"program": f"p{n}"} for n in range(129)]},
    ],
)
def test_what_is_no_list(said: Any) -> None:
    with pytest.raises(InvalidRequestError):
        Tools.read(said)


def test_kept_as_it_was_said() -> None:
    tools = ask(
        {"program": "git", "args": ["status", "..."]},
        {"program": "/usr/bin/make", "env": ["CI"], "users": ["app"]},
        {"program": "git", "args": ["status", "..."]},
    )
    assert len(tools.allow) == 2
    assert Tools.from_json(tools.to_json()) == tools == Tools.read(tools.to_json())
    assert Tools.from_json(None) == OFF and Rule("ls").to_json() == {"program": "ls", "args": None}
