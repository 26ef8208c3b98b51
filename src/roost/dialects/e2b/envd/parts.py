"""A multipart body, part by part, at the pace of whoever takes it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from roost.dialects.e2b.envd.refusals import Refused

MAX_PARTS = 10_000
HEADER_BYTES = 16 * 1024  # of one part
_BEGIN, _DATA, _END, _OVER = range(4)


@dataclass(frozen=True, slots=True)
class Part:
    """Its data is to be taken before the next part is asked for; what is not is passed over."""

    name: str
    filename: str | None
    data: AsyncGenerator[bytes, None]


def boundary(content_type: str) -> bytes | None:
    """None where it is no multipart body. Raises Refused."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return None
    found = options.get(b"boundary", b"")
    if not 0 < len(found) <= 200:
        raise Refused("invalid_argument", "error parsing multipart form: no boundary")
    return found


class Parts:
    def __init__(self, pieces: AsyncGenerator[bytes, None], limit: bytes) -> None:
        self._pieces = pieces
        self._seen: deque[tuple[int, bytes]] = deque()
        self._head: dict[bytes, bytes] = {}
        self._field = b""
        self._value = b""
        self._held = 0
        self._count = 0
        self._parser = MultipartParser(
            limit,
            {
                "on_part_begin": self._begun,
                "on_header_field": self._in_field,
                "on_header_value": self._in_value,
                "on_header_end": self._header,
                "on_headers_finished": self._headed,
                "on_part_data": self._data,
                "on_part_end": lambda: self._seen.append((_END, b"")),
                "on_end": lambda: self._seen.append((_OVER, b"")),
            },
        )

    async def all(self) -> AsyncGenerator[Part, None]:
        """Raises Refused for what is no form."""
        while True:
            kind, head = await self._next()
            if kind == _OVER:
                return
            if kind != _BEGIN:
                continue
            _, options = parse_options_header(head)
            body = self._body()
            yield Part(
                _text(options.get(b"name", b"")),
                _text(options[b"filename"]) if b"filename" in options else None,
                body,
            )
            async for _ in body:
                pass

    async def _body(self) -> AsyncGenerator[bytes, None]:
        while True:
            kind, data = await self._next()
            if kind != _DATA:
                return
            yield data

    async def _next(self) -> tuple[int, bytes]:
        while not self._seen:
            piece = await anext(self._pieces, None)
            try:
                if piece is None:
                    self._parser.finalize()
                    raise Refused(
                        "invalid_argument", "error parsing multipart form: it ends too early"
                    )
                self._parser.write(piece)
            except FormParserError:
                raise Refused("invalid_argument", "error parsing multipart form") from None
        return self._seen.popleft()

    # --- what the parser says -------------------------------------------------------------------

    def _begun(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise Refused("invalid_argument", f"a form has at most {MAX_PARTS} parts")
        self._head, self._held = {}, 0
        self._field = self._value = b""

    def _in_field(self, data: bytes, start: int, end: int) -> None:
        self._field += self._taken(data[start:end])

    def _in_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._taken(data[start:end])

    def _taken(self, data: bytes) -> bytes:
        self._held += len(data)
        if self._held > HEADER_BYTES:
            raise Refused("invalid_argument", "the headers of a part are too long")
        return data

    def _header(self) -> None:
        self._head[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headed(self) -> None:
        self._seen.append((_BEGIN, self._head.get(b"content-disposition", b"")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._seen.append((_DATA, data[start:end]))


def _text(raw: bytes) -> str:
    """As browsers and clients write it: UTF-8, with quotes and line ends as percent signs have them."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Refused("invalid_argument", "a file's name is not UTF-8") from None
    return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
