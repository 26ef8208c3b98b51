"""Volumes and the files in them, without a sandbox and in one."""

from __future__ import annotations

import contextlib

import pytest

from tests.conformance.foreign import Raised

from .conftest import Sdk
from .test_sandboxes import sandbox


def test_a_volume_keeps_files(sdk: Sdk) -> None:
    name = f"conf-{int(sdk.awaited)}"
    sdk.run("vol = ~Volume.create(NAME)", NAME=name)
    try:
        assert sdk.value("vol.name") == name
        assert name in sdk.value("[each.name for each in ~Volume.list()]")
        assert sdk.value("(~Volume.get_info(vol.volume_id)).name") == name
        sdk.run("~vol.write_file('/a/b.txt', 'from outside', uid=1000, gid=1000, mode=0o640)")
        assert sdk.value("~vol.read_file('/a/b.txt')") == "from outside"
        assert sdk.value("(lambda i: (i.size, i.uid, i.mode))(~vol.get_info('/a/b.txt'))") == [
            12,
            1000,
            0o640,
        ]
        sdk.run("~vol.make_dir('/deep/er', force=True)")
        assert sdk.value("sorted(each.name for each in ~vol.list('/'))")[:2] == ["a", "deep"]
        assert sdk.value("~vol.exists('/none')") is False
        sdk.run("~vol.update_metadata('/a/b.txt', mode=0o600)")
        assert sdk.value("(~vol.get_info('/a/b.txt')).mode") == 0o600
        sdk.run("~vol.remove('/deep')")
        assert sdk.value("~vol.exists('/deep')") is False
        with sandbox(sdk, "box", timeout=300, volume_mounts={"/data": name}):
            assert (
                sdk.value("(~box.commands.run('cat /data/a/b.txt', user='root')).stdout")
                == "from outside"
            )
            sdk.run("~box.commands.run('echo from inside > /data/c.txt', user='root')")
            assert sdk.value("~vol.read_file('/c.txt')") == "from inside\n"
            with pytest.raises(Raised) as found:
                sdk.run("~Sandbox.create(**OPTS, volume_mounts={'/data': NAME})", NAME=name)
            assert found.value.text.startswith("409"), "one machine at a time writes"
        assert sdk.value("~vol.read_file('/c.txt')") == "from inside\n", "it outlives its machine"
        with pytest.raises(Raised):
            sdk.run("~Volume.connect('a' * 26)")
    finally:
        with contextlib.suppress(Raised):
            assert sdk.value("~Volume.destroy(vol.volume_id)") is True
    assert sdk.value("~Volume.destroy(vol.volume_id)") is False
    sdk.records(
        "Volume.create", "Volume.connect", "Volume.list", "Volume.get_info", "Volume.destroy", "Volume.exists",
        "Volume.read_file", "Volume.write_file", "Volume.make_dir", "Volume.remove", "Volume.update_metadata",
        outcome="differs", note="10 GiB each; one sandbox at a time mounts it",
    )  # fmt: skip
