"""What the end of a machine's processes that nobody here asked for means."""

from __future__ import annotations

import re

from roost.drivers.interface import Capabilities, Exit
from roost.engine.lifecycle import Event, Failed, WentDown

_TAIL = 300  # characters of the console


def told(how: Exit, capabilities: Capabilities) -> tuple[Event, str]:
    """And in words, for the machine's log. A virtual machine can shut itself down or reboot as a computer does;
    the first process of any other has no reason to end."""
    if how.reason == "rebooted":
        return WentDown("rebooted"), "it rebooted itself"
    if how.reason == "exited" and capabilities.raw_disk:
        return WentDown("shut down"), "it shut itself down; the next call starts it from its disk"
    if how.reason == "oom":
        return Failed("oom", True), "out of memory: the machine was ended"
    if how.reason == "panicked":
        return Failed("panicked", True), f"its kernel panicked{_said(how.console)}"
    code = "" if how.exit_code is None else f", exit code {how.exit_code}"
    message = f"its main process ended by itself ({how.reason}{code}){_said(how.console)}"
    return Failed("crashed", True), message


def _said(console: str) -> str:
    """The last line of a hostile text."""
    lines = [line for line in console.splitlines() if line.strip()]
    if not lines:
        return ""
    return f"; its console said last: {re.sub('[^ -~]', '?', lines[-1].strip())[-_TAIL:]}"
