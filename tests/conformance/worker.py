"""Runs in a foreign environment (standard library only): snippets from stdin in one namespace, answers on stdout."""

import ast
import asyncio
import base64
import inspect
import json
import sys
import traceback


def plain(value):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    return repr(value)


def raised(failure):
    fields = {k: plain(v) for k, v in vars(failure).items() if not k.startswith("_")}
    return {
        "kind": type(failure).__name__,
        "kinds": [each.__name__ for each in type(failure).__mro__],
        "text": str(failure),
        "fields": json.loads(json.dumps(fields, default=repr)),
    }


def main():
    out = sys.stdout
    sys.stdout = sys.stderr  # what snippets print is no answer
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    names = {"__name__": "worker", "asyncio": asyncio}
    for line in sys.stdin:
        asked = json.loads(line)
        names.update(asked.get("given", {}))
        try:
            kind = "eval" if "value" in asked else "exec"
            code = compile(
                asked.get("value", asked.get("run")),
                "<test>",
                kind,
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            )
            got = eval(code, names)
            if inspect.isawaitable(got) and (kind == "eval" or inspect.iscoroutine(got)):
                got = loop.run_until_complete(got)
            said = {"value": plain(got) if kind == "eval" else None}
        except BaseException as failure:
            traceback.print_exc()
            said = {"raised": raised(failure)}
        print(json.dumps(said), file=out, flush=True)


main()
