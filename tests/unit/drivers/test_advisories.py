"""Which known ways out a version has: by its makers' numbers, by its package's changelog, by revisions known to us."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from types import ModuleType

import pytest

from roost.drivers import apparmor, gvisor, runc
from roost.host import advisories, idmaps, packages
from roost.host.advisories import ADVISORIES, Advisory, Finding, State, judge
from roost.host.packages import Installed
from roost.host.run import Done

LEAKED = next(each for each in ADVISORIES if each.id == "CVE-2024-21626")
MASKED = next(each for each in ADVISORIES if each.id == "CVE-2025-31133")
PIPE = next(each for each in ADVISORIES if each.id == "CVE-2022-0847")


def _order(revision: str, other: str) -> bool:
    """dpkg's, as far as these need it: later letters and digits are later."""
    return revision >= other


def _package(revision: str, *mended: str) -> Installed:
    return Installed(packages.upstream(revision), revision, frozenset(mended), patched=True)


@pytest.mark.parametrize(
    ("has", "state"),
    [
        (Installed("1.1.11"), State.AFFECTED),
        (Installed("1.1.12"), State.MENDED),
        (Installed("1.4.0"), State.MENDED),
        (_package("1.1.5+ds1-1"), State.AFFECTED),
        (_package("1.1.5+ds1-1+deb12u1"), State.MENDED),  # by its revision
        (_package("1.1.4-0ubuntu1~22.04.4", "CVE-2024-21626"), State.MENDED),  # by its changelog
        (
            Installed("1.1.4", "1.1.4-0ubuntu1", None, patched=True),
            State.UNKNOWN,
        ),  # it has no changelog
        (Installed(""), State.UNKNOWN),
    ],
)
def test_a_version_has_it_or_not_or_it_cannot_be_told(has: Installed, state: State) -> None:
    assert judge(LEAKED, has, _order) is state


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("1.1.99", State.AFFECTED),
        ("1.2.7", State.AFFECTED),
        ("1.2.8", State.MENDED),
        ("1.3.2", State.AFFECTED),
        ("1.3.3", State.MENDED),
        ("1.4.0", State.MENDED),
        ("2.0", State.MENDED),
    ],
)
def test_each_series_is_mended_by_its_own_version(version: str, state: State) -> None:
    assert judge(MASKED, Installed(version), _order) is state


@pytest.mark.parametrize(
    ("id_", "version", "state"),
    [
        ("CVE-2025-31133", "1.4.0-rc.1", State.AFFECTED),
        ("CVE-2025-31133", "1.4.0~rc1", State.AFFECTED),
        ("CVE-2025-31133", "1.5.0-rc.1", State.MENDED),
        ("CVE-2024-21626", "1.1.12-beta.1", State.AFFECTED),
        ("CVE-2024-45310", "1.1.13", State.AFFECTED),
        ("CVE-2024-45310", "1.1.14", State.MENDED),
        ("CVE-2024-45310", "1.2.0-rc2", State.AFFECTED),
        ("CVE-2024-45310", "1.2.0-beta.5", State.AFFECTED),
        ("CVE-2024-45310", "1.2.0-rc.3", State.MENDED),
        ("CVE-2024-45310", "1.2.0-rc.10", State.MENDED),
        ("CVE-2024-45310", "1.2.0", State.MENDED),
        ("CVE-2022-0847", "5.17.0-rc5", State.AFFECTED),
        ("CVE-2022-0847", "5.17.0", State.MENDED),
    ],
)
def test_a_pre_release_is_below_its_release(id_: str, version: str, state: State) -> None:
    it = next(each for each in ADVISORIES if each.id == id_)
    assert judge(it, Installed(version), _order) is state


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("runc version 1.4.0-rc.1\ncommit: v1.4.0-rc.1", "1.4.0-rc.1"),
        ("runc version 1.0.0~rc93+ds1", "1.0.0~rc93"),
        ("runc version 1.1.0+dev", "1.1.0"),
        ("runc version 1.1.12-0ubuntu2", "1.1.12"),
        ("QEMU emulator version 8.2.0-rc1 (v8.2.0-rc1)", "8.2.0-rc1"),
        ("runsc version release-20240729.0-4-gabc", "20240729.0"),
    ],
)
def test_a_program_says_of_what_it_is_a_pre_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, version: str
) -> None:
    _host(monkeypatch, tmp_path, "odd", "1-1", says)
    assert packages.told("it") == Installed(version)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("", State.AFFECTED),
        ("# Older entries have been removed from this changelog.\n", State.UNKNOWN),
        ("# For older changelog entries, run 'apt-get changelog runc'\n", State.UNKNOWN),
    ],
)
def test_a_changelog_without_its_old_end_rules_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, state: State
) -> None:
    monkeypatch.setattr(packages, "_DOC", tmp_path)
    (tmp_path / "runc").mkdir()
    log = f"runc (1.1.7-3) unstable\n\n  * CVE-2025-31133\n\n{end}"
    (tmp_path / "runc" / "changelog.Debian.gz").write_bytes(gzip.compress(log.encode()))
    mended, trimmed = packages._changelog("runc")
    has = Installed("1.1.7", "1.1.7-3", mended, trimmed, patched=True)
    assert judge(LEAKED, has) is state
    assert judge(MASKED, has) is State.MENDED


def test_what_leads_nowhere_here_is_a_warning_and_the_rest_refuses() -> None:
    assert Finding(LEAKED, State.AFFECTED, "1.1.11").refuses
    assert not Finding(LEAKED, State.UNKNOWN, "1.1.4-0ubuntu1").refuses
    assert "cannot be told" in Finding(LEAKED, State.UNKNOWN, "1").text
    assert "not reached" in Finding(MASKED, State.UNKNOWN, "1").text
    warned = Finding(MASKED, State.AFFECTED, "1.1.12")
    assert not warned.refuses
    assert "not reached" in warned.text


def test_a_driver_with_a_way_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda _: None)
    monkeypatch.setattr(packages, "told", lambda _: Installed("1.1.11"))
    monkeypatch.setattr(packages, "kernel", lambda: Installed("7.2"))
    said = advisories.refusal("runc")
    assert said is not None
    assert "CVE-2024-21626" in said
    monkeypatch.setattr(packages, "told", lambda _: None)
    assert advisories.refusal("runc") is None


def _host(
    monkeypatch: pytest.MonkeyPatch, directory: Path, package: str, revision: str, says: str
) -> Path:
    """Where every program is of that package. Returns the package's documentation."""

    def run(argv: list[str], **_: object) -> Done:
        if argv[0] != "dpkg-query":
            return Done(0, says, "")
        return Done(0, f"{package}: /usr/bin/it\n" if "-S" in argv else revision, "")

    monkeypatch.setattr(packages, "_STATUS", directory / "status")
    (directory / "status").write_text("")
    monkeypatch.setattr(packages, "_DOC", directory)
    monkeypatch.setattr(packages.shutil, "which", lambda _: str(directory / "status"))
    monkeypatch.setattr(packages.run, "run", run)
    monkeypatch.setattr(packages, "kernel", lambda: Installed("7.2"))
    (directory / package).mkdir()
    return directory / package


@pytest.mark.parametrize(
    ("driver", "package", "revision", "says", "refused"),
    [
        ("runc", "containerd.io", "1.6.27-1", "runc version 1.1.11\ncommit: v1.1.11", True),
        ("runc", "containerd.io", "1.6.28-1", "runc version 1.1.12\ncommit: v1.1.12", False),
        ("runc", "containerd.io", "1.7.29-1~debian.12~bookworm", "runc version 1.3.3", False),
        ("runc", "containerd.io", "2.0.0-1", "runc version 1.1.11", True),
        ("runc", "runc", "1.1.5+ds1-1+deb12u1", "runc version 1.1.5+ds1", False),
        ("runc", "runc", "1.1.5+ds1-1+deb12u1", "runc version 1.1.9", True),  # copied over it
        ("runc", "runc-stable", "1.1.12-0ubuntu2", "runc version 1.1.12-0ubuntu2", False),
        ("qemu", "qemu-system-x86", "1:10.0.2+ds-2", "QEMU emulator version 10.0.2", False),
        ("qemu", "emulators", "12.1-1", "QEMU emulator version 8.0.4", True),
    ],
)
def test_what_another_program_s_package_has_is_as_old_as_it_says_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    package: str,
    revision: str,
    says: str,
    refused: bool,
) -> None:
    _host(monkeypatch, tmp_path, package, revision, says)
    monkeypatch.setattr(packages, "at_least", _order)
    assert (advisories.refusal(driver) is not None) == refused


def test_a_runsc_of_another_package_is_judged_by_its_own_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _host(monkeypatch, tmp_path, "tools", "20990101.0-1", "runsc version release-20240729.0")
    found = {each.advisory.id: each for each in advisories.look("gvisor")}
    assert found["CVE-2025-2713"].state is State.AFFECTED
    assert found["CVE-2025-2713"].version == "20240729.0"


def test_a_changelog_tells_of_what_else_its_package_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "runc version 1.1.11"
    doc = _host(monkeypatch, tmp_path, "containerd.io", "1.6.27-2", says)
    assert advisories.refusal("runc") is not None
    log = "containerd.io (1.6.27-2) release\n\n  * runc: CVE-2024-21626\n"
    (doc / "changelog.Debian.gz").write_bytes(gzip.compress(log.encode()))
    (tmp_path / "status").write_text("renewed")
    os.utime(tmp_path / "status", ns=(1, 1))
    assert advisories.refusal("runc") is None


def test_one_that_does_not_say_what_it_is_is_not_taken_for_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _host(monkeypatch, tmp_path, "containerd.io", "9.0-1", "no such option")
    found = advisories.look("runc")
    assert {each.state for each in found} == {State.UNKNOWN}
    assert LEAKED.id in {each.advisory.id for each in found}
    assert "unknown version" in found[0].text


def test_what_was_found_out_is_looked_at_again_after_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, program, revision = tmp_path / "status", tmp_path / "odd-runc", ["1.1.11-1"]
    asked: list[str] = []

    def run(argv: list[str], **_: object) -> Done:
        asked.append(argv[0])
        return Done(0, "odd-runc: /usr/bin/odd-runc\n" if "-S" in argv else revision[0], "")

    monkeypatch.setattr(packages, "_STATUS", status)
    monkeypatch.setattr(packages.shutil, "which", lambda _: str(program))
    monkeypatch.setattr(packages.run, "run", run)
    for path in (status, program):
        path.write_text("")
    for _ in range(2):
        assert packages.installed("odd-runc") == Installed("1.1.11", "1.1.11-1", patched=True)
    assert len(asked) == 2
    revision[0] = "1.1.12-1"
    (tmp_path / "new").write_text("")
    (tmp_path / "new").rename(status)
    assert packages.installed("odd-runc") == Installed("1.1.12", "1.1.12-1", patched=True)
    revision[0] = "odd-runc version 1.2"  # not from a package
    said = packages.told("odd-runc")
    assert said == packages.told("odd-runc") == Installed("1.2")
    revision[0] = "odd-runc version 1.3"
    os.utime(program, ns=(1, 1))
    assert packages.told("odd-runc") == Installed("1.3")
    program.unlink()
    assert packages.state("odd-runc")


def test_what_could_not_be_asked_in_time_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a busy host: else a package that has it mended would be refused until it is renewed."""
    revision = "1.1.5+ds1-1+deb12u1"
    _host(monkeypatch, tmp_path, "slow", revision, "slow version 1.1.5")
    answers = packages.run.run

    def late(argv: list[str], **_: object) -> Done:
        raise TimeoutError(argv[0])

    monkeypatch.setattr(packages.run, "run", late)
    assert packages.found("slow") is None
    monkeypatch.setattr(packages.run, "run", answers)
    known = packages.found("slow")
    assert known is not None and known.revision == revision


@pytest.mark.parametrize(("driver", "program"), [(runc, "runc"), (gvisor, "runsc")])
def test_a_driver_that_was_not_available_is_probed_anew(
    monkeypatch: pytest.MonkeyPatch, driver: ModuleType, program: str
) -> None:
    """As it may be with no package renewed; one that is available is remembered."""
    why: list[str | None] = ["it is refused", None]
    monkeypatch.setattr(packages, "state", lambda _: ((id(why), 0),))
    monkeypatch.setattr(driver.shutil, "which", lambda _: f"/usr/bin/{program}")
    monkeypatch.setattr(driver.run, "run", lambda *_, **__: Done(0, f"{program} version 1", ""))
    monkeypatch.setattr(idmaps, "why_not", lambda: None)
    monkeypatch.setattr(apparmor, "why_not", lambda: None)
    monkeypatch.setattr(gvisor, "_honours_setuid", lambda: True)
    monkeypatch.setattr(driver.advisories, "refusal", lambda _: why.pop(0))
    assert driver._probed().reason == "it is refused"
    assert driver._probed().available
    assert driver._probed().available
    driver._probe.cache_clear()


@pytest.mark.parametrize(
    ("revision", "version"),
    [
        ("1:10.0.2+ds-2+deb13u1~bpo12+1", "10.0.2"),
        ("0.0~20240729.0-4~bpo12+2", "20240729.0"),
        ("1.1.5+ds1-1+deb12u1", "1.1.5"),
        ("6.1.140-1", "6.1.140"),
        ("6.1.140-1~bpo11+1", "6.1.140"),
        ("10.0.2~dfsg-1", "10.0.2"),
        ("1.4.0~rc1+ds1-1", "1.4.0~rc1"),
        ("6.1~rc3-1~exp1", "6.1~rc3"),
    ],
)
def test_what_a_revision_is_a_revision_of(revision: str, version: str) -> None:
    assert packages.upstream(revision) == version


def test_kernels_tell_what_they_are_or_that_they_do_not() -> None:
    debian = packages.kernel("6.1.0-37-amd64", "#1 SMP Debian 6.1.140-1 (2025-05-22)")
    assert debian.version == "6.1.140"
    assert judge(PIPE, debian, _order) is State.MENDED
    ubuntu = packages.kernel("5.15.0-60-generic", "#66-Ubuntu SMP")
    assert judge(PIPE, ubuntu, _order) is State.UNKNOWN
    for release, state in (
        ("5.15.24", State.AFFECTED),
        ("5.17.0-rc5-custom", State.AFFECTED),
        ("5.17.0-0.rc5.102.fc36.x86_64", State.UNKNOWN),
        ("5.17.0-preempt", State.MENDED),
    ):
        assert judge(PIPE, packages.kernel(release, "#1 SMP"), _order) is state
    early = packages.kernel("5.17.0-trunk-amd64", "#1 SMP PREEMPT Debian 5.17~rc5-1~exp1 (2022)")
    assert judge(PIPE, early, _order) is State.AFFECTED


def test_every_line_can_be_judged_and_says_enough() -> None:
    for each in ADVISORIES:
        assert each.drivers
        assert each.fixed == tuple(sorted(each.fixed, key=packages.numbers))
        assert each.id.startswith("CVE-")
        assert isinstance(judge(each, Installed("1.0"), _order), State)
        assert judge(each, Installed(each.fixed[-1]), _order) is State.MENDED
    assert len({each.id for each in ADVISORIES}) == len(ADVISORIES)
    assert isinstance(ADVISORIES[0], Advisory)
