"""Names as strangers choose them; ids as nobody guesses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost import ids
from tests.attack.record import case
from tests.unit.api.kit import serving
from tests.unit.engine.kit import daemon

NAMES = ["../x", "-rf", "a;b", "a b", "$(id)", "a\nb", "a\0b", "\x1b[31m", "x" * 65536, "a/b", "."]


@case(43)
def test_ids_have_130_random_bits() -> None:
    made = {ids.new() for _ in range(4096)}
    assert len(made) == 4096
    assert all(ids.formed(each) for each in made)
    # 26 letters of 32, and none that is more likely at its place than chance makes it.
    for place in range(26):
        counts = [sum(each[place] == letter for each in made) for letter in set("".join(made))]
        assert len(counts) == 32 and max(counts) < 4096 / 32 * 2, (place, counts)


@case(44)
@pytest.mark.parametrize("name", NAMES, ids=[repr(each)[:12] for each in NAMES])
async def test_odd_names_are_refused_or_kept_as_they_are(tmp_path: Path, name: str) -> None:
    """422 with a code, never a 5xx; and no file of that name anywhere."""
    async with daemon(tmp_path) as engine, serving(tmp_path, None, engine=engine) as s:
        small = {"memory_mib": 64, "vcpu": 0.1}
        http = s.http
        answers = [
            await http.post("/v1/machines", json={**small, "name": name}),
            await http.post("/v1/machines", json={**small, "template": name}),
            await http.post("/v1/machines", json={**small, "driver": name}),
            await http.post("/v1/machines", json={**small, "snapshot": name}),
            await http.post("/v1/volumes", json={"name": name}),
            await http.post("/v1/tenants", json={"name": name}),
        ]
        for answer in answers:
            assert answer.status_code in (403, 404, 413, 422), (answer.request.url, answer.text)
            assert answer.json()["error_code"]
        found = [path for path in tmp_path.rglob("*") if len(name) < 200 and path.name == name]
        assert found == []
