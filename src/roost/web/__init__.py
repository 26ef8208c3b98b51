"""What people open in a browser: a page each, its style and its one module, as they lie here; nothing is built.

    GET /approvals --> key, typed in, kept by the tab --> the native API, the key in a header

A page is everybody's: it has nothing secret in it and asks for a key itself. What it shows was written by whoever wants
something, so it is only ever text: its policy lets no script in but its own, and no string become HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
PATHS: Mapping[str, str] = MappingProxyType(
    {
        "/approvals": "approvals.html",
        "/approvals.css": "approvals.css",
        "/approvals.js": "approvals.js",
    }
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
)


def read(path: str) -> tuple[bytes, str]:
    """What is served there, and of which type. Raises KeyError."""
    name = PATHS[path]
    return (resources.files(__name__) / name).read_bytes(), _TYPES[name.rpartition(".")[2]]
