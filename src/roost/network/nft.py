"""nftables without a process for each change: libnftables, in this process.

``nft -f -`` takes 16 ms here, of which hardly 1 ms is work: a netlink socket that closes waits until the kernel has freed
what it changed. So a session with a namespace's rules, which is such a socket, stays open while it is among the last used,
and a thread that nobody waits for closes those that are not. A session belongs to the namespace it was made in, whichever
thread uses it. The library promises nothing to threads, so one of them is in it at a time.

C functions: libnftables(3).
"""

from __future__ import annotations

import ctypes
import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_LIBRARY = "libnftables.so.1"
_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_NUMERIC = 1 << 7 | 1 << 8 | 1 << 9  # protocols, priorities and symbols as numbers
_ONLY_ONE = threading.Lock()


class NftError(OSError):
    """Rules that were refused; nothing of them holds."""


class _Session:
    """Rules of the namespace that the calling thread is in now."""

    def __init__(self) -> None:
        self._ctx = _library().nft_ctx_new(0)
        if not self._ctx:
            raise NftError("libnftables made no context: no netlink socket is to be had")
        _library().nft_ctx_buffer_error(self._ctx)
        _library().nft_ctx_buffer_output(self._ctx)

    def run(self, text: str, flags: int = 0) -> str:
        library = _library()
        library.nft_ctx_output_set_flags(self._ctx, flags)
        failed = library.nft_run_cmd_from_buffer(self._ctx, text.encode())
        said = library.nft_ctx_get_error_buffer(self._ctx)
        shown = library.nft_ctx_get_output_buffer(self._ctx)  # and both begin anew
        if failed:
            lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
            raise NftError(f"nftables refused rules: {lines[0] if lines else 'without a reason'}")
        return str(shown.decode(errors="replace"))

    def close(self) -> None:
        _library().nft_ctx_free(self._ctx)


class Sessions:
    """At most ``keep`` of them stay open. For every thread."""

    def __init__(self, keep: int = 64) -> None:
        self._keep = keep
        self._open: OrderedDict[str, _Session] = OrderedDict()
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="nft-closer")

    def load(self, name: str, within: Callable[[], Any], text: str) -> None:
        """Rules as for ``nft -f``, all or nothing, into the namespace known as ``name``, which the context manager
        ``within()`` enters. Raises NftError, and OSError where the namespace is gone."""
        with _ONLY_ONE:
            self._session(name, within).run(text)

    def listed(self, name: str, within: Callable[[], Any], what: str) -> list[dict[str, Any]]:
        """What ``nft --json list WHAT`` gives, numbers where there are names for them: see libnftables-json(5)."""
        with _ONLY_ONE:
            text = self._session(name, within).run(f"list {what}", _JSON | _NUMERIC)
        found: list[dict[str, Any]] = json.loads(text)["nftables"] if text else []
        return found

    def forget(self, name: str) -> None:
        """Of a namespace that goes away: an open session would keep it."""
        with _ONLY_ONE:
            session = self._open.pop(name, None)
        if session is not None:
            self._closer.submit(session.close)

    def close(self) -> None:
        for name in list(self._open):
            self.forget(name)

    def _session(self, name: str, within: Callable[[], Any]) -> _Session:
        session = self._open.get(name)
        if session is None:
            with within():
                session = self._open[name] = _Session()
            while len(self._open) > self._keep:
                self._closer.submit(self._open.popitem(last=False)[1].close)
        self._open.move_to_end(name)
        return session


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(_LIBRARY)
    context = ctypes.c_void_p
    for name, answer, arguments in (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, ctypes.c_char_p]),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, [context]),
        ("nft_ctx_get_output_buffer", ctypes.c_char_p, [context]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = answer, arguments
    return library
