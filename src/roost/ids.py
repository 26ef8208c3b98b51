"""Ids: 26 characters of [a-z2-7], 130 random bits, nothing to guess and nothing to sort by."""

from __future__ import annotations

import base64
import re
import secrets

_FORM = re.compile(r"[a-z2-7]{26}", re.ASCII)


def new() -> str:
    return base64.b32encode(secrets.token_bytes(17))[:26].decode().lower()


def formed(text: str) -> bool:
    """Whether it is of an id's form: where one is meant, nothing else may be found by it."""
    return _FORM.fullmatch(text) is not None
