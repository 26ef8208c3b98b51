from __future__ import annotations

from collections.abc import Iterator

import pytest

from roost import Client

from .stub import MACHINE_ID, Stub, machine


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    stub = Stub()
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: machine())
    monkeypatch.setenv("ROOST_URL", stub.url)
    monkeypatch.setenv("ROOST_API_KEY", "roost_" + "0" * 64)
    yield stub
    stub.close()


@pytest.fixture
def client(stub: Stub) -> Iterator[Client]:
    with Client() as client:
        yield client
