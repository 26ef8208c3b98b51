"""Words of a Dockerfile with variables in them: read, or said to be unreadable."""

from __future__ import annotations

from roost.templates.substitute import MAX_CHARACTERS, Unreadable, expand, split, word

COVERS = ("roost.templates.substitute",)
SEEDS = (
    b"a $A ${B} ${C:-d e} ${D:+'f'} \"g ${E}\" 'h $F'",
    b"${A#*x} ${A##*x} ${A%x*} ${A%%x*} ${A/x/y} ${A//x/y}",
    b'\\$A \\\\ "\\"" $ ${ } $1 $@',
    b"${A:-${B:-${C:-d}}}",
)
WORDS = (b"${", b":-", b":+", b"##", b"%%", b"//", b"$A", b"${A", b"\\", b'"', b"'")
LONGEST = 1024
_KNOWN = {"A": "xaxbx", "B": "", "C": "*"}


def one(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    for escape in ("\\", "`"):
        for read in (word, expand):
            try:
                assert len(read(text, _KNOWN, escape)) <= MAX_CHARACTERS
            except Unreadable:
                pass
        try:
            split(text, escape)
        except Unreadable:
            pass
