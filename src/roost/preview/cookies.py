"""Cookies between a browser and a machine: ours stays here, theirs stays at its own host."""

from __future__ import annotations

NAME = b"roost_preview"
SECURE = b"__host-" + NAME  # under TLS: browsers take it from no sibling
MANY = 4  # of ours that are looked at: pages of a sibling host may have set some


def ours(header: bytes) -> tuple[bytes, list[bytes]]:
    """A Cookie header without ours, and the values of ours."""
    if NAME not in header.lower():
        return header, []
    others: list[bytes] = []
    found: list[bytes] = []
    secure: list[bytes] = []
    for each in header.split(b";"):
        name, _, value = each.strip(b" \t").partition(b"=")
        name = name.strip(b" \t").lower()
        if name not in (NAME, SECURE):
            others.append(each.strip(b" \t"))
            continue
        mine = found if name == NAME else secure
        if len(mine) < MANY:
            mine.append(value.strip(b' \t"'))
    return b"; ".join(others), (secure + found)[:MANY]


def own_host(value: bytes) -> bytes | None:
    """A machine's Set-Cookie for its own host alone: without Domain, which would share it with its siblings and with
    whatever else is below that domain. None for one of our name."""
    first, *attributes = value.split(b";")
    if first.partition(b"=")[0].strip(b" \t").lower() in (NAME, SECURE):
        return None
    kept = [a for a in attributes if a.partition(b"=")[0].strip(b" \t").lower() != b"domain"]
    return value if len(kept) == len(attributes) else b";".join([first, *kept])


def made(token: str, secure: bool, max_age: int | None) -> bytes:
    """The line that sets ours."""
    age = f"; Max-Age={max_age}" if max_age is not None else ""
    only = "; Secure" if secure else ""
    name = "__Host-roost_preview" if secure else "roost_preview"
    text = f"{name}={token}; Path=/; HttpOnly; SameSite=Lax{only}{age}"
    return b"set-cookie: " + text.encode() + b"\r\n"
