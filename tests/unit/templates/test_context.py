"""Contexts: packed by a client, read by the daemon as if hostile."""

from __future__ import annotations

import io
import re
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.errors import InvalidRequestError
from roost.templates import copying, glob, roosttoml
from roost.templates.context import Context
from roost.templates.pack import Ignore, names, pack
from roost.templates.plan import Copy


def context(tmp_path: Path, tree: Path) -> Context:
    archive = tmp_path / "context.tar"
    archive.write_bytes(b"".join(pack(tree)))
    return Context.read(archive)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, text in {
        "Dockerfile": "x",
        "src/a.py": "a",
        "src/b.txt": "b",
        "src/deep/c.py": "c",
        "build/out.o": "o",
        "node_modules/x/y.js": "y",
        "keep.log": "k",
        "other.log": "l",
        "n" * 120 + ".txt": "long",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "link").symlink_to("src")
    (root / "file-link").symlink_to("src/a.py")
    (root / "out").symlink_to("/etc")
    (root / ".dockerignore").write_text(
        "# what\nbuild\n**/node_modules\n*.log\n!keep.log\nsrc/*.txt/\n"
    )
    return root


def test_ignoring(tree: Path) -> None:
    found = names(tree)
    assert "src/a.py" in found
    assert "keep.log" in found
    for gone in ("build", "build/out.o", "node_modules/x/y.js", "other.log", "src/b.txt"):
        assert gone not in found, gone


@pytest.mark.parametrize(
    ("patterns", "name", "ignored"),
    [
        (["a"], "a/b/c", True),
        (["/a/"], "a", True),
        (["*/b"], "a/b", True),
        (["*/b"], "a/c/b", False),
        (["**/b"], "a/c/b", True),
        (["**/b"], "b", True),
        (["a/**"], "a/b", True),
        (["*", "!a"], "a", False),
        (["*", "!a/b"], "a/b", False),
        (["*", "!a", "a/b"], "a/b", True),
        (["a?c"], "abc", True),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["./a/../b"], "b", True),
        (["# a", ""], "a", False),
        (["a.b"], "aXb", False),
    ],
)
def test_ignore_patterns(patterns: list[str], name: str, ignored: bool) -> None:
    assert Ignore(patterns)(name) is ignored


def copied(found: Context, *sources: str, target: str = "/x/", unpack: bool = False) -> list[str]:
    step = Copy(sources, (), target, "", None, unpack)
    return [item.name for item in copying.gather(step, found, 3).items]


def test_selecting(tmp_path: Path, tree: Path) -> None:
    found = context(tmp_path, tree)
    assert copied(found, "src") == ["a.py", "deep", "deep/c.py"]
    assert copied(found, "src/", "keep.log") == ["a.py", "deep", "deep/c.py", "keep.log"]
    assert copied(found, "src/*.py") == ["a.py"]
    assert copied(found, "*/*.py") == ["a.py"]
    assert copied(found, "/Dockerfile") == ["Dockerfile"]
    assert "src/a.py" in copied(found, ".")
    # Links are followed where they are named, within the context.
    assert copied(found, "link") == ["a.py", "deep", "deep/c.py"]
    assert copied(found, "link/a.py") == ["a.py"]
    assert copied(found, "file-link") == ["file-link"]
    for nothing in ("out", "nope", "src/*.go", "other.log", "keep.log/x"):
        with pytest.raises(InvalidRequestError) as caught:
            copied(found, nothing)
        assert caught.value.details["line"] == 3


def test_a_near_name_is_told(tmp_path: Path, tree: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"did you mean src/a\.py"):
        copied(context(tmp_path, tree), "src/b.py")


def test_alone(tmp_path: Path, tree: Path) -> None:
    found = context(tmp_path, tree)

    def alone(source: str) -> bool:
        return copying.gather(Copy((source,), (), "/x", "", None, False), found, 1).alone

    assert alone("Dockerfile")
    assert not alone("src")


def test_the_digest_is_of_content_not_of_times(tmp_path: Path, tree: Path) -> None:
    def digest(mode: int | None = None) -> str:
        found = context(tmp_path, tree)
        step = Copy(("src",), (), "/x/", "", mode, False)
        return copying.digest(copying.gather(step, found, 1), found)

    first = digest()
    import os

    os.utime(tree / "src/a.py", (1, 1))
    (tree / "keep.log").write_text("another")
    assert digest() == first
    assert digest(0o600) != first
    (tree / "src/deep/c.py").write_text("C")
    assert digest() != first


def test_the_stream_is_what_was_packed(tmp_path: Path, tree: Path) -> None:
    found = context(tmp_path, tree)
    step = Copy((".",), (), "/x/", "", None, False)
    data = b"".join(copying.stream(copying.gather(step, found, 1).items, found, {"src"}))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {m.name: m for m in tar}
        assert tar.extractfile("src/a.py").read() == b"a"  # type: ignore[union-attr]
        assert "n" * 120 + ".txt" in members
        assert members["link"].linkname == "src"
        assert "src" not in members  # it is there already
        assert "src/deep" in members
        assert all((m.uid, m.gid) == (0, 0) for m in members.values())


def test_archives_are_known_by_content(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with tarfile.open(tree / "a.bin", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    (tree / "b.tar").write_text("no archive")
    found = context(tmp_path, tree)
    step = Copy(("a.bin", "b.tar"), (), "/x/", "", None, True)
    items = copying.gather(step, found, 1).items
    assert {item.entry.name: item.archive for item in items} == {"a.bin": True, "b.tar": False}


def tar_of(*members: tuple[str, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"not a tar at all" * 100,
        tar_of(("../x", tarfile.REGTYPE, "")),
        tar_of(("/etc/passwd", tarfile.REGTYPE, "")),
        tar_of(("a", tarfile.CHRTYPE, "")),
        tar_of(("a", tarfile.FIFOTYPE, "")),
        tar_of(("a", tarfile.LNKTYPE, "../../etc/passwd")),
        tar_of(("a", tarfile.SYMTYPE, "b"), ("a/c", tarfile.REGTYPE, "")),
        tar_of(("a", tarfile.REGTYPE, ""), ("a", tarfile.DIRTYPE, "")),
        tar_of(("x", tarfile.REGTYPE, ""))[:700],
        tar_of(("a" * 5000, tarfile.REGTYPE, "")),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(InvalidRequestError) as caught:
        Context.read(path)
    assert caught.value.code == "INVALID_BODY"


@settings(max_examples=60)
@given(at=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_damaged_archive_is_read_or_refused(tmp_path: Path, at: int, byte: int) -> None:
    data = bytearray(
        tar_of(
            ("a/b", tarfile.REGTYPE, ""),
            ("c", tarfile.SYMTYPE, "a"),
            ("d" * 150, tarfile.REGTYPE, ""),
        )
    )
    data[at % len(data)] = byte
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(data))
    code = "INVALID_BODY"
    try:
        Context.read(path)
    except InvalidRequestError as failure:
        code = failure.code
    assert code == "INVALID_BODY"


def test_other_programs_archives(tmp_path: Path, tree: Path) -> None:
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w", format=kind) as tar:
            tar.add(tree, arcname=".")
        found = Context.read(path)
        assert "n" * 120 + ".txt" in found.entries
        assert found.text("src/a.py", 10) == "a"


def test_globs_take_time_of_their_length_alone() -> None:
    assert glob.Pattern("a*b?[c-e]").matches("axxbbd")
    assert not glob.Pattern("a*").matches("b")
    assert glob.Pattern("\\*").matches("*")
    assert glob.Pattern("[!a]").matches("b")
    assert not glob.Pattern("*a" * 100).matches("a" * 99 + "b" * 150)
    hard, name = glob.Pattern("*" + "a" * 120 + "b"), "a" * 250
    begun = time.process_time()
    assert not any(hard.matches(name) for _ in range(500))
    assert time.process_time() - begun < 3


@given(
    st.lists(st.sampled_from(["*", "?", "a", "[ab]", "[!a]"]), max_size=6),
    st.text("abc", max_size=8),
)
def test_globs_are_what_they_say(parts: list[str], name: str) -> None:
    told = {"*": ".*", "?": ".", "[!a]": "[^a]"}
    said = re.fullmatch("".join(told.get(part, part) for part in parts), name)
    assert glob.Pattern("".join(parts)).matches(name) is (said is not None)


# --- what a small archive may cost -----------------------------------------------------------------


def packed(tmp_path: Path, *names: str, links: int = 0, size: int = 0) -> Context:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
        if links:
            first = tarfile.TarInfo("l")
            first.size = size
            archive.addfile(first, io.BytesIO(bytes(size)))
            for n in range(links):
                link = tarfile.TarInfo(f"l{n}")
                link.type, link.linkname = tarfile.LNKTYPE, "l"
                archive.addfile(link)
    return Context.read(path)


def test_names_are_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few KiB of archive name directories by the hundred thousand."""
    with pytest.raises(InvalidRequestError, match="directories"):
        packed(tmp_path, "/".join("a" * 300))
    deep = ["/".join([f"{n}", *["b" * 14] * 250]) for n in range(50)]
    monkeypatch.setattr("roost.templates.context.MAX_NAMES", 1 << 20)
    with pytest.raises(InvalidRequestError, match="too long in all"):
        packed(tmp_path, *deep)


def test_depth_is_no_recursion_without_end(tmp_path: Path) -> None:
    found = packed(tmp_path, "/".join("a" * 255))
    assert len(copied(found, ".")) == 255


@pytest.mark.parametrize("sources", [("./",) * 5000, ("*",) * 5000, ("n*1",) * 5000])
def test_a_context_is_not_looked_at_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: tuple[str, ...]
) -> None:
    """A Dockerfile of 1 MiB names 200,000 files half a million times."""
    found = packed(tmp_path, *(f"n{n}" for n in range(100)))
    monkeypatch.setattr("roost.templates.context.MAX_WORK", 1 << 20)
    with pytest.raises(InvalidRequestError, match="too many"):
        copied(found, *sources)


def test_a_file_is_read_once_however_many_names_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = packed(tmp_path, links=50, size=1000)
    opened: list[str] = []
    real = found.open
    monkeypatch.setattr(found, "open", lambda entry: opened.append(entry.name) or real(entry))
    copying.digest(copying.gather(Copy((".",), (), "/x/", "", None, False), found, 1), found)
    assert opened == ["l"]


def test_a_near_name_takes_no_time(tmp_path: Path) -> None:
    letters = [chr(0x4E00 + n) for n in range(200)]
    long = "/".join("".join(letters[n : n + 80]) for n in range(40))
    found = packed(tmp_path, *(f"{long}/{n}" for n in range(20)))
    begun = time.process_time()
    found.near(long[::-1])
    assert time.process_time() - begun < 2


def test_roost_toml() -> None:
    found = roosttoml.parse(
        'start = ["a"]\nwarmup = "b"\nready = {port = 80}\nbake = ["gvisor"]\n'
    ).config()
    assert found["warmup"] == ["b"]
    assert found["ready"] == {"port": 80, "timeout_s": 60.0, "interval_s": 0.5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("strat = 'x'", "did you mean 'start'"),
        ("[ready]\ncomand = 'x'", "did you mean 'command'"),
        ("[size]\nmemory = 1", "did you mean 'memory_mib'"),
        ("[env]\nA = '1'", "with ENV"),
        ("ports = [0]", "ports.0"),
        ("ports = ['80']", "ports.0"),
        ("ready = {port = 1, url = 'http://localhost:1/'}", "one of command, port and url"),
        ("ready = {url = 'http://elsewhere.example/'}", "ready.url"),
        ("bake = ['moon']", "none of"),
        ("x = ", "roost.toml"),
        pytest.param(f"ports = [{'1' * 5000}]", "roost.toml", id="a long number"),
    ],
)
def test_roost_toml_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        roosttoml.parse(text)
    assert caught.value.code == "DOCKERFILE_INVALID"
    assert says in caught.value.message
