"""What a picture is, by its first bytes."""

from __future__ import annotations

SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
}


def kind_of(data: bytes) -> str | None:
    """png, jpeg, gif, webp."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)


def size_of(data: bytes) -> tuple[int, int] | tuple[None, None]:
    """Width and height in pixels, of a PNG; of others nothing is known."""
    if kind_of(data) != "png" or len(data) < 24 or data[12:16] != b"IHDR":
        return None, None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
