"""Best of N: a repository is cloned and installed, three forks try a strategy each, the winner stays, the others go."""

import os

from pandastack import Sandbox

sandbox = Sandbox.create(template="agent", ttl_seconds=900)
sandbox.exec(
    f"git clone -q {os.environ['REPOSITORY']} /work/solver", timeout_seconds=60, check=True
)
sandbox.exec(
    "cd /work/solver && pip install -q --no-index --no-build-isolation --no-deps --break-system-packages .",
    timeout_seconds=120,
    check=True,
)

children = sandbox.fork_tree(3)
scores = {}
for child, strategy in zip(children, ("greedy", "random", "exact"), strict=True):
    result = child.exec(
        f"solver --strategy {strategy} | tee /work/answer", timeout_seconds=60, check=True
    )
    scores[child.id] = float(result.stdout)
winner = max(children, key=lambda child: scores[child.id])
said = winner.promote(cleanup_siblings=True)
assert said["winner"] == winner.id and len(said["deleted"]) == 2, said

alive = {each.id for each in Sandbox.list()}
assert winner.id in alive and alive.isdisjoint(said["deleted"])
assert winner.exec("cat /work/answer").stdout == "3.0\n"  # exact
# And in one call.
again = sandbox.explore(
    [f"solver --strategy {each} | tee /work/answer" for each in ("greedy", "exact", "random")],
    score_fn=lambda child, outcome: float(outcome.stdout_tail or 0),
)
assert again.winner.exec("cat /work/answer").stdout == "3.0\n"
for each in (winner, again.winner, sandbox):
    each.kill()
print("best of n: done")
