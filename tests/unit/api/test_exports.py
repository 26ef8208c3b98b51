"""Templates and snapshots as one file, over HTTP."""

from __future__ import annotations

from roost.services.keys import DEFAULT_TENANT
from roost.services.models import Role
from tests.unit.api.kit import TENANT, Served


async def snapshot(bare: Served, name: str | None = None) -> str:
    machine = bare.machine()
    path = f"/v1/machines/{machine}/snapshots"
    answer = await bare.http.post(path, json={"name": name} if name else None)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["snapshot_id"])


async def test_what_goes_out_comes_in(bare: Served) -> None:
    answer = await bare.http.get("/v1/templates/base/export")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.content == b"template base"
    made = await snapshot(bare)
    answer = await bare.http.get(f"/v1/snapshots/{made}/export", params={"memory": "true"})
    assert answer.content == f"snapshot {made} True".encode()
    answer = await bare.http.post(
        "/v1/snapshots/import", params={"name": "again"}, content=answer.content
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["snapshot_id"] == made
    name, trusted, key = bare.transfers.asked[-1]
    assert (name, trusted) == ("again", False)
    assert key is not None


async def test_what_fails_before_it_begins_is_an_error(bare: Served) -> None:
    for path in ("/v1/templates/none/export", "/v1/snapshots/none/export"):
        answer = await bare.http.get(path)
        assert answer.status_code == 404, answer.text
        assert answer.json()["error_code"] in ("TEMPLATE_NOT_FOUND", "SNAPSHOT_NOT_FOUND")
    answer = await bare.http.post("/v1/snapshots/import", content=b"nothing")
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "INVALID_BODY"


async def test_who_may_be_trusted(bare: Served) -> None:
    """A tenant may bring a file; that the host mounts its disk is an admin's to say."""
    content = f"snapshot {await snapshot(bare)} False".encode()
    for tenant, role, may in ((TENANT, Role.TENANT, False), (DEFAULT_TENANT, Role.ADMIN, True)):
        key = await bare.add_key(tenant, role)
        answer = await bare.http.post(
            "/v1/snapshots/import",
            params={"trusted": "true"},
            content=content,
            headers={"authorization": f"Bearer {key}"},
        )
        assert (answer.status_code == 403) is not may, answer.text
        assert [trusted for _, trusted, _ in bare.transfers.asked] == [True] * may
