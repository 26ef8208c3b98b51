from __future__ import annotations

from tests.unit.api.kit import Served


async def test_reboot(bare: Served) -> None:
    url = f"/v1/machines/{bare.machine()}"
    before = (await bare.http.get(url)).json()
    answer = await bare.http.post(f"{url}/reboot")
    assert (answer.status_code, answer.json()["status"]["phase"]) == (200, "running")
    assert answer.headers["etag"] != f'"{before["status"]["revision"]}"'
