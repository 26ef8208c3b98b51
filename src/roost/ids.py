"""Ids: 26 characters of [a-z2-7], 130 random bits, nothing to guess and nothing to sort by."""

from __future__ import annotations

import base64
import secrets


def new() -> str:
    return base64.b32encode(secrets.token_bytes(17))[:26].decode().lower()
