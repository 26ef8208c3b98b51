"""The README's settings table is the settings."""

from __future__ import annotations

import re
from pathlib import Path

from roost.settings import Settings

README = Path(__file__).parents[2] / "README.md"


def table() -> str:
    rows = ["| setting | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default if str(field.default) else "(empty)"
        rows.append(f"| `ROOST_{name.upper()}` | `{default}` | {field.description} |")
    return "\n".join(rows)


def test_readme_lists_every_setting() -> None:
    found = re.search(
        r"<!-- settings:.*?-->\n(.*?)\n<!-- /settings -->", README.read_text(), re.DOTALL
    )
    assert found, "README has lost its settings table"
    assert found[1] == table(), "put this into README.md:\n" + table()
