"""Answers of our own: a small page for browsers, the API's form of errors for everybody else."""

from __future__ import annotations

import html
from http import HTTPStatus

from roost.errors import RoostError
from roost.gateway.respond import dumps, error_headers

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:16px/1.5 system-ui;margin:15vh auto;max-width:34rem;padding:0 1rem}}code{{color:#666}}</style>
<h1>{title}</h1><p>{message}</p><p><code>{code}</code></p></html>
"""


def failure(
    error: RoostError,
    as_html: bool,
    *,
    head: bool = False,
    close: bool = False,
    flat: bool = False,
) -> bytes:
    """A whole answer. ``head``: without its body. ``flat``: ``{"error": text}``, for who came by a sandbox's path."""
    if as_html:
        title = phrase(error.status)
        text = {"title": title, "message": error.message, "code": error.code}
        body = _PAGE.format(**{name: html.escape(value) for name, value in text.items()}).encode()
    else:
        body = dumps({"error": error.message} if flat else error.to_wire())
    lines = [b"HTTP/1.1 %d %b\r\n" % (error.status, phrase(error.status).encode())]
    for name, value in error_headers(error):
        if name == b"content-type" and as_html:
            value = b"text/html; charset=utf-8"
        lines.append(name + b": " + value + b"\r\n")
    lines.append(b"content-security-policy: default-src 'none'; style-src 'unsafe-inline'\r\n")
    lines.append(b"cache-control: no-store\r\ncontent-length: %d\r\n" % len(body))
    if close:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines) + (b"" if head else body)


def phrase(status: int) -> str:
    return HTTPStatus(status).phrase
