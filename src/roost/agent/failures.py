"""What gRPC and the agent say went wrong, as errors of ours."""

from __future__ import annotations

import grpc

from roost.errors import RoostError, error

_RENAMED = {
    "NO_SPACE": "MACHINE_DISK_FULL",
    "EXECUTION_EXISTS": "ALREADY_EXISTS",
    "INVALID_ARGUMENT": "VALIDATION_FAILED",
    "INTERNAL": "MACHINE_FAILED",
}
_SAME = {
    "FILE_NOT_FOUND",
    "FILE_EXISTS",
    "NOT_A_DIRECTORY",
    "IS_A_DIRECTORY",
    "DIRECTORY_NOT_EMPTY",
    "FILE_KIND_REFUSED",
    "FILE_TOO_LARGE",
    "PERMISSION_DENIED",
    "INVALID_PATH",
    "USER_NOT_FOUND",
    "COMMAND_NOT_FOUND",
    "EXECUTION_NOT_FOUND",
    "TERMINAL_NOT_FOUND",
    "INVALID_STATE",
    "LIMIT_EXCEEDED",
    "PORT_CLOSED",
    "UNSUPPORTED",
}
_BY_STATUS = {
    grpc.StatusCode.UNAVAILABLE: "AGENT_LOST",
    grpc.StatusCode.CANCELLED: "AGENT_LOST",
    grpc.StatusCode.UNAUTHENTICATED: "AGENT_LOST",
    grpc.StatusCode.UNKNOWN: "AGENT_LOST",
    grpc.StatusCode.DEADLINE_EXCEEDED: "TIMEOUT",
    grpc.StatusCode.UNIMPLEMENTED: "UNSUPPORTED",
}
_MESSAGES = {
    "AGENT_LOST": "The machine's agent cannot be reached; the machine may be starting, stopping or broken.",
    "TIMEOUT": "The machine's agent did not answer in time.",
    "UNSUPPORTED": "The machine's agent is too old for this call; sleep and wake the machine to renew it.",
}
MAX_MESSAGE = 500


def clean(text: str) -> str:
    """Foreign text made fit to show: one line, no control characters, bounded."""
    shown = "".join(c if c.isprintable() else " " for c in text[: MAX_MESSAGE * 2])
    return " ".join(shown.split())[:MAX_MESSAGE]


def typed(failure: grpc.aio.AioRpcError, doing: str) -> RoostError:
    """The error of a failed call. ``doing`` names the call in details; the cause stays the caller's to chain."""
    named = _named(failure)
    status = failure.code()
    code = _RENAMED.get(named, named if named in _SAME else None) if named else None
    if code is not None:
        return error(code, clean(failure.details() or "") or code, details={"call": doing})
    code = _BY_STATUS.get(status, "MACHINE_FAILED")
    text = _MESSAGES.get(code, "The machine's agent gave an answer that cannot be used.")
    details = {"call": doing, "grpc": status.name, "said": clean(failure.details() or "")}
    return error(code, text, details=details)


def lied(doing: str, what: str) -> RoostError:
    """The agent broke its contract."""
    return error(
        "MACHINE_FAILED",
        f"The machine's agent gave an answer that cannot be used: {what}.",
        details={"call": doing},
        retryable=False,
    )


def _named(failure: grpc.aio.AioRpcError) -> str | None:
    for key, value in failure.trailing_metadata() or ():
        if key == "roost-code" and isinstance(value, str):
            return value
    return None
