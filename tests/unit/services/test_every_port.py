"""A machine that shows every port: what leads where, and who may."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.errors import RoostError
from roost.services.ports import EVERY, OWN, Ports
from tests.unit.api.kit import TENANT, Served, serving


async def shown(served: Served) -> tuple[Ports, str]:
    machine = served.machine()
    await served.ports.create(TENANT, machine, EVERY)
    return served.ports, machine


async def test_ports_without_a_row_are_shown_as_that_row_says(tmp_path: Path) -> None:
    async with serving(tmp_path, None) as served:
        ports, machine = await shown(served)
        found = ports.at(f"3000-{machine}")
        assert found is not None and (found.port, found.public) == (3000, False)
        own = await ports.create(TENANT, machine, 3000, visibility="public")
        assert ports.at(f"3000-{machine}") == own, "one of its own counts more"
        for each in OWN:
            assert ports.at(f"{each}-{machine}") is None
        assert ports.at(f"0-{machine}") is None
        every = ports.every(machine)
        assert every is not None and ports.url(every) is None
        assert ports.shows_every(f"1-{machine}") and not ports.shows_every(f"1-{'a' * 26}")
        with pytest.raises(RoostError):
            await ports.link(TENANT, machine, EVERY, 60)
        for wrong in ({"protocol": "tcp"}, {"name": "mine"}):
            with pytest.raises(RoostError, match="0 is every port"):
                await ports.create(TENANT, served.machine(), EVERY, **wrong)
        await ports.delete(TENANT, machine, EVERY)
        assert ports.at(f"4000-{machine}") is None


async def test_its_pass_opens_all_of_them_until_links_end(tmp_path: Path) -> None:
    async with serving(tmp_path, None) as served:
        ports, machine = await shown(served)
        token = ports.pass_of(machine)
        assert token is not None
        for number in (80, 3000):
            found = ports.at(f"{number}-{machine}")
            assert found is not None and ports.link_expires(found, token) is not None
        other = served.machine()
        await ports.create(TENANT, other, EVERY)
        elsewhere = ports.at(f"80-{other}")
        assert elsewhere is not None and ports.link_expires(elsewhere, token) is None
        own = await ports.create(TENANT, machine, 3000)
        assert ports.link_expires(own, token) is None, "what has a row of its own has its own links"
        await ports.end_links(TENANT, machine, EVERY)
        found = ports.at(f"80-{machine}")
        assert found is not None and ports.link_expires(found, token) is None
        assert ports.pass_of("a" * 26) is None
