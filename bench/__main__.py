"""``scripts/bench [name...]``: each benchmark prints rows of medians and their ratio to the raw tool of the same run.

Needs a daemon (``scripts/up``); takes the same URL and key as the SDK. ``--json FILE`` keeps all samples.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

from bench import (
    builds,
    computer,
    control,
    create,
    cycles,
    dialects,
    e2b,
    egress,
    execs,
    explore,
    files,
    gvisor,
    inside,
    many,
    mcp,
    memory,
    microvm,
    network,
    preview,
    templates,
    terminal,
    tiers,
    wakes,
    warm,
)
from bench.report import Report

BENCHES = {
    "builds": builds.run,
    "computer": computer.run,
    "control": control.run,
    "create": create.run,
    "cycles": cycles.run,
    "dialects": dialects.run,
    "e2b": e2b.run,
    "egress": egress.run,
    "exec": execs.run,
    "explore": explore.run,
    "files": files.run,
    "templates": templates.run,
    "inside": inside.run,
    "terminal": terminal.run,
    "many": many.run,
    "mcp": mcp.run,
    "memory": memory.run,
    "microvm": microvm.run,
    "network": network.run,
    "preview": preview.run,
    "gvisor": gvisor.run,
    "tiers": tiers.run,
    "wakes": wakes.run,
    "warm": warm.run,
}


def _fitting() -> list[str]:
    """Those that the running daemon's warm machines do not spoil, or that measure just them."""
    if warm.kept():
        return [
            name
            for name in BENCHES
            if name not in ("create", "cycles", "microvm", "gvisor", "templates")
        ]
    return [name for name in BENCHES if name != "warm"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(BENCHES)} (default: all)"
    )
    parser.add_argument("-n", type=int, default=20, help="samples of each (default 20)")
    parser.add_argument("--json", type=Path, help="write all samples here")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    report = Report()
    for name in args.names or _fitting():
        begun = time.monotonic()
        BENCHES[name](report, args.n)
        print(f"   ({name} took {time.monotonic() - begun:.0f} s)")
    if args.json:
        args.json.write_text(
            json.dumps(
                {"host": platform.uname()._asdict(), "rows": [r.to_json() for r in report.rows]},
                indent=1,
            )
        )
    missed = [r for r in report.rows if r.met is False]
    print(f"\n{len(report.rows)} rows, {len(missed)} over their bound")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
