"""A machine as tools of OpenAI's models: functions for Chat Completions and Responses, and Responses' computer tool.

    from roost.tools.openai import Tools

    with Machine.create(template="agent") as m, Tools(m) as tools:
        answer = client.responses.create(model=..., tools=tools.definitions(), input=items)
        items += [*answer.output, *tools.run_all(answer.output)]

    with Tools(m) as tools:
        answer = client.chat.completions.create(model=..., tools=tools.definitions("chat"), messages=messages)
        message = answer.choices[0].message
        messages += [message, *tools.run_all(message.tool_calls)]

Functions: ``shell`` (a bash that keeps its state), ``read_file``, ``write_file``, ``edit_file``; with
``browser=True`` also ``open_page``, ``read_page``, ``look_at_page``, ``click_in_page``, ``fill_in_page``; with
``computer="functions"`` also ``screenshot``, ``click``, ``type_text``, ``press_keys``, ``scroll``. With ``computer="computer"`` or
``"computer_use_preview"`` the tool of that type, as https://developers.openai.com/api/docs/guides/tools-computer-use
describes it: all its actions are done, a new screenshot is the answer.

What the model reads: results as text, what it can mend as text that begins with ``Error:``, with the error's code. Raised, for
no model can mend them: AuthError, DAEMON_UNREACHABLE, SHUTTING_DOWN, MACHINE_NOT_FOUND; PermissionError where a call has safety checks
that ``approve`` did not approve.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {"AsyncTools": "roost.tools._async._openai", "Tools": "roost.tools._sync._openai"}

__all__ = ["AsyncTools", "Tools"]

if TYPE_CHECKING:
    from roost.tools._async._openai import AsyncTools
    from roost.tools._sync._openai import Tools


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
