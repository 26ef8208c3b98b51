"""OpenSSH's own client against the server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.ssh.kit import HAS_OPENSSH, Ssh

pytestmark = pytest.mark.skipif(not HAS_OPENSSH, reason="needs OpenSSH's client")


async def test_streams_and_exit_status(ssh: Ssh) -> None:
    done = await ssh.openssh("ssh", f"{ssh.machine}@127.0.0.1", "echo out; echo err >&2; exit 3")
    assert (done.code, done.out, done.err) == (3, b"out\n", b"err\n")


async def test_stdin_to_its_end_and_back_unchanged(ssh: Ssh) -> None:
    data = os.urandom(3_000_000)
    done = await ssh.openssh("ssh", f"{ssh.machine}@127.0.0.1", "cat", stdin=data)
    assert (done.code, done.out == data, done.err) == (0, True, b"")


async def test_terminal(ssh: Ssh) -> None:
    done = await ssh.openssh(
        "ssh",
        "-tt",
        f"{ssh.machine}@127.0.0.1",
        "tty; stty size; echo $TERM",
        TERM="xterm-256color",
    )
    assert b"/dev/pts/" in done.out
    assert b"xterm-256color" in done.out, done


async def test_scp_and_sftp(ssh: Ssh, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub").mkdir(parents=True)
    there.mkdir()
    (here / "big").write_bytes(os.urandom(2_500_000))
    (here / "sub" / "empty").touch()
    (here / "run").write_text("#!/bin/sh\n")
    (here / "run").chmod(0o755)
    done = await ssh.openssh("scp", "-r", str(here), f"{ssh.machine}@127.0.0.1:{there}/copy")
    assert done.code == 0, done
    copy = there / "copy"
    assert (copy / "big").read_bytes() == (here / "big").read_bytes()
    assert (copy / "run").stat().st_mode & 0o777 == 0o755
    assert (copy / "sub" / "empty").read_bytes() == b""
    back = tmp_path / "back"
    done = await ssh.openssh("scp", "-r", f"{ssh.machine}@127.0.0.1:{copy}", str(back))
    assert done.code == 0, done
    assert (back / "big").read_bytes() == (here / "big").read_bytes()
    # A shorter file over a longer one.
    (here / "big").write_bytes(b"short")
    done = await ssh.openssh("scp", str(here / "big"), f"{ssh.machine}@127.0.0.1:{copy}/big")
    assert (done.code, (copy / "big").read_bytes()) == (0, b"short")
    batch = tmp_path / "batch"
    batch.write_text(
        f"cd {there}\npwd\nls -l copy\nmkdir made\nput {here}/run made/a\nchmod 600 made/a\nrename made/a made/b\n"
        f"symlink b made/link\nls -l made\nget made/b {tmp_path}/got\nrm made/b\nrm made/link\nrmdir made\n"
    )
    done = await ssh.openssh("sftp", "-b", str(batch), f"{ssh.machine}@127.0.0.1")
    assert done.code == 0, done
    assert b"link -> b" in done.out or b"link" in done.out
    assert (tmp_path / "got").read_text() == "#!/bin/sh\n"
    assert not (there / "made").exists()


async def test_wrong_key_and_missing_machine_say_the_same(ssh: Ssh, tmp_path: Path) -> None:
    missing = await ssh.openssh("ssh", "nothing-here@127.0.0.1", "true")
    other = tmp_path / "other"
    os.system(f"ssh-keygen -q -t ed25519 -N '' -f {other}")
    wrong = await ssh.openssh(
        "ssh", "-o", f"IdentityFile={other}", "-i", str(other), "nope@127.0.0.1", "true"
    )
    assert (missing.code, wrong.code) == (255, 255)
    assert missing.err.replace(b"nothing-here", b"") == wrong.err.replace(b"nope", b"")
