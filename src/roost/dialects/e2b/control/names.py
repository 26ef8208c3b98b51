"""Names of templates, as E2B writes them and as ours are. Pure.

team/name      name         every tenant has its own names
name:default   name         which is :latest
code-interpreter-v1         code-interpreter, as ours is called
"""

from __future__ import annotations

from roost.templates.reference import LATEST

DEFAULT = "default"
ALIASES = {"code-interpreter-v1": "code-interpreter"}


def ours(named: str) -> str:
    """Not checked: it may be of no form that a name has."""
    name, colon, tag = named.rpartition("/")[2].partition(":")
    name = ALIASES.get(name, name)
    return name if not colon or tag == DEFAULT else f"{name}:{tag}"


def tag_ours(tag: str) -> str:
    return LATEST if tag == DEFAULT else tag


def tag_theirs(tag: str) -> str:
    return DEFAULT if tag == LATEST else tag
