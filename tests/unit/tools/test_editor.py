"""Files looked at and changed, on a real agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost import AsyncMachine
from roost.errors import NotFoundError
from roost.tools._async._editor import AsyncEditor
from roost.tools._errors import ToolFailure


async def test_made_changed_and_taken_back(machine: AsyncMachine, tmp_path: Path) -> None:
    editor, file = AsyncEditor(machine), tmp_path / "new/a.txt"
    path = str(file)
    assert await editor.create(path, "one\ntwo\nthree\n") == f"Made {path}."
    assert await editor.view(path) == "     1\tone\n     2\ttwo\n     3\tthree"
    assert await editor.view(path, (2, None)) == "     2\ttwo\n     3\tthree"
    assert await editor.view(path, (1, 2)) == "     1\tone\n     2\ttwo"
    file.chmod(0o755)
    shown, count = await editor.replace(path, "two\n", "2\n2b\n")
    assert (count, "     3\t2b" in shown) == (1, True)
    assert file.stat().st_mode & 0o777 == 0o755
    await editor.insert(path, 0, "zero")
    assert file.read_text() == "zero\none\n2\n2b\nthree\n"
    assert await editor.create(path, "all new") == f"Replaced {path}."
    for before in ("zero\none\n2\n2b\nthree\n", "one\n2\n2b\nthree\n", "one\ntwo\nthree\n"):
        await editor.undo(path)
        assert file.read_text() == before
    assert await editor.undo(path) == f"{path} is gone again."
    assert not file.exists()
    with pytest.raises(ToolFailure, match="No change"):
        await editor.undo(path)


async def test_what_is_no_text_stays_as_it_is(machine: AsyncMachine, tmp_path: Path) -> None:
    editor = AsyncEditor(machine)
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "nul").write_bytes(b"a\0b\n")
    (tmp_path / "big").write_bytes(b"x\n" * (3 << 20))
    assert await editor.view(str(tmp_path / "latin")) == "     1\tcaf\ufffd"
    for name, why in (("latin", "not UTF-8"), ("nul", "NUL"), ("big", "above 4 MiB")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ToolFailure, match=why):
            await editor.replace(str(tmp_path / name), "a", "b")
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(ToolFailure, match="NUL"):
        await editor.view(str(tmp_path / "nul"))
    with pytest.raises(NotFoundError):
        await editor.view(str(tmp_path / "none"))
    with pytest.raises(NotFoundError):
        await editor.replace(str(tmp_path / "none"), "a", "b")


async def test_much_is_cut(machine: AsyncMachine, tmp_path: Path) -> None:
    editor = AsyncEditor(machine, limit=1000)
    (tmp_path / "long").write_text("".join(f"line {n}\n" for n in range(1, 200_001)))
    shown = await editor.view(str(tmp_path / "long"))
    assert len(shown) < 3000
    assert "[cut here: the next line is " in shown
    assert (
        await editor.view(str(tmp_path / "long"), (199_999, None))
        == "199999\tline 199999\n200000\tline 200000"
    )
    with pytest.raises(ToolFailure, match="the file has 200000"):
        await editor.view(str(tmp_path / "long"), (200_001, None))
    (tmp_path / "empty").touch()
    assert await editor.view(str(tmp_path / "empty")) == "[the file is empty]"


async def test_directories(machine: AsyncMachine, tmp_path: Path) -> None:
    tmp_path = tmp_path / "tree"
    for name in ("a/b/c", ".hidden", "d"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/one", "a/.two", "three"):
        (tmp_path / name).touch()
    shown = (await AsyncEditor(machine).view(str(tmp_path))).splitlines()
    assert shown[0] == str(tmp_path)
    assert sorted(each.removeprefix(f"{tmp_path}/") for each in shown[1:]) == [
        "a/",
        "a/b/",
        "a/one",
        "d/",
        "three",
    ]
    for n in range(600):
        (tmp_path / f"d/{n}").touch()
    shown = (await AsyncEditor(machine).view(str(tmp_path))).splitlines()
    assert len(shown) < 510
    assert shown[-1] == "[only the first 500 are shown]"
    with pytest.raises(ToolFailure, match="no lines"):
        await AsyncEditor(machine).view(str(tmp_path), (1, 2))
