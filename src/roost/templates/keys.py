"""What a layer's key is made of: the layer below, and all that goes into the step."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from roost.templates.plan import Copy, MakeDirectory, Run

# Counted up when the same step would make something else.
_VERSION = 1


def of_base(content: str) -> str:
    return _key("base", content)


def of_step(below: str, step: Run | Copy | MakeDirectory, copied: str | None = None) -> str:
    """``copied``: the digest of what a Copy brings. Values of secrets and of proxies are no part of it."""
    if isinstance(step, Run):
        secrets = [[s.id, s.target, s.env, s.mode, s.owner] for s in step.secrets]
        what: list[Any] = [
            "run",
            list(step.argv),
            sorted(step.env.items()),
            step.user,
            step.workdir,
            secrets,
            step.script,
        ]
    elif isinstance(step, Copy):
        what = ["copy", copied, step.target, step.owner, step.unpack]
    else:
        what = ["directory", step.path]
    return _key(below, what)


def _key(*parts: Any) -> str:
    text = json.dumps([_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
