from __future__ import annotations

from pathlib import Path

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


def test_a_host_of_another_distribution_gives_debians_own(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://u.example/ubuntu noble main\n")
    first, _, last = sources.lines("bookworm", ["main"], sources.host_sources(tmp_path))
    assert "ubuntu" not in first
    assert last.endswith("debian-security bookworm-security main")


def test_only_what_a_mirror_needs_is_copied() -> None:
    dump = 'APT::Architecture "amd64";\nAcquire::Check-Valid-Until "false";\nAcquire::http::Proxy "http://p:1";\n'
    assert sources.copied_options(dump) == [
        'Acquire::Check-Valid-Until "false";',
        'Acquire::http::Proxy "http://p:1";',
    ]
