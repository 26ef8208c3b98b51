"""What images say of themselves, true or not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from roost.errors import InvalidRequestError
from roost.templates.oci import image
from tests.oci_images import digest

ARCH = image.architecture()
BLOB = {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": digest(b"x"),
    "size": 10,
}


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


def layer(**more: Any) -> dict[str, Any]:
    return {**BLOB, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **more}


def manifest(**more: Any) -> bytes:
    return dumps({"schemaVersion": 2, "config": BLOB, "layers": [layer()], **more})


def refused(work: Any, *args: Any, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        work(*args)


def test_an_index_gives_this_hosts_manifest() -> None:
    others = [
        {**BLOB, "digest": digest(b"other"), "platform": {"os": "linux", "architecture": "s390x"}},
        {
            **BLOB,
            "digest": digest(b"proof"),
            "platform": {"os": "unknown", "architecture": "unknown"},
        },
    ]
    ours = {**BLOB, "platform": {"os": "linux", "architecture": ARCH}}
    chosen = image.choose(dumps({"manifests": [*others, ours]}))
    assert chosen is not None
    assert chosen.digest == BLOB["digest"]
    assert image.choose(manifest()) is None
    refused(
        image.choose,
        dumps({"manifests": others}),
        match=f"nothing for linux/{ARCH}; it has: linux/s390x",
    )


def test_a_tag_says_which() -> None:
    entries = [
        {**BLOB, "digest": digest(tag), "annotations": {image.REF_NAME: tag.decode()}}
        for tag in (b"one", b"two")
    ]
    index = dumps({"manifests": entries})
    chosen = image.choose(index, "two")
    assert chosen is not None
    assert chosen.digest == digest(b"two")
    refused(image.choose, index, match="several images; say which: one, two")
    refused(image.choose, index, "three", match="no tag 'three'; it has: one, two")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"schemaVersion": "\\ud800"}', "no JSON"),
        (b" " * (image.MAX_JSON + 1), "larger than"),
        (dumps({"schemaVersion": 1}), "of a kind"),
        (manifest(mediaType="application/vnd.docker.distribution.manifest.v1+json"), "of a kind"),
        (manifest(layers=None), "names no layers"),
        (manifest(layers=[layer()] * 129), "more than 128 layers"),
        (manifest(layers=[layer(mediaType="application/vnd.oci.image.layer.v1.tar+gzip+encrypted")]), "not unpacked"),
        (manifest(layers=[layer(digest="sha512:" + "a" * 128)]), "no SHA-256 digest"),
        (manifest(layers=[layer(digest="sha256:../../../../etc/passwd")]), "no SHA-256 digest"),
        (manifest(layers=[layer(size=-1)]), "a size that cannot be"),
        (manifest(layers=[layer(size=True)]), "a size that cannot be"),
        (manifest(layers=[layer(size=1 << 60)]), "a size that cannot be"),
        (manifest(config={**BLOB, "size": image.MAX_JSON + 1}), "a size that cannot be"),
    ],
)  # fmt: skip
def test_manifests_that_are_not_believed(data: bytes, match: str) -> None:
    refused(image.manifest, data, match=match)


def test_the_config_in_a_templates_words() -> None:
    config = {
        "Env": ["A=1", "B=x=y", "no equals", "1BAD=2", "EMPTY="],
        "User": "app:staff",
        "WorkingDir": "srv",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8080": {}, "99999/tcp": {}, "x/tcp": {}},
        "Labels": {"a": "b", "n": 1},
        "Entrypoint": ["/run.sh"],
        "Cmd": ["-v"],
    }
    assert image.config(dumps({"architecture": ARCH, "os": "linux", "config": config})) == {
        "env": {"A": "1", "B": "x=y", "EMPTY": ""},
        "user": "app:staff",
        "workdir": "/srv",
        "ports": [80, 8080],
        "labels": {"a": "b"},
        "entrypoint": ["/run.sh"],
        "cmd": ["-v"],
    }
    assert image.config(dumps({"config": None})) == {}
    assert image.config(dumps({"config": {"Env": "A=1", "User": 0, "ExposedPorts": []}})) == {}


def test_another_systems_config() -> None:
    refused(image.config, dumps({"os": "windows", "architecture": ARCH}), match="made for windows/")
    refused(
        image.config, dumps({"os": "linux", "architecture": "s390x"}), match="made for linux/s390x"
    )
    refused(image.config, dumps({"config": {"Env": ["A=" + "x" * 200_000]}}), match="too long")
    refused(image.config, dumps({"config": {"Env": ["A=1"] * 5000}}), match="too many")


def test_what_a_digest_promised() -> None:
    assert image.checked(b"abc", digest(b"abc"), "config") == b"abc"
    refused(
        image.checked,
        b"abd",
        digest(b"abc"),
        "config",
        match="its config is not what its digest says",
    )
