from __future__ import annotations

from pathlib import Path

import pytest

from roost.errors import RoostError
from roost.templates import sources


def test_the_hosts_mirrors_are_found(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb [signed-by=/x.gpg] http://m.example/debian/ bookworm main\n"
        "deb-src http://src.example/debian bookworm main\n"
    )
    (tmp_path / "sources.list.d/s.sources").write_text(
        "Types: deb\nURIs: http://sec.example/debian-security\nSuites: bookworm-security\n"
        "Components: main\n\n# a comment\nTypes: deb-src\nURIs: http://no.example\nSuites: bookworm\n\n"
        "Types: deb\nEnabled: no\nURIs: http://no.example\nSuites: bookworm-updates\n"
    )
    lines = sources.lines("bookworm", ["main"], sources.host_sources(tmp_path))
    assert lines == [
        "deb http://m.example/debian bookworm main",
        "deb http://m.example/debian bookworm-updates main",
        "deb http://sec.example/debian-security bookworm-security main",
    ]


def test_a_host_without_a_mirror_of_the_suite_is_told() -> None:
    with pytest.raises(RoostError, match="knows no mirror of bookworm") as caught:
        sources.lines("bookworm", ["main"], [])
    assert caught.value.code == "HOST_UNSUPPORTED"


def test_only_what_a_mirror_needs_is_copied() -> None:
    dump = 'APT::Architecture "amd64";\nAcquire::Check-Valid-Until "false";\nAcquire::http::Proxy "http://p:1";\n'
    assert sources.copied_options(dump) == [
        'Acquire::Check-Valid-Until "false";',
        'Acquire::http::Proxy "http://p:1";',
    ]
