"""A machine as the tools that Anthropic's Messages API defines: bash, text editor and computer.

    from roost.tools.anthropic import Tools

    with Machine.create(template="agent") as m, Tools(m) as tools:
        answer = client.messages.create(model=..., tools=tools.definitions(), messages=messages, ...)
        results = tools.run_all(answer.content)          # tool_result blocks
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]

Types: ``bash_20250124``; ``text_editor_20250728``, ``text_editor_20250429`` and ``text_editor_20250124`` (the last with
``undo_edit``); ``computer_toolset_20260801``, ``computer_20251124`` and ``computer_20250124`` (the older two need a beta
header: ``betas``). With ``browser=True`` also functions of ours: ``open_page``, ``read_page``, ``look_at_page``,
``click_in_page``, ``fill_in_page``. As https://platform.claude.com/docs/en/agents-and-tools/tool-use describes them.

What the model reads: a command's stdout and stderr as they came, cut in the middle above ``limit`` characters, and its
exit code where it is not 0. ``is_error`` says: a command's time ran out (the shell says whether it kept its state), an
edit that fits no place or several, a file that is none, a point outside the screen, any error of the machine, with its
code. Raised, for no model can mend them: AuthError, DAEMON_UNREACHABLE, SHUTTING_DOWN, MACHINE_NOT_FOUND.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {"AsyncTools": "roost.tools._async._anthropic", "Tools": "roost.tools._sync._anthropic"}

__all__ = ["AsyncTools", "Tools"]

if TYPE_CHECKING:
    from roost.tools._async._anthropic import AsyncTools
    from roost.tools._sync._anthropic import Tools


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
