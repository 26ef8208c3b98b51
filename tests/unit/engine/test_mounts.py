"""Where volumes may lie, and who may have one at the same time."""

from __future__ import annotations

import pytest

from roost.engine.mounts import MAX_MOUNTS, Mount, check_free, check_paths, check_trusted
from roost.errors import ConflictError, InvalidRequestError, UnsupportedError


@pytest.mark.parametrize(
    "paths",
    [["/data"], ["/root/.cache/pip", "/var/lib/a.b_c@d+e-f"], ["/data", "/data2"], ["/etc/app"]],
)
def test_paths_that_may_be(paths: list[str]) -> None:
    check_paths(paths)


@pytest.mark.parametrize(
    "paths",
    [
        ["data"],
        ["/"],
        ["/data/"],
        ["//data"],
        ["/a/../b"],
        ["/a/./b"],
        ["/.."],
        ["/a b"],
        ["/a:ro"],
        ["/a\n"],
        ["/ä"],
        ["/" + "x" * 120],
        ["/proc/x"],
        ["/dev"],
        ["/run/roost"],
        ["/.roost"],
        ["/lib"],  # covers the kernel's modules
        ["/data", "/data"],
        ["/data", "/data/inner"],
        [f"/v{n}" for n in range(MAX_MOUNTS + 1)],
    ],
)
def test_paths_that_may_not(paths: list[str]) -> None:
    with pytest.raises(InvalidRequestError):
        check_paths(paths)


@pytest.mark.parametrize(
    ("read_only", "others", "free"),
    [
        (False, [], True),
        (True, [], True),
        (True, [("a", True), ("b", True)], True),
        (True, [("a", False)], False),
        (False, [("a", True)], False),
        (False, [("a", False)], False),
    ],
)
def test_one_writes_or_several_read(
    read_only: bool, others: list[tuple[str, bool]], free: bool
) -> None:
    mount = Mount("v", "data", "/data", read_only)
    if free:
        check_free(mount, others)
        return
    with pytest.raises(ConflictError) as failure:
        check_free(mount, others)
    assert failure.value.code == "VOLUME_IN_USE"
    assert failure.value.details["machine_ids"] == [machine for machine, _ in others]
    assert "a" in failure.value.message


def test_blocks_of_a_guests_are_a_microvms() -> None:
    mount = Mount("v", "data", "/data", False)
    check_trusted(mount, raw_written=True, raw_disk=True)
    check_trusted(mount, raw_written=False, raw_disk=False)
    with pytest.raises(UnsupportedError, match="microvm"):
        check_trusted(mount, raw_written=True, raw_disk=False)


def test_a_column() -> None:
    mount = Mount("v", "data", "/data", True)
    assert Mount.all_from_json([mount.to_json()]) == (mount,)
    assert Mount.all_from_json(None) == ()
