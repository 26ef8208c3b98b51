"""Images in registries, fetched by skopeo (skopeo(1), skopeo-copy(1), skopeo-inspect(1)) in a cell of its own.

First the manifest, which says what there is; then what of it is not known yet, into a directory of ours, each blob under
the digest it claims to have: whoever reads it proves that. Credentials are in a file of the cell's tmpfs and nowhere else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from roost.agent.failures import clean
from roost.egress.dialling import Dialler, UpstreamProxy
from roost.egress.policy import Reach, private_ranges
from roost.egress.upstream import Upstream
from roost.errors import (
    ForbiddenError,
    InvalidRequestError,
    RoostError,
    TimeoutExpired,
    UnavailableError,
    UnsupportedError,
)
from roost.network import plumbing, ranges
from roost.network.addresses import Plan, instance_tag
from roost.settings import Settings, registries
from roost.templates.oci import cell, image
from roost.templates.oci.image import Blob, Manifest
from roost.templates.oci.outlet import Outlet, Target
from roost.templates.oci.reference import InRegistry

ASK_S = 120.0
FETCH_S = 3600.0
AT_ONCE = 2  # fetches of this host
_SLACK = 64 << 20  # of TLS, heads and tokens, besides what blobs have
_TELL_S = 3.0
_UID = 0x70000000 - 0x10000 - 1  # below those of VMMs and their probe; less the daemon's tag
_FATAL = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

Tell = Callable[[str], None]


class Registries:
    """``servers``: resolvers to ask, instead of the host's."""

    def __init__(self, settings: Settings, servers: Iterable[Target] | None = None) -> None:
        self._settings = settings
        self._private = registries(settings.registries_private)
        self._uid = _UID - int(instance_tag(settings.run_dir), 16)
        self._turns = asyncio.Semaphore(AT_ONCE)
        given = tuple(servers or (((settings.dns, 53),) if settings.dns else ()))
        self._upstream = Upstream(given)

    async def ask(
        self, wanted: InRegistry, credentials: Mapping[str, str] | None
    ) -> tuple[str, Manifest, bytes]:
        """(digest of the manifest for this host, what it says, the config). Raises VALIDATION_FAILED (no such image, not
        for these credentials), FORBIDDEN (a private address), DEPENDENCY_UNAVAILABLE, TIMEOUT, HOST_UNSUPPORTED."""
        data = await self._inspect(wanted, _source(wanted), credentials)
        if wanted.digest is not None:
            image.checked(data, wanted.digest, "manifest")
        digest = image.digest(data)
        if (chosen := image.choose(data)) is not None:
            digest = chosen.digest
            data = await self._inspect(wanted, f"docker://{wanted.place}@{digest}", credentials)
            image.checked(data, digest, "manifest")
        manifest = image.manifest(data)
        place = f"docker://{wanted.place}@{digest}"
        config = await self._inspect(wanted, place, credentials, "--config")
        return digest, manifest, image.checked(config, manifest.config.digest, "config")

    async def fetch(
        self,
        wanted: InRegistry,
        digest: str,
        manifest: Manifest,
        known: Iterable[Blob],
        into: Path,
        credentials: Mapping[str, str] | None,
        tell: Tell,
    ) -> Callable[[Blob], Path]:
        """All layers but the ``known``, below the empty directory ``into``; where each is. They are what the registry
        gave: their digests are not proven yet. Raises as ``ask``."""
        blobs = into / "blobs" / "sha256"
        here = {blob.digest for blob in known}

        def lay_out() -> None:
            blobs.mkdir(parents=True)
            (into / "oci-layout").write_bytes(_LAYOUT)
            for blob in manifest.layers:
                if blob.digest in here:  # skopeo takes what is there for what it wants
                    with (blobs / blob.hex).open("wb") as file:
                        file.truncate(blob.size)

        await asyncio.to_thread(lay_out)
        missing = {blob.digest: blob for blob in manifest.layers if blob.digest not in here}
        size = sum(blob.size for blob in missing.values())
        argv = [
            *("skopeo", *_policy(), "copy", "--quiet", *_how(wanted, "src-")),
            *("--authfile", cell.AUTH, "--dest-oci-accept-uncompressed-layers"),
            f"docker://{wanted.place}@{digest}",
            f"oci:{cell.WORK}",
        ]
        largest = max((blob.size for blob in missing.values()), default=0)
        order = cell.Order(
            argv,
            self._uid,
            work=into,
            auth=_auth(wanted.host, credentials),
            loopback=self._loopback(wanted),
            max_file=max(largest, image.MAX_JSON),
            timeout_s=FETCH_S,
        )
        await self._run(wanted, order, size + _SLACK, credentials, tell, size)
        return lambda blob: blobs / blob.hex

    async def _inspect(
        self,
        wanted: InRegistry,
        source: str,
        credentials: Mapping[str, str] | None,
        *what: str,
    ) -> bytes:
        argv = [
            *("skopeo", *_policy(), "inspect", "--raw", *what, *_how(wanted)),
            *("--authfile", cell.AUTH, source),
        ]
        order = cell.Order(
            argv,
            self._uid,
            auth=_auth(wanted.host, credentials),
            loopback=self._loopback(wanted),
            timeout_s=ASK_S,
        )
        return await self._run(wanted, order, _SLACK, credentials)

    async def _run(
        self,
        wanted: InRegistry,
        order: cell.Order,
        most: int,
        credentials: Mapping[str, str] | None,
        tell: Tell | None = None,
        size: int = 0,
    ) -> bytes:
        if not cell.available():
            raise UnsupportedError(
                "This host has no skopeo, which fetches images from registries.",
                code="HOST_UNSUPPORTED",
                details={"remedy": "apt-get install skopeo"},
            )
        proxy = self._settings.egress_proxy.get_secret_value()
        reach = await asyncio.to_thread(self._reach)
        dialler = Dialler(
            self._upstream, lambda: reach, UpstreamProxy.parse(proxy) if proxy else None
        )
        outlet = Outlet(dialler, self._private, most)
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def ready(sockets: list[socket.socket]) -> None:
            direct = dict(zip(sockets[1:], order.loopback, strict=True))
            asyncio.run_coroutine_threadsafe(outlet.listen(sockets[0], direct), loop).result(10)

        async with self._turns:
            work = asyncio.ensure_future(asyncio.to_thread(cell.run, order, ready, stop))
            try:
                while not (await asyncio.wait({work}, timeout=_TELL_S))[0]:
                    if tell is not None:
                        tell(f"{min(outlet.taken, size) >> 20} of {size >> 20} MiB\n")
                done = work.result()
            except OSError as failure:
                raise UnsupportedError(
                    f"Nothing can be fetched on this host: {failure.strerror or failure}.",
                    code="HOST_UNSUPPORTED",
                ) from failure
            finally:
                stop.set()
                with contextlib.suppress(OSError):
                    await asyncio.shield(work)
                await outlet.close()
        if done.code != 0:
            raise _failed(wanted, done, outlet, credentials)
        return done.output

    def _reach(self) -> Reach:
        plan = Plan(self._settings.network_cidr, self._settings.run_dir, self._settings.uid_base)
        view = plumbing.look_at_host(plan)
        private = private_ranges(self._settings.egress_private)
        return ranges.reach(private, plan, view.addresses | view.networks)

    def _loopback(self, wanted: InRegistry) -> list[Target]:
        """Raises FORBIDDEN for a registry at a loopback address that the operator did not name."""
        host, port = _target(wanted.host)
        if not _is_loopback(host):
            return []
        if (host, port) not in self._private:
            raise _private(wanted, f"{host}:{port}")
        return [(host, port)]


def _source(wanted: InRegistry) -> str:
    # By its digest alone where it has one: a tag may have moved on.
    which = f"@{wanted.digest}" if wanted.digest else f":{wanted.tag}"
    return f"docker://{wanted.place}{which}"


def _policy() -> list[str]:
    """The operator's policy of signatures, where there is one."""
    return [] if os.path.exists("/etc/containers/policy.json") else ["--insecure-policy"]


def _how(wanted: InRegistry, side: str = "") -> list[str]:
    """Clear text only with what is on this very host."""
    host, _ = _target(wanted.host)
    return [f"--{side}tls-verify=false"] if _is_loopback(host) else []


def _target(host: str) -> Target:
    name, _, port = host.partition(":")
    return name, int(port) if port else 443


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _auth(host: str, credentials: Mapping[str, str] | None) -> bytes:
    """containers-auth.json(5)."""
    auths: dict[str, Any] = {}
    if credentials is not None:
        pair = f"{credentials['username']}:{credentials['password']}".encode()
        auths[host] = {"auth": base64.b64encode(pair).decode()}
    return json.dumps({"auths": auths}).encode()


def _failed(
    wanted: InRegistry, done: cell.Done, outlet: Outlet, credentials: Mapping[str, str] | None
) -> RoostError:
    if outlet.refused is not None:
        return _private(wanted, outlet.refused)
    if done.why is not None:
        return TimeoutExpired(f"Fetching {wanted} was ended: {done.why}.")
    said = [match[1] for match in _FATAL.finditer(done.error)] or done.error.splitlines()[-1:]
    text = clean(" ".join(said).replace('\\"', '"'))
    for secret in (credentials or {}).values():
        text = text.replace(secret, "***") if secret else text
    details = {"reference": str(wanted), "said": text[:300]}
    lower = text.lower()
    if any(each in lower for each in ("unauthorized", "authentication required", "denied")):
        return InvalidRequestError(
            f"{wanted.host} does not give {wanted.name} to "
            f"{'these credentials' if credentials else 'anybody: give credentials for it'}.",
            details=details,
        )
    if any(each in lower for each in ("manifest unknown", "name unknown", "not found", "404")):
        return InvalidRequestError(f"There is no {wanted}.", details=details)
    why = (outlet.unreachable or text[:300] or f"skopeo ended with {done.code}").rstrip(".")
    return UnavailableError(f"{wanted} could not be fetched: {why}.", details=details)


def _private(wanted: InRegistry, target: str) -> ForbiddenError:
    return ForbiddenError(
        f"{wanted}: {target} lies at a private address, where images are fetched from only if the operator names it in "
        "ROOST_REGISTRIES_PRIVATE.",
        details={"reference": str(wanted), "refused": target},
    )
