"""``sandbox.files.watch_dir``: asked for by the blocking client, told to the other."""

from __future__ import annotations

from .boxes import box, refused, until  # noqa: F401  (the fixture)
from .conftest import Sdk


def watched(box: Sdk, path: str, **more: object) -> None:  # noqa: F811
    box.run("events = []")
    if box.awaited:
        box.run(
            "handle = ~box.files.watch_dir(PATH, on_event=events.append, **MORE)",
            PATH=path,
            MORE=more,
        )
    else:
        box.run("handle = box.files.watch_dir(PATH, **MORE)", PATH=path, MORE=more)


def seen(box: Sdk) -> list[list[str]]:  # noqa: F811
    if box.awaited:
        box.run("~asyncio.sleep(0.01)")
    else:
        box.run("events += handle.get_new_events()")
    found: list[list[str]] = box.value("[(e.type.value, e.name) for e in events]")
    return found


def test_what_happens_in_a_directory(box: Sdk) -> None:  # noqa: F811
    box.run("~box.files.make_dir('w/sub')")
    watched(box, "w")
    box.run("~box.files.write('w/new', '1')")
    box.run(
        "~box.commands.run('echo 2 > w/by-command; mv w/new w/newer; rm w/newer; echo x > w/sub/deep')"
    )
    until(lambda: ["remove", "newer"] in seen(box))
    found = seen(box)
    for event in (
        ["create", "new"],
        ["write", "new"],
        ["create", "by-command"],
        ["write", "by-command"],
        ["rename", "new"],
    ):
        assert event in found, found
    assert not [name for _, name in found if name.startswith("sub/") or ".roost" in name]
    box.run("~handle.stop()")
    box.records("Sandbox.files.watch_dir", "WatchHandle.stop")


def test_deep_and_with_entries(box: Sdk) -> None:  # noqa: F811
    box.run("~box.files.make_dir('v/a/b')")
    watched(box, "v", recursive=True, include_entry=True)
    box.run("~box.files.write('v/a/b/f', '12345')")
    until(lambda: ["write", "a/b/f"] in seen(box))
    sizes = box.value("[e.entry.size for e in events if e.name == 'a/b/f' and e.entry]")
    assert sizes and set(sizes) == {5}
    box.run("~handle.stop()")
    box.records("Sandbox.files.watch_dir(recursive, include_entry)")


def test_over_a_pause(box: Sdk) -> None:  # noqa: F811
    """What slept with its memory is watched again when it wakes."""
    box.run("~box.files.make_dir('p')")
    if box.awaited:
        return  # its stream ends with the pause, as any connection does
    watched(box, "p")
    box.run("~box.pause()")
    box.run("~box.connect()")
    at = 0

    def told() -> bool:
        nonlocal at
        at += 1
        box.run("~box.files.write(f'p/{AT}', '')", AT=at)
        return bool(seen(box))

    until(told)
    box.run("~handle.stop()")
