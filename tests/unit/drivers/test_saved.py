"""What is kept of a saved memory's files, and what is found wrong with them later."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.drivers import saved
from roost.errors import ConflictError


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    for name, size in (("state", 3 << 20), ("pages", 5)):
        (tmp_path / name).write_bytes(os.urandom(size))
    return tmp_path


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    read = saved._read

    def counted(path: Path) -> tuple[saved.Identity, int]:
        reads.append(path.name)
        return read(path)

    monkeypatch.setattr(saved, "_read", counted)
    return reads


def _rewrite(path: Path) -> None:
    """With other bytes, and the time of its last write as it was."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_what_was_read_is_not_read_again_for_a_while(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = saved.Known()
    sealed = saved.seal(kept, known)
    reads = _count_reads(monkeypatch)
    saved.check(kept, sealed, known)
    assert reads == []
    saved.check(kept, sealed, saved.Known())
    assert sorted(reads) == ["pages", "state"]
    reads.clear()
    now = saved.time.monotonic()
    monkeypatch.setattr(saved.time, "monotonic", lambda: now + saved._MOMENT_S + 1)
    saved.check(kept, sealed, known)
    assert sorted(reads) == ["pages", "state"]
    saved.check(kept, sealed, known)
    assert len(reads) == 2


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_was_written_to_is_damaged(kept: Path, durable: bool) -> None:
    known = saved.Known()
    sealed = saved.seal(kept, known, durable=durable)
    saved.check(kept, sealed, known)
    _rewrite(kept / "state")
    with pytest.raises(ConflictError) as caught:
        saved.check(kept, sealed, known)
    assert caught.value.code == "SNAPSHOT_INVALID"
    assert "state is damaged" in caught.value.message


def test_one_of_another_size_or_none(kept: Path) -> None:
    known = saved.Known()
    sealed = saved.seal(kept, known)
    (kept / "state").write_bytes(b"x")
    with pytest.raises(ConflictError, match="1 bytes instead of"):
        saved.check(kept, sealed, known)
    (kept / "state").unlink()
    with pytest.raises(ConflictError, match="cannot be read"):
        saved.check(kept, sealed, known)


def test_what_is_asked_to_be_durable_is_synced(
    kept: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(saved.files, "sync", synced.append)
    monkeypatch.setattr(saved.files, "sync_dir", synced.append)
    disk = tmp_path_factory.mktemp("snapshot") / "disk"
    saved.seal(kept, saved.Known(), durable=False, beside=[disk])
    assert synced == []
    saved.seal(kept, saved.Known(), beside=[disk])
    assert sorted(synced) == sorted([kept / "state", kept / "pages", disk, kept, disk.parent])


def test_what_is_known_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "_KEPT", 3)
    known = saved.Known()
    for i in range(5):
        known.add((i,), i)
    assert [known.crc((i,)) for i in range(5)] == [None, None, 2, 3, 4]
