"""Archives that builds will copy from, sent ahead and named by what is in them: for dialects whose clients send the
files of each COPY by themselves, and not again what is there already.

Each is a tar of a tenant's, unpacked from gzip as it comes, read for what is hostile before it is kept, and forgotten
after a day. ``context`` puts several together as one build's context, each below a directory of its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tarfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from roost.clock import Clock
from roost.errors import AuthError, InvalidRequestError, LimitError, NotFoundError
from roost.templates.context import DIRECTORY, LINK, Context, Entry

KEEP_S = 86_400.0
PASS_S = 3600
FILES = 10_000  # archives of a tenant
_HASH = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_BLOCK = 512
_STEP = 16 << 20  # bytes after which it is looked whether there is room for more


class BuildFiles:
    """Every call takes the caller's tenant first. ``most``: bytes of one archive; ten times as much a tenant has.
    ``require``: raises STORAGE_FULL where there is no such room."""

    def __init__(
        self,
        directory: Path,
        secret: bytes,
        clock: Clock,
        most: int,
        require: Callable[[int], Awaitable[None]],
    ) -> None:
        self._directory = directory
        self._key = hashlib.sha256(b"roost-build-files-v1" + secret).digest()
        self._clock = clock
        self._most = most
        self._require = require

    async def has(self, tenant: str, digest: str) -> bool:
        """Raises VALIDATION_FAILED for what is no name of one."""
        path = self._path(tenant, digest)
        return await asyncio.to_thread(_touched, path)

    async def path(self, tenant: str, digest: str) -> Path:
        """Raises NOT_FOUND."""
        if not await self.has(tenant, digest):
            raise NotFoundError(
                f"The files {digest[:16]}... were not sent, or long ago: send them again."
            )
        return self._path(tenant, digest)

    def pass_of(self, tenant: str, digest: str) -> str:
        """What lets whoever has it send that archive, for an hour."""
        self._path(tenant, digest)
        whose = base64.urlsafe_b64encode(tenant.encode()).decode().rstrip("=")
        expires = int(self._clock.now().timestamp()) + PASS_S
        body = f"{whose}.{digest}.{expires}"
        return f"{body}.{self._tag(body)}"

    def read_pass(self, text: str) -> tuple[str, str]:
        """(tenant, name). Raises AUTH_INVALID."""
        body, _, tag = text.rpartition(".")
        if not hmac.compare_digest(tag.encode(), self._tag(body).encode()):
            raise AuthError("This address takes no files.")
        whose, digest, expires = body.split(".")
        if int(expires) < self._clock.now().timestamp():
            raise AuthError("This address took files for an hour: ask for another.")
        padded = whose + "=" * (-len(whose) % 4)
        return base64.urlsafe_b64decode(padded).decode(), digest

    async def put(self, tenant: str, digest: str, pieces: AsyncIterator[bytes]) -> None:
        """A tar, gzip or not. Raises INVALID_BODY, PAYLOAD_TOO_LARGE, LIMIT_EXCEEDED, STORAGE_FULL."""
        path = self._path(tenant, digest)
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True, mode=0o700)
        await self._check_room(path.parent)
        draft = path.with_suffix(f".{secrets.token_hex(8)}")
        try:
            await self._write(draft, pieces)
            await asyncio.to_thread(Context.read, draft)
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)

    async def _check_room(self, directory: Path) -> None:
        """Drafts count, too: several may come at once. Raises LIMIT_EXCEEDED."""
        size, count = await asyncio.to_thread(_taken, directory)
        if size > 10 * self._most or count > FILES:
            raise LimitError(
                "Too many files of yours wait for builds: those of a day ago go by themselves.",
                code="LIMIT_EXCEEDED",
            )

    async def _write(self, path: Path, pieces: AsyncIterator[bytes]) -> None:
        size = 0
        with path.open("xb") as file:
            async with contextlib.aclosing(_plain(pieces)) as found:
                async for piece in found:
                    size += len(piece)
                    if size > self._most:
                        raise InvalidRequestError(
                            f"The files are above {self._most} bytes.",
                            code="PAYLOAD_TOO_LARGE",
                            details={"limit": self._most},
                        )
                    if size == len(piece) or size % _STEP < len(piece):
                        await self._require(_STEP)
                        await self._check_room(path.parent)
                    await asyncio.to_thread(file.write, piece)

    async def context(self, archives: Mapping[str, Path]) -> AsyncGenerator[bytes, None]:
        """A tar with the content of each below the directory it is named by."""
        for place, path in archives.items():
            found = await asyncio.to_thread(Context.read, path)
            yield _header(Entry(place, DIRECTORY, 0o755), place)
            for name, entry in found.entries.items():
                yield _header(entry, f"{place}/{name}")
                if not entry.size:
                    continue
                source = found.open(entry)
                while piece := await asyncio.to_thread(next, source, b""):
                    yield piece
                if rest := entry.size % _BLOCK:
                    yield bytes(_BLOCK - rest)
        yield bytes(2 * _BLOCK)

    async def tidy(self) -> None:
        """What was not asked for in a day goes."""
        before = self._clock.now().timestamp() - KEEP_S
        await asyncio.to_thread(_tidy, self._directory, before)

    def _path(self, tenant: str, digest: str) -> Path:
        if not _HASH.fullmatch(digest):
            raise InvalidRequestError(
                "The files are named by 64 hex digits.", details={"field": "hash"}
            )
        whose = hashlib.sha256(tenant.encode()).hexdigest()[:32]
        return self._directory / whose / f"{digest}.tar"

    def _tag(self, body: str) -> str:
        return hmac.digest(self._key, body.encode(), "sha256").hex()


async def _plain(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Through gzip, where it begins so."""
    inflater = None
    first = True
    async for piece in pieces:
        if first and piece:
            first = False
            if piece[:2] == b"\x1f\x8b":
                inflater = zlib.decompressobj(31)
        if inflater is None:
            yield piece
            continue
        while piece:
            try:
                out = await asyncio.to_thread(inflater.decompress, piece, _PIECE)
            except zlib.error as failure:
                raise InvalidRequestError(
                    "The files are not gzip.", code="INVALID_BODY"
                ) from failure
            if out:
                yield out
            if inflater.eof:
                piece = inflater.unused_data.lstrip(b"\0")
                if piece:
                    inflater = zlib.decompressobj(31)
            else:
                piece = inflater.unconsumed_tail
    if inflater is not None and not inflater.eof:
        raise InvalidRequestError("The gzip files end too early.", code="INVALID_BODY")


def _header(entry: Entry, name: str) -> bytes:
    info = tarfile.TarInfo(name + "/" if entry.kind == DIRECTORY else name)
    info.mode, info.mtime = entry.mode & 0o7777, entry.mtime
    if entry.kind == DIRECTORY:
        info.type = tarfile.DIRTYPE
    elif entry.kind == LINK:
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    else:
        info.size = entry.size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _touched(path: Path) -> bool:
    """Whether it is there; it stays a day from now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _taken(directory: Path) -> tuple[int, int]:
    """Bytes, files. What goes meanwhile (a draft takes its name) is not there."""
    size = count = 0
    for each in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += each.stat().st_size
            count += 1
    return size, count


def _tidy(directory: Path, before: float) -> None:
    for path in directory.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()
