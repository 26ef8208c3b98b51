"""Code in a machine's Jupyter kernels."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from roost.client._results import CodeOutput, CodeParts, CodeResult, CodeTimeout
from roost.client._sync._events import events
from roost.client._sync._http import HTTP
from roost.client._wire import given, segment
from roost.errors import error, from_wire

OnText = Callable[[str], object]
OnResult = Callable[[CodeOutput], object]


class Code:
    """``machine.code``: the kernels behind ``machine.run_code``. A context is a kernel with its names; the first code
    that names one begins it."""

    def __init__(self, http: HTTP, machine_id: str) -> None:
        self._http = http
        self._path = f"/v1/machines/{machine_id}/code"

    def run(
        self,
        code: str,
        *,
        language: str = "python",
        context: str | None = None,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
        on_result: OnResult | None = None,
    ) -> CodeResult:
        """See ``machine.run_code``."""
        body = given(
            code=code,
            language=language,
            context=context,
            timeout_ms=None if timeout is None else max(1, round(timeout * 1000)),
        )
        told = {"stdout": on_stdout, "stderr": on_stderr, "result": on_result}
        parts = CodeParts()
        source = events(self._http, "POST", f"{self._path}/stream", json=body, once=True)
        try:
            for event in source:
                if event.name == "error":
                    raise from_wire(502, event.data)
                said: Any = parts.take(event.name, event.data)
                listener: Any = told.get(event.name)
                if listener is not None:
                    listener(said)
        finally:
            source.close()  # type: ignore[attr-defined]
        if parts.end is None:
            raise error("DAEMON_UNREACHABLE", "The stream ended before the code did.")
        result = parts.result()
        if result.status == "expired":
            raise CodeTimeout(result)
        return result.check() if check else result

    def contexts(self) -> builtins.list[dict[str, Any]]:
        """[{name, language, busy, execution_count}]."""
        data = self._http.call("GET", f"{self._path}/contexts")
        return builtins.list(data["items"])

    def restart(self, context: str = "default") -> None:
        """A new kernel: what it knew is gone, what runs in it ends. Raises NotFoundError."""
        self._http.call("POST", f"{self._path}/contexts/{segment(context)}/restart")

    def interrupt(self, context: str = "default") -> None:
        """What runs in it, as Ctrl-C would. Raises NotFoundError."""
        self._http.call("POST", f"{self._path}/contexts/{segment(context)}/interrupt")

    def delete(self, context: str) -> None:
        """Its kernel ends. Raises NotFoundError."""
        self._http.call("DELETE", f"{self._path}/contexts/{segment(context)}")
