"""Where calls are declared: the same rules for all of them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter


def router(prefix: str, tag: str | None = None) -> APIRouter:
    """``tag``: of every call of it. A body is JSON whatever its content type says."""
    return APIRouter(
        prefix=prefix,
        tags=[tag] if tag else None,
        strict_content_type=False,
        generate_unique_id_function=operation,
    )


def operation(route: Any) -> str:
    """The call's name in the document."""
    tag = route.tags[0] if route.tags else "roost"
    return f"{tag}_{route.name.strip('_')}"
