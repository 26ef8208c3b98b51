"""Patches: as ``diff -u`` makes them, and bounded."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from roost.client._diff import Diff, patchable, unified

ends = st.text("xy\n", max_size=10)
text = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12).map("\n".join)


@settings(max_examples=200)
@given(head=ends, one=text, other=text, tail=ends)
@example(head="", one="a\na\na\na\nb", other="b\na\na\na\nb", tail="")
def test_a_patch_makes_the_one_of_the_other(head: str, one: str, other: str, tail: str) -> None:
    before, after = head * 3 + one + tail * 3, head * 3 + other + tail * 3
    patch = unified("/f", before.encode(), after.encode())
    if not patch:
        assert before == after
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "f").write_text(before)
        (directory / "patch").write_text(patch)
        done = subprocess.run(
            ["git", "apply", "-p1", "patch"], cwd=directory, capture_output=True, check=False
        )
        assert done.returncode == 0, (patch, done.stderr)
        assert (directory / "f").read_text() == after


def test_what_is_no_text_and_what_is_too_much_are_said_to_differ() -> None:
    assert unified("/b", b"\0", b"a") == "Binary files a/b and b/b differ\n"
    assert unified("/b", b"\xff", None) == "Binary files a/b and /dev/null differ\n"
    began = time.monotonic()
    many = b"".join(b"%d\n" % n for n in range(20_000))
    assert "too many lines" in unified("/b", many, many[::-1])
    assert unified("/b", many, many + b"x\n").endswith("+x\n")
    hostile = b"a\nb\n" * 1400, b"b\nb\na\n" * 900
    unified("/b", *hostile)
    assert time.monotonic() - began < 20


def test_a_new_file_comes_from_nothing(tmp_path: Path) -> None:
    assert unified("/d/f", None, b"x\n") == "--- /dev/null\n+++ b/d/f\n@@ -0,0 +1 @@\n+x\n"


def test_a_diff_reads_as_a_list() -> None:
    side = {"kind": "file", "size": 3, "mode": "0644", "uid": 0, "gid": 0}
    side["mtime"] = "2026-01-02T03:04:05.678Z"
    items = [
        {"path": "/a", "change": "added", "before": None, "after": side, "unsure": False},
        {"path": "/m", "change": "mode", "before": side, "after": side, "unsure": False},
        {"path": "/l\ufffd", "path_b64": "L2z/", "change": "removed", "before": side,
         "after": None, "unsure": False},
    ]  # fmt: skip
    counts = {"added": 1, "removed": 1, "changed": 0, "type": 0, "mode": 1}
    wire = {"machine_id": "a", "other": "b", "items": items, "counts": counts, "compared": 9}
    found = Diff.from_json({**wire, "truncated": None})
    assert (found.added, found.removed, found.changed) == (["/a"], ["/l\ufffd"], ["/m"])
    assert len(found) == 3 and [d.sign for d in found] == ["+", "m", "-"]
    assert found.summary() == "+1 -1 m1" and found.items[2].path_bytes == b"/l\xff"
    assert [patchable(d) for d in found] == [True, False, True]
    assert [d.size for d in found] == [3, 0, -3]
    assert not Diff.from_json({**wire, "items": [], "counts": {}, "truncated": None})
