"""Files in a machine. Paths are absolute, as text, ``PurePosixPath`` or bytes (where not UTF-8)."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import IO, Any

from roost.client._sync._events import events
from roost.client._sync._http import HTTP, Content
from roost.client._sync._io import from_iterator, in_thread
from roost.client._sync._transfer import download, upload
from roost.client._tar import CHUNK, Transfer
from roost.client._types import FileEvent, FileInfo
from roost.client._wire import given, path_query, segment
from roost.errors import NotFoundError, RoostError

RemotePath = str | bytes | PurePath
Data = bytes | bytearray | memoryview | str | Path | IO[bytes] | Iterable[bytes] | Iterator[bytes]


class Files:
    """``machine.files``. Raises NotFoundError FILE_NOT_FOUND, ForbiddenError PERMISSION_DENIED,
    InvalidRequestError (IS_A_DIRECTORY, FILE_KIND_REFUSED, INVALID_PATH), CapacityError
    MACHINE_DISK_FULL."""

    def __init__(self, http: HTTP, machine_id: str) -> None:
        self._http = http
        self._path = f"/v1/machines/{segment(machine_id)}/files"

    # --- content --------------------------------------------------------------------------------

    def write(
        self,
        path: RemotePath,
        data: Data,
        *,
        mode: int | None = None,
        owner: str | None = None,
        make_parents: bool = True,
        create_new: bool = False,
        offset: int | None = None,
        sync: bool = False,
        append: bool = False,
    ) -> FileInfo:
        """Replaces the file whole or not at all (but for ``append`` and ``offset``).

        ``data``: bytes, text (UTF-8), a ``Path`` of a local file, an open binary file or an iterator
        of bytes; the last three are streamed. ``create_new`` refuses an existing file
        (ConflictError FILE_EXISTS). ``sync``: durable on the host's disk before this returns.
        """
        params = {
            **path_query(path),
            **given(
                mode=None if mode is None else f"{mode:04o}",
                owner=owner,
                make_parents=None if make_parents else "false",
                append="true" if append else None,
                create_new="true" if create_new else None,
                offset=offset,
                sync="true" if sync else None,
            ),
        }
        if isinstance(data, Path):
            with in_thread(open_binary, data) as source:
                return self._put(params, source)
        return self._put(params, data)

    def _put(self, params: dict[str, Any], data: Any) -> FileInfo:
        headers = {"Content-Type": "application/octet-stream"}
        content: Content
        timeout: float | None = self._http.timeout
        if isinstance(data, str):
            content = data.encode()
        elif isinstance(data, (bytes, bytearray, memoryview)):
            content = bytes(data)
        elif hasattr(data, "read"):
            size = remaining(data)
            if size is not None:
                headers["Content-Length"] = str(size)
            content = from_iterator(blocks(data, size))
        elif hasattr(data, "__aiter__"):
            content = data
        else:
            content = from_iterator(iter(data))
        answer = self._http.call(
            "PUT", self._path, params=params, content=content, headers=headers, timeout=timeout
        )
        return FileInfo.from_json(answer)

    def append(self, path: RemotePath, data: Data, **options: Any) -> FileInfo:
        """Adds at the end; made if missing. Options as ``write``."""
        return self.write(path, data, append=True, **options)

    def read(self, path: RemotePath, *, offset: int = 0, length: int | None = None) -> bytes:
        """The file's bytes, or those of a range; past its end: none."""
        if length is not None and length <= 0:
            return b""
        try:
            response = self._http.request(
                "GET", self._path, params=path_query(path), headers=byte_range(offset, length)
            )
        except RoostError as failure:
            if failure.code != "RANGE_NOT_SATISFIABLE":
                raise
            return b""
        return response.content

    def read_text(self, path: RemotePath, encoding: str = "utf-8") -> str:
        return (self.read(path)).decode(encoding)

    def read_stream(
        self, path: RemotePath, *, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        """The bytes as they come, without holding them all."""
        with self._http.stream(
            "GET", self._path, params=path_query(path), headers=byte_range(offset, length)
        ) as response:
            yield from response.iter_raw()

    # --- names ----------------------------------------------------------------------------------

    def stat(self, path: RemotePath, *, follow: bool = True) -> FileInfo:
        params = {**path_query(path), **({} if follow else {"follow": "false"})}
        answer = self._http.call("GET", f"{self._path}/stat", params=params)
        return FileInfo.from_json(answer)

    def exists(self, path: RemotePath) -> bool:
        """A dangling link exists not."""
        try:
            self.stat(path)
        except NotFoundError as failure:
            if failure.code != "FILE_NOT_FOUND":
                raise
            return False
        return True

    def list(self, path: RemotePath, *, limit: int | None = None) -> builtins.list[FileInfo]:
        """What lies in a directory."""
        pages = self._http.pages(f"{self._path}/list", path_query(path), limit)
        return [FileInfo.from_json(item) for item in pages]

    def mkdir(
        self,
        path: RemotePath,
        *,
        parents: bool = True,
        mode: int | None = None,
        owner: str | None = None,
    ) -> FileInfo:
        body = {
            **path_query(path),
            "parents": parents,
            **given(mode=None if mode is None else f"{mode:04o}", owner=owner),
        }
        return FileInfo.from_json(self._http.call("POST", f"{self._path}/mkdir", json=body))

    def move(
        self, source: RemotePath, destination: RemotePath, *, overwrite: bool = False
    ) -> FileInfo:
        body = {
            **{k.replace("path", "source"): v for k, v in path_query(source).items()},
            **{k.replace("path", "destination"): v for k, v in path_query(destination).items()},
            "overwrite": overwrite,
        }
        return FileInfo.from_json(self._http.call("POST", f"{self._path}/move", json=body))

    def remove(self, path: RemotePath, *, recursive: bool = False) -> None:
        params = {**path_query(path), **({"recursive": "true"} if recursive else {})}
        self._http.call("DELETE", self._path, params=params)

    def chmod(self, path: RemotePath, mode: int, *, recursive: bool = False) -> FileInfo:
        return self._change(path, recursive, mode=f"{mode:04o}")

    def chown(self, path: RemotePath, owner: str, *, recursive: bool = False) -> FileInfo:
        """``owner``: user, user:group, or numbers."""
        return self._change(path, recursive, owner=owner)

    def _change(self, path: RemotePath, recursive: bool, **change: str) -> FileInfo:
        body = {**path_query(path), **change, **({"recursive": True} if recursive else {})}
        return FileInfo.from_json(self._http.call("PATCH", self._path, json=body))

    def watch(self, path: RemotePath, *, recursive: bool = True) -> Iterator[FileEvent]:
        """Changes below ``path``, first one of kind ``ready``: from there on none is missed."""
        params = {**path_query(path), **({} if recursive else {"recursive": "false"})}
        for event in events(self._http, "GET", f"{self._path}/watch", params=params):
            place = event.data.get("path")
            yield FileEvent(event.name, str(place or ""), event.data.get("new_path"))

    # --- trees ----------------------------------------------------------------------------------

    def upload(
        self,
        local: str | os.PathLike[str],
        remote: RemotePath,
        *,
        owner: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Transfer:
        """A local file to ``remote``, or a local directory's contents into ``remote``.

        ``progress`` is called with the size of each piece that went (bytes). Raises OSError for what
        is wrong on this side.
        """
        return upload(self, Path(local), remote, owner, progress)

    def download(
        self,
        remote: RemotePath,
        local: str | os.PathLike[str],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> Transfer:
        """A file to ``local``, or a directory's contents into ``local``.

        Nothing outside ``local`` is touched, whatever the machine sends: links that lead out are
        left away (``skipped``), anything worse raises InvalidRequestError INVALID_PATH.
        """
        return download(self, remote, Path(local), progress)

    def read_tar(self, path: RemotePath) -> Iterator[bytes]:
        """A directory (its contents) or a file as a tar stream."""
        with self._http.stream("GET", f"{self._path}/tar", params=path_query(path)) as response:
            yield from response.iter_raw()

    def write_tar(
        self, path: RemotePath, tar: Iterator[bytes], *, owner: str | None = None
    ) -> dict[str, int]:
        """Unpacks a tar stream below ``path``, in the machine: {entries, bytes}."""
        answer: dict[str, int] = self._http.call(
            "PUT",
            f"{self._path}/tar",
            params={**path_query(path), **given(owner=owner)},
            content=tar,
            headers={"Content-Type": "application/x-tar"},
        )
        return answer


def open_binary(path: Path) -> IO[bytes]:
    return open(path, "rb")


def byte_range(offset: int, length: int | None) -> dict[str, str]:
    if not offset and length is None:
        return {}
    end = "" if length is None else str(offset + length - 1)
    return {"Range": f"bytes={offset}-{end}"}


def remaining(source: Any) -> int | None:
    """Bytes from here to the end of a seekable file; None where that is not known."""
    try:
        at = source.tell()
        end = source.seek(0, os.SEEK_END)
        source.seek(at)
    except (OSError, AttributeError, ValueError):
        return None
    return int(end - at) if end > at else None


def blocks(source: Any, size: int | None) -> Any:
    """At most ``size`` bytes of it, in pieces."""
    while size is None or size > 0:
        chunk = source.read(CHUNK if size is None else min(CHUNK, size))
        if not chunk:
            return
        if isinstance(chunk, str):
            raise TypeError("open the file in binary mode")
        if size is not None:
            size -= len(chunk)
        yield chunk
