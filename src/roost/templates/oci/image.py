"""What an image says of itself: index, manifest and config, read with bounds (image-spec 1.1: image-index.md, manifest.md,
config.md; Docker's image manifest version 2, schema 2). Pure; every byte of it is hostile.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roost.errors import InvalidRequestError

MAX_JSON = 4 << 20  # as registries bound manifests
MAX_LAYERS = 128  # as overlay file systems do
MAX_LAYER = 64 << 30
_MAX_TEXT = 128 * 1024  # of one variable, label or argument
_MAX_ITEMS = 4096

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
REF_NAME = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Blob:
    digest: str  # "sha256:<64 hex>"
    size: int

    @property
    def hex(self) -> str:
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)


def architecture() -> str:
    """Of this host, as images call it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def checked(data: bytes, wanted: str, what: str) -> bytes:
    """Raises VALIDATION_FAILED where it is not what its digest promised."""
    if digest(data) != wanted:
        raise bad(f"its {what} is not what its digest says")
    return data


def read_json(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > MAX_JSON:
        raise bad(f"its {what} is larger than {MAX_JSON >> 20} MiB")
    try:
        value = json.loads(data)
        json.dumps(
            value, ensure_ascii=False
        ).encode()  # no row and no variable holds a lone surrogate
    except (ValueError, RecursionError) as failure:
        raise bad(f"its {what} is no JSON") from failure
    if not isinstance(value, dict):
        raise bad(f"its {what} is no JSON object")
    return value


def choose(data: bytes, tag: str | None = None) -> Blob | None:
    """Of an index the manifest for this host, of that tag where one is asked for; None: it is a manifest itself."""
    value = read_json(data, "index")
    listed = value.get("manifests")
    if value.get("mediaType") in _MANIFESTS or "layers" in value or not isinstance(listed, list):
        return None
    entries = [each for each in listed[:_MAX_ITEMS] if isinstance(each, dict)]
    known = [each for each in entries if each.get("mediaType") in (*_INDEXES, *_MANIFESTS)]
    if tag is not None:
        named = [each for each in known if _annotation(each, REF_NAME) == tag]
        if not named:
            tags = sorted(filter(None, (_annotation(each, REF_NAME) for each in known)))
            raise bad(f"it has no tag {tag!r}; it has: {', '.join(tags[:20])[:500] or 'none'}")
        known = named
    fitting = [each for each in known if _fits(each)]
    if not fitting:
        has = sorted({_platform(each) for each in known} - {"unknown/unknown"})
        raise bad(
            f"it has nothing for linux/{architecture()}; it has: {', '.join(has[:20])[:500] or 'nothing'}"
        )
    if len(fitting) > 1 and tag is None and any(_annotation(each, REF_NAME) for each in fitting):
        tags = sorted(filter(None, (_annotation(each, REF_NAME) for each in fitting)))
        raise bad(f"it has several images; say which: {', '.join(tags[:20])[:500]}")
    return _blob(fitting[0], "index", MAX_JSON)


def manifest(data: bytes) -> Manifest:
    value = read_json(data, "manifest")
    said = value.get("mediaType", _MANIFESTS[0])
    if said not in _MANIFESTS or value.get("schemaVersion") != 2:
        raise bad(f"its manifest is of a kind that is not read: {str(said)[:100]!r}")
    layers = value.get("layers")
    if not isinstance(layers, list) or not isinstance(value.get("config"), dict):
        raise bad("its manifest names no layers or no config")
    if len(layers) > MAX_LAYERS:
        raise bad(f"it has more than {MAX_LAYERS} layers")
    for each in layers:
        kind = each.get("mediaType") if isinstance(each, dict) else None
        if kind not in _LAYERS:
            raise bad(f"a layer of it is of a kind that is not unpacked: {str(kind)[:100]!r}")
    return Manifest(
        _blob(value["config"], "manifest", MAX_JSON),
        tuple(_blob(each, "manifest", MAX_LAYER) for each in layers),
    )


def config(data: bytes) -> dict[str, Any]:
    """A template's keys, besides ``entrypoint`` and ``cmd``. Raises VALIDATION_FAILED for another system's."""
    value = read_json(data, "config")
    system, made_for = value.get("os", "linux"), value.get("architecture", architecture())
    if system != "linux" or made_for != architecture():
        raise bad(
            f"it is made for {str(system)[:30]}/{str(made_for)[:30]}, not for linux/{architecture()}"
        )
    inner = value.get("config")
    inner = inner if isinstance(inner, dict) else {}
    found: dict[str, Any] = {}
    if env := _environment(inner.get("Env")):
        found["env"] = env
    if user := _text(inner.get("User")):
        found["user"] = user
    if workdir := _text(inner.get("WorkingDir")):
        found["workdir"] = workdir if workdir.startswith("/") else f"/{workdir}"
    if ports := _ports(inner.get("ExposedPorts")):
        found["ports"] = ports
    if labels := _labels(inner.get("Labels")):
        found["labels"] = labels
    for theirs, ours in (("Entrypoint", "entrypoint"), ("Cmd", "cmd")):
        if arguments := _strings(inner.get(theirs)):
            found[ours] = arguments
    return found


def _environment(value: object) -> dict[str, str]:
    found = {}
    for each in _strings(value):
        name, equals, text = each.partition("=")
        if equals and _VARIABLE.fullmatch(name):
            found[name] = text
    return found


def _ports(value: object) -> list[int]:
    """Of TCP."""
    ports = set()
    for each in list(value)[:_MAX_ITEMS] if isinstance(value, dict) else ():
        number, _, protocol = str(each).partition("/")
        if number.isascii() and number.isdigit() and protocol in ("", "tcp"):
            ports.add(int(number[:6]))
    return sorted(port for port in ports if 1 <= port <= 65535)[:256]


def _labels(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    pairs = list(value.items())[:_MAX_ITEMS]
    return {key: text for key, each in pairs if (text := _text(each)) is not None and _text(key)}


def _strings(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    if len(value) > _MAX_ITEMS:
        raise bad("its config has too many of something")
    return [text for each in value if (text := _text(each)) is not None]


def _text(value: object) -> str | None:
    if not isinstance(value, str) or "\0" in value:
        return None
    if len(value) > _MAX_TEXT:
        raise bad("its config has a text that is too long")
    return value


def _blob(value: Mapping[str, Any], where: str, most: int) -> Blob:
    found, size = value.get("digest"), value.get("size")
    if not isinstance(found, str) or not _DIGEST.fullmatch(found):
        raise bad(f"its {where} names something by no SHA-256 digest")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= most:
        raise bad(f"its {where} names something of a size that cannot be")
    return Blob(found, size)


def _fits(entry: Mapping[str, Any]) -> bool:
    """An entry without a platform is whatever it is: its config says so later."""
    return _platform(entry) in ("", f"linux/{architecture()}")


def _platform(entry: Mapping[str, Any]) -> str:
    value = entry.get("platform")
    if not isinstance(value, dict):
        return ""
    return f"{str(value.get('os'))[:30]}/{str(value.get('architecture'))[:30]}"


def _annotation(entry: Mapping[str, Any], name: str) -> str:
    found = entry.get("annotations")
    value = found.get(name) if isinstance(found, dict) else None
    return value[:200] if isinstance(value, str) else ""


def bad(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The image cannot be used: {why}.", details={"field": "from"})
