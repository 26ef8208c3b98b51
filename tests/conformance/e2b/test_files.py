"""``sandbox.files`` and signed URLs."""

from __future__ import annotations

import time

import httpx

from .boxes import box, refused, until  # noqa: F401  (the fixture)
from .conftest import Sdk


def test_write_and_read(box: Sdk) -> None:  # noqa: F811
    box.run("made = ~box.files.write('new/dir/ü 1.txt', 'hällo')")
    assert box.value("(made.name, made.type.value, made.path)") == [
        "ü 1.txt", "file", "/home/user/new/dir/ü 1.txt",
    ]  # fmt: skip
    assert box.value("~box.files.read('new/dir/ü 1.txt')") == "hällo"
    assert box.value(
        "bytes(~box.files.read(P, format='bytes')) == 'hällo'.encode()", P="~/new/dir/ü 1.txt"
    )
    assert box.value("~box.files.read('new/dir/ü 1.txt', gzip=True)") == "hällo"
    owners = box.value("(~box.commands.run('stat -c %U:%G:%a new new/dir/*')).stdout")
    assert owners == "user:user:755\nuser:user:644\n"
    box.run("~box.files.write('/root/r', 'x', user='root')")
    assert box.value("~box.files.read('r', user='root')") == "x"
    box.run("~box.files.write('z', b'\\x00\\xff' * 500000, gzip=True)")
    assert box.value("bytes(~box.files.read('z', format='bytes')) == b'\\x00\\xff' * 500000")
    box.run("~box.files.write('io', io.BytesIO(b'from a file'))")
    assert box.value("~box.files.read('io')") == "from a file"
    box.run("~box.files.write('empty', '')")
    assert box.value("~box.files.read('empty')") == ""
    box.run(
        "many = ~box.files.write_files([{'path': 'm/1', 'data': 'one'}, {'path': 'm/2', 'data': b'two'}])"
    )
    assert box.value("[each.path for each in many]") == ["/home/user/m/1", "/home/user/m/2"]
    box.records("Sandbox.files.write", "Sandbox.files.read", "Sandbox.files.write_files")


def test_streams(box: Sdk) -> None:  # noqa: F811
    if box.awaited:
        box.run("""async def pieces():
    for _ in range(40):
        yield b"x" * 100_000

async def size():
    total = 0
    async with await box.files.read("s", format="stream") as stream:
        async for each in stream:
            total += len(each)
    return total""")
        box.run("~box.files.write('s', pieces())")
        assert box.value("~size()") == 4_000_000
    else:
        box.run("box.files.write('s', (b'x' * 100_000 for _ in range(40)))")
        assert (
            box.value("sum(len(each) for each in box.files.read('s', format='stream'))")
            == 4_000_000
        )
    box.records("Sandbox.files.read(format='stream')", "Sandbox.files.write(iterable)")


def test_look_list_move_remove(box: Sdk) -> None:  # noqa: F811
    assert box.value("~box.files.make_dir('t/a')") is True
    assert box.value("~box.files.make_dir('t/a')") is False
    box.run("~box.files.write('t/f', '12345')")
    box.run("~box.commands.run('ln -s f t/link; chmod 600 t/f')")
    box.run("info = ~box.files.get_info('t/f')")
    assert box.value("(info.name, info.type.value, info.size, info.mode, info.permissions, info.owner, info.group)") == [
        "f", "file", 5, 0o600, "-rw-------", "user", "user",
    ]  # fmt: skip
    assert abs(box.value("info.modified_time.timestamp()") - time.time()) < 60
    box.run("link = ~box.files.get_info('t/link')")
    assert box.value("(link.type.value, link.symlink_target)") == ["symlink", "/home/user/t/f"]
    assert box.value("[(e.name, e.type.value) for e in ~box.files.list('t')]") == [
        ["a", "dir"], ["f", "file"], ["link", "symlink"],
    ]  # fmt: skip
    box.run("~box.files.write('t/a/deep', '')")
    assert box.value("[e.path for e in ~box.files.list('t', depth=2)]") == [
        "/home/user/t/a", "/home/user/t/a/deep", "/home/user/t/f", "/home/user/t/link",
    ]  # fmt: skip
    assert box.value("(~box.files.rename('t/f', 'u/g')).path") == "/home/user/u/g"
    assert box.value("(~box.files.exists('t/f'), ~box.files.exists('u/g'))") == [False, True]
    box.run("~box.files.remove('t')")
    assert box.value("~box.files.exists('t')") is False
    box.run("~box.files.remove('t')")
    box.records(
        "Sandbox.files.make_dir", "Sandbox.files.get_info", "Sandbox.files.list", "Sandbox.files.rename",
        "Sandbox.files.exists", "Sandbox.files.remove",
    )  # fmt: skip


def test_errors(box: Sdk) -> None:  # noqa: F811
    for ask in (
        "~box.files.read('none')", "~box.files.list('none')", "~box.files.get_info('none')",
        "~box.files.rename('none', 'x')", "~box.files.watch_dir('none'WATCH)",
    ):  # fmt: skip
        ask = ask.replace("WATCH", ", print" if box.awaited else "")
        refused(lambda ask=ask: box.run(ask), "FileNotFoundException")  # type: ignore[misc]
    for ask in (
        "~box.files.read('/tmp')",
        "~box.files.write('/tmp', 'x')",
        "~box.files.list('/etc/passwd')",
    ):
        refused(lambda ask=ask: box.run(ask), "InvalidArgumentException")  # type: ignore[misc]
    refused(lambda: box.run("~box.files.read('x', user='nobody-here')"), "AuthenticationException")


def test_metadata(box: Sdk) -> None:  # noqa: F811
    box.run("made = ~box.files.write('noted', 'x', metadata={'Who': 'me', 'n': '1'})")
    assert box.value("made.metadata") == {"who": "me", "n": "1"}
    assert box.value("(~box.files.get_info('noted')).metadata") == {"who": "me", "n": "1"}
    assert box.value("[e.metadata for e in ~box.files.list('.') if e.name == 'noted']") == [
        {"who": "me", "n": "1"}
    ]
    assert box.value("(~box.files.rename('noted', 'noted2')).metadata") == {"who": "me", "n": "1"}
    box.run("~box.files.write('noted2', 'y')")
    assert box.value("(~box.files.get_info('noted2')).metadata") is None
    note = "kept by path in a file of the sandbox, not in extended attributes: commands do not see or move it"
    box.records("Sandbox.files.write(metadata)", outcome="differs", note=note)


def test_signed_urls(box: Sdk) -> None:  # noqa: F811
    box.run("~box.files.write('signed', 'content')")
    with httpx.Client(trust_env=False) as http:
        url = box.value("box.download_url('signed')")
        assert http.get(url).text == "content"
        assert http.get(url.replace("path=signed", "path=other")).status_code == 401
        assert http.post(url, files={"file": b"x"}).status_code == 401
        up = box.value("box.upload_url('sent.txt', use_signature_expiration=60)")
        assert http.post(up, files={"file": ("x", b"sent")}).status_code == 200
        assert box.value("~box.files.read('sent.txt')") == "sent"
        form = box.value("box.upload_url('')")
        assert (
            http.post(form, files={"file": ("/tmp/by-form", b"1")}).json()[0]["path"]
            == "/tmp/by-form"
        )
        old = box.value("box.download_url('signed', use_signature_expiration=-5)")
        late = http.get(old)
        assert late.status_code == 401
        assert (late.json()["code"], late.json()["message"]) == (
            401,
            "signature is already expired",
        )
        bare = http.get(url.partition("&signature")[0])
        assert bare.status_code == 401 and bare.json()["code"] == 401
        users = box.value(
            "box.download_url('/etc/hostname', user='root', use_signature_expiration=60)"
        )
        assert http.get(users).status_code == 200
        assert http.get(users.replace("username=root", "username=user")).status_code == 401
    box.records("Sandbox.download_url", "Sandbox.upload_url")
