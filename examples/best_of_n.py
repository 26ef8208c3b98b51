"""Best of N: one task, several ways to do it, each tried in a fork of the same machine; the best stays.

    python examples/best_of_n.py                    four ways to make a slow program fast
    python examples/best_of_n.py --parallel 2       two at a time
    python examples/best_of_n.py --keep             leave the machine

The machine has a program, its tests and a server that shows the result. Each strategy edits the program, as an agent
would; a score is how many times faster it got, none where the tests fail. The winner takes the machine's place: its
key and its preview are the winner's, so whoever asked for them goes on with the best attempt.
"""

from __future__ import annotations

import argparse
import os

from roost import ExecResult, Machine

PROGRAM = """
def primes(limit):
    found = []
    for n in range(2, limit):
        if all(n % d for d in range(2, n)):
            found.append(n)
    return found
"""
CHECK = """
import sys, time
sys.path.insert(0, "/workspace")
from primes import primes
assert primes(30) == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29], "the tests fail"
begun = time.perf_counter()
assert len(primes(3000)) == 430
print(time.perf_counter() - begun)
"""
# What an agent might come up with: a name, and what it makes of the program.
STRATEGIES = {
    "stop at the root": "sed -i 's/range(2, n))/range(2, int(n ** 0.5) + 1))/' primes.py",
    "known primes only": "sed -i 's/for d in range(2, n))/for d in found if d * d <= n)/' primes.py",
    "odd numbers only": "sed -i 's/range(2, limit)/range(3, limit, 2)/' primes.py",  # forgets 2
    "a sieve": """cat > primes.py <<'END'
def primes(limit):
    sieve = bytearray([1]) * limit
    for n in range(2, int(limit ** 0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
    return [n for n in range(2, limit) if sieve[n]]
END""",
}


def attempt(child: Machine, strategy: str) -> ExecResult:
    child.exec(STRATEGIES[strategy], cwd="/workspace", check=True)
    return child.exec(["python3", "/workspace/check.py"], timeout=60)


def speed(child: Machine, result: ExecResult) -> float | None:
    """Runs a second; None where the tests fail."""
    return 1 / float(result.stdout) if result.ok else None


def serve(machine: Machine) -> None:
    machine.start(["python3", "-m", "http.server", "8000", "-d", "/workspace"])
    listens = "until (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done"
    machine.exec(["bash", "-c", listens], timeout=30, check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--parallel", type=int, help="attempts at once (all)")
    options.add_argument("--keep", action="store_true", help="leave the machine")
    options.add_argument("--driver", help="of the machine")
    chosen = options.parse_args()
    key = f"best-of-n-{os.getpid()}"
    base = Machine.ensure(key, driver=chosen.driver, ttl="1h")
    base.files.write("/workspace/primes.py", PROGRAM)
    base.files.write("/workspace/check.py", CHECK)
    serve(base)
    url = base.url(8000)
    before = base.exec(["python3", "/workspace/check.py"], check=True).stdout.strip()
    print(f"{base.id} takes {float(before) * 1000:.0f} ms; its preview is {url}")

    found = base.explore(list(STRATEGIES), attempt, speed, parallel=chosen.parallel, timeout=120)

    print(found.table())
    assert found.best is not None
    assert found.best.diff is not None
    print(f"{found.best.strategy!r} won, and changed {', '.join(found.best.diff.changed)}")
    mine = Machine.get(key=key)
    assert mine.url(8000) == url
    if not mine.to_json()["memory_kept"]:  # a rung whose forks have the disk alone
        serve(mine)
    with mine.http(8000) as http:
        print(f"the same key and preview lead to {mine.id}:")
        print(http.get("/primes.py").text)
    if not chosen.keep:
        mine.destroy()


if __name__ == "__main__":
    main()
