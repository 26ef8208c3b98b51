"""What the doctor says of numbers of users and of known ways out."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.host import advisories, doctor, idmaps
from roost.host.advisories import ADVISORIES, Finding, State
from roost.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, run_dir=tmp_path / "run", drivers="runc")


def test_numbers_that_are_somebodys_are_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idmaps, "taken", lambda *_: [])
    said = doctor._numbers(settings)
    assert said.ok
    assert "LDAP" in said.detail, "it says whom it did not ask"
    monkeypatch.setattr(idmaps, "taken", lambda *_: ["ann's 536870999 (/etc/passwd)"])
    said = doctor._numbers(settings)
    assert not said.ok
    assert "ann's" in said.detail
    assert "ROOST_UID_BASE" in (said.remedy or "")


def test_a_way_out_is_a_failure_or_a_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_one = next(each for each in ADVISORIES if not each.here)
    led_nowhere = next(each for each in ADVISORIES if each.here)
    found: list[Finding] = []
    monkeypatch.setattr(advisories, "look", lambda _: found)
    assert doctor._escapes(settings).warning is None
    found.append(Finding(led_nowhere, State.AFFECTED, "1"))
    said = doctor._escapes(settings)
    assert said.ok
    assert led_nowhere.id in (said.warning or "")
    found.append(Finding(open_one, State.UNKNOWN, "1"))
    said = doctor._escapes(settings)
    assert said.ok
    assert "of 1 it cannot be told" in said.detail
    found.append(Finding(open_one, State.AFFECTED, "1"))
    said = doctor._escapes(settings)
    assert (said.ok, said.remedy) == (False, advisories.REMEDY)
    assert open_one.id in said.detail
    assert led_nowhere.id not in said.detail
