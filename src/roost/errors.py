"""Every error Roost raises, one tree, shared by the daemon and the SDK.

RoostError
├── AuthError            401  who are you
├── ForbiddenError       403
├── NotFoundError        404  (also what belongs to another tenant)
├── InvalidRequestError  400/422/413/416  the caller can mend it
├── ConflictError        409/412  the state does not allow it
├── LimitError           429  quota or rate
├── CapacityError        503/507  this host is full; retryable
├── UnsupportedError     501  this rung or build cannot; says which can
├── MachineError         502  the machine or its agent failed
├── TimeoutExpired       504
├── UnavailableError     503  a dependency; retryable
└── InternalError        500  ours; logged with an id

On the wire: ``{error_code, message, retryable, details}``. A code is stable for ever; its class and
status are its row in ``CODES``. ``message`` says what happened and what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RoostError(Exception):
    """Base of all. ``code`` is stable; ``details`` is JSON-able and holds no secret."""

    default_code = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.details: dict[str, Any] = dict(details or {})
        self.status, default_retryable, _ = CODES[self.code]
        self.retryable = default_retryable if retryable is None else retryable

    def to_wire(self) -> dict[str, Any]:
        """The JSON body of this error."""
        return {
            "error_code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "details": self.details,
        }


class AuthError(RoostError):
    default_code = "AUTH_INVALID"


class ForbiddenError(RoostError):
    default_code = "FORBIDDEN"


class NotFoundError(RoostError):
    default_code = "NOT_FOUND"


class InvalidRequestError(RoostError):
    default_code = "VALIDATION_FAILED"


def bad(field: str, rule: str) -> InvalidRequestError:
    """Of what was asked: a sentence with the field in front."""
    return InvalidRequestError(f"{field} {rule}.", details={"field": field})


class ConflictError(RoostError):
    default_code = "INVALID_STATE"


class LimitError(RoostError):
    default_code = "RATE_LIMITED"


class CapacityError(RoostError):
    default_code = "CAPACITY_EXCEEDED"


class UnsupportedError(RoostError):
    default_code = "UNSUPPORTED"


class MachineError(RoostError):
    default_code = "AGENT_LOST"


class TimeoutExpired(RoostError):
    default_code = "TIMEOUT"


class UnavailableError(RoostError):
    default_code = "DEPENDENCY_UNAVAILABLE"


class InternalError(RoostError):
    default_code = "INTERNAL"


# code -> (HTTP status, retryable, class)
CODES: dict[str, tuple[int, bool, type[RoostError]]] = {
    "AUTH_REQUIRED": (401, False, AuthError),
    "AUTH_INVALID": (401, False, AuthError),
    "FORBIDDEN": (403, False, ForbiddenError),
    "RUNG_REFUSED": (403, False, ForbiddenError),  # the profile, or the tenant, asks for more
    "PERMISSION_DENIED": (403, False, ForbiddenError),  # the machine's own file permissions
    "TOOL_DENIED": (403, False, ForbiddenError),  # the machine's list of tools has no such call
    "APPROVAL_DENIED": (403, False, ForbiddenError),
    "NOT_FOUND": (404, False, NotFoundError),
    "MACHINE_NOT_FOUND": (404, False, NotFoundError),
    "EXECUTION_NOT_FOUND": (404, False, NotFoundError),
    "TERMINAL_NOT_FOUND": (404, False, NotFoundError),
    "TEMPLATE_NOT_FOUND": (404, False, NotFoundError),
    "BUILD_NOT_FOUND": (404, False, NotFoundError),
    "KEY_NOT_FOUND": (404, False, NotFoundError),
    "PORT_NOT_FOUND": (404, False, NotFoundError),
    "TENANT_NOT_FOUND": (404, False, NotFoundError),
    "SNAPSHOT_NOT_FOUND": (404, False, NotFoundError),
    "SECRET_NOT_FOUND": (404, False, NotFoundError),
    "VOLUME_NOT_FOUND": (404, False, NotFoundError),
    "FILE_NOT_FOUND": (404, False, NotFoundError),
    "APPROVAL_NOT_FOUND": (404, False, NotFoundError),
    "METHOD_NOT_ALLOWED": (405, False, InvalidRequestError),
    "INVALID_BODY": (400, False, InvalidRequestError),
    "VALIDATION_FAILED": (422, False, InvalidRequestError),
    "INVALID_PATH": (422, False, InvalidRequestError),
    "DOCKERFILE_INVALID": (422, False, InvalidRequestError),  # details.line, where it is one line's
    "INVALID_CURSOR": (422, False, InvalidRequestError),
    "USER_NOT_FOUND": (422, False, InvalidRequestError),
    "COMMAND_NOT_FOUND": (422, False, InvalidRequestError),
    "FILE_KIND_REFUSED": (422, False, InvalidRequestError),
    "IS_A_DIRECTORY": (422, False, InvalidRequestError),
    "NOT_A_DIRECTORY": (422, False, InvalidRequestError),
    "RUNG_UNAVAILABLE": (422, False, InvalidRequestError),
    "PAYLOAD_TOO_LARGE": (413, False, InvalidRequestError),
    "FILE_TOO_LARGE": (413, False, InvalidRequestError),
    "RANGE_NOT_SATISFIABLE": (416, False, InvalidRequestError),
    "INVALID_STATE": (409, False, ConflictError),
    "ALREADY_EXISTS": (409, False, ConflictError),
    "RUNG_LOWER": (409, False, ConflictError),  # machines go up the ladder only
    "FILE_EXISTS": (409, False, ConflictError),
    "DIRECTORY_NOT_EMPTY": (409, False, ConflictError),
    "SNAPSHOT_INVALID": (409, False, ConflictError),  # damaged, or not of this host
    "IN_USE": (409, False, ConflictError),
    "VOLUME_IN_USE": (
        409,
        False,
        ConflictError,
    ),  # by machines that have it, in another way than asked
    "MACHINE_SLEEPING": (409, False, ConflictError),  # and nothing but ``wake`` wakes it
    "IDEMPOTENCY_KEY_REUSED": (409, False, ConflictError),
    "IDEMPOTENCY_IN_PROGRESS": (409, True, ConflictError),
    "APPROVAL_EXPIRED": (409, False, ConflictError),  # nobody decided in time
    "REVISION_MISMATCH": (412, False, ConflictError),
    "RATE_LIMITED": (429, True, LimitError),
    "QUOTA_EXCEEDED": (429, False, LimitError),
    "LIMIT_EXCEEDED": (429, True, LimitError),
    "CAPACITY_EXCEEDED": (503, True, CapacityError),
    "STORAGE_FULL": (507, True, CapacityError),
    "MACHINE_DISK_FULL": (507, False, CapacityError),
    "UNSUPPORTED": (501, False, UnsupportedError),
    "AGENT_LOST": (502, True, MachineError),
    "MACHINE_FAILED": (502, True, MachineError),
    "PORT_CLOSED": (502, True, MachineError),
    "PORT_BAD_ANSWER": (
        502,
        False,
        MachineError,
    ),  # what listens there speaks no HTTP/1.1, or broke off
    "BROWSER_DOWN": (502, True, MachineError),
    "NAVIGATION_FAILED": (502, True, MachineError),  # the browser could not open the address
    "DISPLAY_DOWN": (502, True, MachineError),
    "DISPLAY_LOCKED": (
        409,
        True,
        ConflictError,
    ),  # a program in the machine has the screen or the input
    "KERNEL_DOWN": (502, True, MachineError),
    "TEMPLATE_BUILD_FAILED": (502, True, MachineError),
    "TEMPLATE_NOT_READY": (502, False, MachineError),  # the machine runs; what it starts does not
    "TIMEOUT": (504, True, TimeoutExpired),
    "DEPENDENCY_UNAVAILABLE": (503, True, UnavailableError),
    "DATABASE_UNAVAILABLE": (503, True, UnavailableError),
    "DATABASE_CORRUPT": (503, False, UnavailableError),
    "DAEMON_UNREACHABLE": (503, True, UnavailableError),
    "SHUTTING_DOWN": (503, True, UnavailableError),
    "PORT_IN_USE": (409, False, ConflictError),
    "DATA_DIR_IN_USE": (409, False, ConflictError),
    "CONFIG_INVALID": (422, False, InvalidRequestError),
    "HOST_UNSUPPORTED": (501, False, UnsupportedError),
    "INTERNAL": (500, False, InternalError),
}


def from_wire(status: int, body: Mapping[str, Any]) -> RoostError:
    """The typed error of a wire body; an unknown code keeps its text under the class of its status."""
    code = str(body.get("error_code", ""))
    message = str(body.get("message", "")) or f"The server answered {status}."
    details = body.get("details")
    retryable = body.get("retryable")
    if code not in CODES:
        details = {**(details if isinstance(details, Mapping) else {}), "unknown_code": code}
        code = _FALLBACK.get(status, "INTERNAL")
    return error(
        code,
        message,
        details=details if isinstance(details, Mapping) else None,
        retryable=retryable if isinstance(retryable, bool) else None,
    )


def error(
    code: str,
    message: str,
    *,
    details: Mapping[str, Any] | None = None,
    retryable: bool | None = None,
) -> RoostError:
    """The error of ``code``, in its class."""
    return CODES[code][2](message, code=code, details=details, retryable=retryable)


_FULL = {
    "CAPACITY_EXCEEDED": "This host has no room for it now: let a machine sleep or delete one, or retry later.",
    "STORAGE_FULL": "This host's disks are full now: delete machines or snapshots, or retry later.",
}
# By the detail that names it.
_RUNG = {
    "asked": "No driver for {} can be used on this host: ask for another, or for none.",
    "driver": "Machines of the driver {} cannot be started on this host now. One that sleeps keeps all it has; promote "
    "takes it up the ladder.",
}
_OWN = ("machine_id", "snapshot_id", "execution_id")


def discreet(failure: RoostError) -> RoostError:
    """The same, for any tenant to read: how full the host is, with how many machines, and why it cannot offer a rung,
    is the admin's to know."""
    cause = failure.details.get("cause")
    if isinstance(cause, Mapping) and cause.get("error_code") in _FULL:
        known = {**failure.details, "cause": {"error_code": cause["error_code"]}}
        failure = error(failure.code, failure.message, details=known, retryable=failure.retryable)
    text = _FULL.get(failure.code) if failure.retryable else None
    if failure.code == "RUNG_UNAVAILABLE":
        about = failure.details
        text = next((said.format(about[n]) for n, said in _RUNG.items() if n in about), None)
    if text is None:
        return failure
    details = {name: failure.details[name] for name in _OWN if name in failure.details}
    return error(failure.code, text, details=details)


_FALLBACK = {
    400: "INVALID_BODY",
    401: "AUTH_INVALID",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    409: "INVALID_STATE",
    412: "REVISION_MISMATCH",
    413: "PAYLOAD_TOO_LARGE",
    422: "VALIDATION_FAILED",
    429: "RATE_LIMITED",
    501: "UNSUPPORTED",
    502: "AGENT_LOST",
    503: "DEPENDENCY_UNAVAILABLE",
    504: "TIMEOUT",
    507: "STORAGE_FULL",
}
