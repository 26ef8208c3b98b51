"""User names, host key, environment, outcome: the parts without a connection."""

from __future__ import annotations

import signal
from pathlib import Path

import asyncssh
import pytest

from roost.errors import InvalidRequestError
from roost.ssh import host_key, names, outcome
from roost.ssh.forward import is_loopback
from roost.ssh.names import Login
from roost.ssh.session import Accepted


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("a" * 26, Login("a" * 26, None)),
        ("user-42", Login("user-42", None)),
        ("team:user@example.com+agent", Login("team:user@example.com", "agent")),
        ("web+1000", Login("web", "1000")),
        *((bad, None) for bad in ("", "+a", "a+", "a+b+c", "a b", "a/b", "-a", ".", "a+-b", "a\n", "x" * 129, "é")),
    ],
)  # fmt: skip
def test_user_names(text: str, login: Login | None) -> None:
    assert names.parse(text) == login


def test_only_an_id_is_one() -> None:
    assert Login("a" * 26, None).by_id
    assert not Login("user-42", None).by_id


def test_host_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    made = host_key.load(tmp_path)
    path = tmp_path / host_key.NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert host_key.public(host_key.load(tmp_path)) == host_key.public(made)
    assert host_key.public(made).startswith("ssh-ed25519 AAAA")
    path.chmod(0o644)
    with pytest.raises(InvalidRequestError, match="others may read"):
        host_key.load(tmp_path)
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(InvalidRequestError, match="no private key"):
        host_key.load(tmp_path)


def test_environment() -> None:
    env = Accepted()
    for name in (b"LANG", b"LC_ALL", b"PATH", b"LC_", b"LC_lower", b"XLANG", b"LANGX"):
        env[name] = b"C"
    env[b"LC_TIME"] = b"x" * 1000
    env[b"LC_NAME"] = b"a\nb"
    assert dict(env) == {b"LANG": b"C", b"LC_ALL": b"C"}
    for n in range(100):
        env[b"LC_" + bytes([65 + n % 26, 65 + n // 26])] = b"C"
    assert len(env) == 32


def test_signals() -> None:
    assert outcome.number("TERM") == signal.SIGTERM
    assert outcome.number("STOP") is None
    assert outcome.number("SEGV; rm") is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("x.localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.2", False), ("127.0.0.1.example", False), ("2130706433", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_the_library_is_the_one_whose_inside_was_read() -> None:
    """``_env`` of a channel, ``_inpbuf``, ``_kex_complete`` and ``_transport`` of a connection are its own affair."""
    connection = asyncssh.SSHServerConnection
    source = Path(asyncssh.connection.__file__).read_text()
    for name in ("self._inpbuf", "self._kex_complete", "self._transport", "def pause_writing"):
        assert name in source
    assert "self._env[key] = value" in Path(asyncssh.channel.__file__).read_text()
    assert connection.pause_writing.__doc__
