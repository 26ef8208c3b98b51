"""Names of images from elsewhere."""

from __future__ import annotations

import pytest

from roost.errors import InvalidRequestError
from roost.templates.oci.reference import InContext, InRegistry, parse

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("docker://r.example/a", InRegistry("r.example", "a", "latest", None)),
        (
            "docker://r.example:5000/a/b-c__d:1.2",
            InRegistry("r.example:5000", "a/b-c__d", "1.2", None),
        ),
        ("docker://localhost/a", InRegistry("localhost", "a", "latest", None)),
        (f"docker://r.example/a@{DIGEST}", InRegistry("r.example", "a", None, DIGEST)),
        (f"docker://r.example/a:t@{DIGEST}", InRegistry("r.example", "a", "t", DIGEST)),
        ("oci:images/base", InContext("images/base", True, None)),
        ("oci:./images//base:v1", InContext("images/base", True, "v1")),
        ("oci:.", InContext("", True, None)),
        ("oci-archive:base.tar:v1", InContext("base.tar", False, "v1")),
        ("docker-archive:saved.tar", InContext("saved.tar", False, None)),
    ],
)
def test_what_a_name_says(text: str, found: object) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "debian:12",
        "docker://debian",
        "docker://debian:12",
        "docker://library/debian",
        "docker://r.example/",
        "docker://r.example/A",
        "docker://r.example/a:b:c",
        "docker://r.example/a@sha256:abc",
        "docker://user@r.example/a",
        "docker://r.example/a b",
        "docker://-r.example/a",
        "docker://r.example/a --option",
        "oci:../other",
        "oci:/etc",
        "oci-archive:",
        "oci-archive:a/../../b",
        "docker-archive:a:b/c d",
        "dir:x",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(InvalidRequestError) as failure:
        parse(text)
    assert failure.value.details["field"] == "from"
