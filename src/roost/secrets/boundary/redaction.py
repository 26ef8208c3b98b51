"""Finds values in what a server says, however it is cut into pieces, and lays stars over them.

What goes out is as long as what came in, so lengths that were promised before hold. Only what could be the beginning
of a value waits for more: memory is bounded by the longest value, and a stream of events flows on. Imports nothing of
ours: it runs in the boundary's own environment.
"""

from __future__ import annotations

import base64
import html
import json
import re
from array import array
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

STAR = b"*"
BEGINNING = 4  # bytes; every form is longer


def forms(value: str) -> set[bytes]:
    """The ways in which a value is commonly written: as it is, for URLs, in JSON and HTML, in hex, in base64."""
    raw = value.encode()
    found = {raw, raw.hex().encode(), raw.hex().upper().encode()}
    for escaped in (quote(value, safe=""), quote(value), quote_plus(value)):
        found |= {escaped.encode(), _lower_hex(escaped).encode()}
    found |= {json.dumps(value)[1:-1].encode(), html.escape(value).encode()}
    found.add(json.dumps(value)[1:-1].replace("/", "\\/").encode())
    for before in range(3):
        found |= _base64(raw, before)
    return found


def _base64(raw: bytes, before: int) -> set[bytes]:
    """The characters that are the value's alone where ``before`` bytes (of 3) stand ahead of it."""
    text = base64.b64encode(b"\0" * before + raw)
    first = -(-before * 8 // 6)  # those before share bits with what stands ahead
    core = text[first : (before + len(raw)) * 8 // 6]
    return {core, core.translate(bytes.maketrans(b"+/", b"-_"))}


def _lower_hex(text: str) -> str:
    head, *rest = text.split("%")
    return "%".join([head, *(each[:2].lower() + each[2:] for each in rest)])


class Needles:
    """What to look for: an automaton (Aho and Corasick's), whose cost is the text's length whatever the values are.

    Node ``n`` is a beginning of a form; ``n + 1`` is the one that goes on with ``_label[n]``, others are in ``_branch``.
    """

    def __init__(self, values: Iterable[str]) -> None:
        self.all = sorted({form for value in values for form in forms(value)}, key=len)
        self._label = array("h", [-1])
        self._branch: dict[int, int] = {}
        self._depth = array("i", [0])
        self._fail = array("i", [0])
        self._found = array("i", [0])  # the length of the longest form that ends here
        parents, labels = array("i", [0]), bytearray(1)
        for form in self.all:
            node = 0
            for byte in form:
                after = self._after(node, byte)
                if after < 0:
                    after = len(self._depth)
                    if after == node + 1:
                        self._label[node] = byte
                    else:
                        self._branch[node << 8 | byte] = after
                    self._label.append(-1)
                    self._depth.append(self._depth[node] + 1)
                    self._fail.append(0)
                    self._found.append(0)
                    parents.append(node)
                    labels.append(byte)
                node = after
            self._found[node] = len(form)
        inner = bytearray(len(self._depth))
        # What waits for more where the text so far ends in this node.
        self.waits = array("i", bytes(4 * len(self._depth)))
        order = sorted(range(1, len(self._depth)), key=self._depth.__getitem__)
        for node in order:
            parent = parents[node]
            inner[parent] = 1
            if parent:
                self._fail[node] = self._step(self._fail[parent], labels[node])
        for node in order:
            fail = self._fail[node]
            self._found[node] = self._found[node] or self._found[fail]
            self.waits[node] = self._depth[node] if inner[node] else self.waits[fail]
        self._beginnings = {form[:BEGINNING]: self._walk(form[:BEGINNING]) for form in self.all}
        self._begins = _begins(self._beginnings)

    def _after(self, node: int, byte: int) -> int:
        return node + 1 if self._label[node] == byte else self._branch.get(node << 8 | byte, -1)

    def _walk(self, data: bytes) -> int:
        node = 0
        for byte in data:
            node = self._step(node, byte)
        return node

    def _step(self, node: int, byte: int) -> int:
        while (after := self._after(node, byte)) < 0:
            if not node:
                return 0
            node = self._fail[node]
        return after

    def scan(self, raw: bytes, shown: bytearray, at: int, node: int) -> int:
        """Lays stars over what ends past ``at``, where ``node`` was reached; gives the node at the end."""
        label, branch, fail = self._label, self._branch, self._fail
        depth, found, size = self._depth, self._found, len(raw)
        begin = end = 0  # of the stars to lay next
        while at < size:
            start = at - depth[node]
            if depth[node] < BEGINNING and start + BEGINNING <= size:
                # Too little to be worth following: on to where one begins.
                begins = self._begins.search(raw, start)
                if begins is None:
                    at, node = size - BEGINNING + 1, 0
                else:
                    at, node = begins.end(), self._beginnings[begins.group()]
                continue
            byte = raw[at]
            at += 1
            while label[node] != byte:
                if (after := branch.get(node << 8 | byte)) is not None:
                    node = after
                    break
                if not node:
                    break
                node = fail[node]
            else:
                node += 1
            if length := found[node]:
                if at - length > end:
                    shown[begin:end] = STAR * (end - begin)
                    begin = at - length
                begin, end = min(begin, at - length), at
        shown[begin:end] = STAR * (end - begin)
        return node

    def mask(self, data: bytes) -> bytes:
        """Of what is whole."""
        if self._begins.search(data) is None:
            return data
        shown = bytearray(data)
        self.scan(data, shown, 0, 0)
        return bytes(shown)


def _begins(beginnings: Iterable[bytes]) -> re.Pattern[bytes]:
    """Finds the first of them; by their first byte, so that few are tried at a place."""
    by_first: dict[bytes, list[bytes]] = {}
    for each in sorted(beginnings):
        by_first.setdefault(each[:1], []).append(re.escape(each[1:]))
    parts = [re.escape(first) + b"(?:%s)" % b"|".join(rest) for first, rest in by_first.items()]
    return re.compile(b"|".join(parts) if parts else b"(?!)", re.DOTALL)


class Redactor:
    """Of one stream: ``feed`` gives what is certain by now, ``end`` the rest."""

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        self._raw = b""  # what is held
        self._held = bytearray()  # the same, with stars over what was found in it
        self._node = 0

    def feed(self, data: bytes) -> bytes:
        raw, shown = self._raw + data, self._held + data
        self._node = self._needles.scan(raw, shown, len(self._raw), self._node)
        cut = len(raw) - self._needles.waits[self._node]
        self._raw, self._held = raw[cut:], shown[cut:]
        return bytes(shown[:cut])

    def end(self) -> bytes:
        shown = bytes(self._held)
        self._raw, self._held, self._node = b"", bytearray(), 0
        return shown
