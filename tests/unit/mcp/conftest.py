from __future__ import annotations

from tests.unit.api.conftest import agent, served  # noqa: F401  (fixtures)
