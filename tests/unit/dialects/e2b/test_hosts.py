"""Which hosts and paths are E2B's, and in which order they are asked."""

from __future__ import annotations

import pytest

from roost.dialects.e2b import app
from roost.gateway.dispatch import Table, Target
from roost.services.places import is_name
from tests.unit.api.kit import Served

ID = "a" * 26


@pytest.mark.parametrize(
    ("label", "is_"),
    [
        ("api", True),
        ("sandbox", True),
        (f"49983-{ID}", True),
        (f"49999-{ID}", True),
        (f"3000-{ID}", False),
        (f"4998-{ID}", False),
        ("49983-short", False),
        ("mine", False),
    ],
)
def test_hosts_that_are_no_previews(label: str, is_: bool) -> None:
    assert app.elsewhere(label) is is_


def test_no_port_is_called_as_a_host_of_the_api() -> None:
    assert not any(is_name(each) for each in app._HOSTS)


def test_a_pattern_may_begin_with_a_port() -> None:
    table = Table([Target("own", None, paths=("",), hosts=("49983-*.box.test",))])
    assert table.find(f"49983-{ID}.box.test:443", "/x", None) is not None
    for host in (f"3000-{ID}.box.test", "49983-.box.test", "box.test", f"49983-{ID}.box.test.evil"):
        assert table.find(host, "/x", None) is None, host


def test_who_serves_what(served: Served) -> None:
    table = Table(app.targets(served.services))

    def name(host: str, path: str, prefix: str | None) -> str | None:
        found = table.find(host, path, prefix)
        return None if found is None else found.name

    here, domain = "127.0.0.1:1", served.ports.places.domain
    assert name(here, "/v2/sandboxes", "e2b") == "e2b"
    assert name(f"api.{domain}", "/sandboxes", "e2b") == "e2b"
    assert name(here, "/process.Process/Start", None) == "e2b-envd"
    assert name(here, "/files", None) == "e2b-envd"
    assert name(f"49983-{ID}.{domain}", "/metrics", None) == "e2b-envd-host"
    assert name(f"49999-{ID}.{domain}", "/execute", None) == "e2b-kernel-host"
    assert name(here, "/execute", None) == "e2b-kernel"
    assert name(here, "/volumecontent/x/file", None) == "e2b-volumes"
    assert name(here, "/e2b/files/x", None) == "e2b-files"
    for others in ("/v1/machines", "/metrics", "/healthz"):
        assert name(here, others, "roost") is None
