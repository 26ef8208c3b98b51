"""Public keys: what is taken, whose they are, and that they go."""

from __future__ import annotations

from pathlib import Path

import asyncssh
import pytest

from roost.clock import SystemClock
from roost.errors import ConflictError, InvalidRequestError, LimitError, NotFoundError
from roost.services import ssh_keys
from roost.services.ssh_keys import SshKeys
from roost.store import Store
from roost.store import keys as key_rows


def line(kind: str = "ssh-ed25519", comment: str = "me@laptop", **kw: int) -> str:
    key = asyncssh.generate_private_key(kind, comment=comment, **kw)
    return key.export_public_key().decode().strip()


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521"])
def test_a_key_is_its_type_and_its_bytes(kind: str) -> None:
    text = line(kind)
    kept, comment = ssh_keys.parse(f"  {text}  \n")
    assert (kept, comment) == (" ".join(text.split()[:2]), "me@laptop")
    assert ssh_keys.fingerprint(kept) == asyncssh.import_public_key(text).get_fingerprint()


def test_rsa_has_enough_bits() -> None:
    ssh_keys.parse(line("ssh-rsa", key_size=2048))
    with pytest.raises(InvalidRequestError, match="2048 bits"):
        ssh_keys.parse(line("ssh-rsa", key_size=1024))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !!!!",
        "ssh-dss AAAAB3NzaC1kc3M=",
        "ecdsa-sha2-nistp256 " + line().split()[1],
        'command="rm -rf /" ' + line(),
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "x" * 9000,
    ],
)
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        ssh_keys.parse(text)


async def test_life_of_a_key(tmp_path: Path) -> None:
    clock, ended = SystemClock(), list[str]()
    store = Store.open(tmp_path / "db", clock)
    for tenant in ("a", "b"):
        await store.write(lambda c, t=tenant: key_rows.put_tenant(c, t, clock.now()))
    keys = SshKeys(store, clock, ended.extend)
    text = line()
    mine = await keys.add("a", text)
    assert mine.name == "me@laptop"
    with pytest.raises(ConflictError):
        await keys.add("a", text)
    theirs = await keys.add("b", text, "the same")
    assert {k.id for k in await keys.known(mine.public_key)} == {mine.id, theirs.id}
    with pytest.raises(NotFoundError):
        await keys.remove("b", mine.id)
    keys.used(mine.id)
    assert (await keys.list("a"))[0].last_used_at is not None
    await keys.flush()
    await keys.remove("a", mine.id)
    assert ended == [mine.id]
    assert [k.id for k in await keys.known(mine.public_key)] == [theirs.id]
    with pytest.raises(NotFoundError):
        await keys.add("nobody", text)
    await store.close()


async def test_there_are_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_keys, "KEYS", 2)
    clock = SystemClock()
    store = Store.open(tmp_path / "db", clock)
    await store.write(lambda c: key_rows.put_tenant(c, "a", clock.now()))
    keys = SshKeys(store, clock, lambda _: None)
    for _ in range(2):
        await keys.add("a", line())
    with pytest.raises(LimitError):
        await keys.add("a", line())
    await store.close()
