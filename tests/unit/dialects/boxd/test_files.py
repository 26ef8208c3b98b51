from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from roost.dialects.boxd import files
from roost.dialects.boxd.wire import boxd_pb2 as pb

from .conftest import Box

S = grpc.StatusCode


async def test_whole(box: Box, vm: str, tmp_path: Path) -> None:
    path = str(tmp_path / "below" / "file")
    asked = pb.UploadFileRequest(vm_id="one", path=path, data=b"\0data")
    assert (await box("UploadFile", asked, pb.UploadFileResponse)).bytes_written == 5
    got = await box("DownloadFile", pb.PathRequest(vm_id=vm, path=path), pb.DownloadFileResponse)
    assert got.data == b"\0data"


async def test_in_pieces(box: Box, vm: str, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    data = bytes(range(256)) * 12_000
    pieces = [data[at : at + 2**20] for at in range(0, len(data), 2**20)]
    first = pb.UploadFileChunk(vm_id=vm, path=path, total_size=len(data), data=pieces[0])
    said = await box.upload(first, *(pb.UploadFileChunk(data=each) for each in pieces[1:]))
    assert said.bytes_written == len(data)
    got = [each async for each in box.download(pb.PathRequest(vm_id=vm, path=path))]
    assert got[0].total_size == len(data)
    assert b"".join(each.data for each in got) == data


async def test_an_empty_one(box: Box, vm: str, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    await box.upload(pb.UploadFileChunk(vm_id=vm, path=path))
    got = [each async for each in box.download(pb.PathRequest(vm_id=vm, path=path))]
    assert [(each.total_size, each.data) for each in got] == [(0, b"")]


@pytest.mark.parametrize("total", [3, 9])
async def test_more_or_less_than_announced_leaves_what_was(
    box: Box, vm: str, tmp_path: Path, total: int
) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    first = pb.UploadFileChunk(vm_id=vm, path=str(path), total_size=total, data=b"12")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.upload(first, pb.UploadFileChunk(data=b"3456"))
    assert caught.value.code() is S.INVALID_ARGUMENT
    assert path.read_text() == "before"


async def test_directories(box: Box, vm: str, tmp_path: Path) -> None:
    async def two(name: str, old: Path, new: Path) -> None:
        await box(name, pb.TwoPathsRequest(vm_id=vm, old_path=str(old), new_path=str(new)))

    made = tmp_path / "made"
    await box("Mkdir", pb.PathRequest(vm_id=vm, path=str(made)))
    (made / "file").write_text("1234")
    (made / "file").chmod(0o640)
    listed = await box("ListDir", pb.PathRequest(vm_id=vm, path=str(tmp_path)), pb.ListDirResponse)
    entry = next(each for each in listed.entries if each.name == "made")
    assert entry.is_dir
    assert entry.size_bytes == 0
    assert entry.permissions.startswith("drwx")
    inner = await box("ListDir", pb.PathRequest(vm_id=vm, path=str(made)), pb.ListDirResponse)
    (file,) = inner.entries
    assert (file.name, file.is_dir, file.size_bytes) == ("file", False, 4)
    assert file.permissions == "-rw-r-----"
    assert not inner.truncated
    await two("CopyPath", made, tmp_path / "copy")
    assert (tmp_path / "copy" / "file").read_text() == "1234"
    await two("RenamePath", made, tmp_path / "moved")
    assert not made.exists()
    await box("DeletePath", pb.PathRequest(vm_id=vm, path=str(tmp_path / "moved")))
    assert not (tmp_path / "moved").exists()


async def test_a_long_listing_is_cut(
    box: Box, vm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ENTRIES", 2)
    monkeypatch.setattr(files, "_PAGE", 2)
    for name in "abc":
        (tmp_path / name).touch()
    listed = await box("ListDir", pb.PathRequest(vm_id=vm, path=str(tmp_path)), pb.ListDirResponse)
    assert len(listed.entries) == 2
    assert listed.truncated


@pytest.mark.parametrize(
    ("call", "path", "code"),
    [
        ("DownloadFile", "/no/such/file", S.NOT_FOUND),
        ("DownloadFile", "relative", S.INVALID_ARGUMENT),
        ("ListDir", "/no/such", S.NOT_FOUND),
        ("Mkdir", "/no/such/parent", S.NOT_FOUND),
        ("DeletePath", "/no/such/file", S.NOT_FOUND),
        ("Mkdir", "/tmp", S.ALREADY_EXISTS),
    ],
)
async def test_what_is_not_there(
    box: Box, vm: str, call: str, path: str, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box(call, pb.PathRequest(vm_id=vm, path=path))
    assert caught.value.code() is code
