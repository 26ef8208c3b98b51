"""An agent that writes a program, sees its test fail, and mends it, in a machine of its own.

    python examples/coding_agent.py                                      a script stands in for the model
    python examples/coding_agent.py --provider anthropic --model MODEL   with ANTHROPIC_API_KEY
    python examples/coding_agent.py --provider openai --model MODEL      with OPENAI_API_KEY

What the model asks for is done by ``roost.tools``: a bash that keeps its state, and an editor. The loop is ``work`` in models.py.
"""

from __future__ import annotations

from models import Step, arguments, work

from roost import Machine

TASK = (
    "In /workspace/stats write stats.py with a function median(numbers), and test_stats.py that tests it with unittest, "
    "for lists of odd and of even length. Run the tests, and mend the program until they pass."
)

PROGRAM = '''\
def median(numbers):
    """The middle one; of an even count the mean of the two in the middle."""
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]
'''
TEST = """\
import unittest
from stats import median

class Median(unittest.TestCase):
    def test_odd(self):
        self.assertEqual(median([3, 1, 2]), 2)

    def test_even(self):
        self.assertEqual(median([4, 1, 3, 2]), 2.5)
"""
WRONG = "    return ordered[len(ordered) // 2]\n"
RIGHT = """\
    half, odd = divmod(len(ordered), 2)
    return ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2
"""
EDITOR = "str_replace_based_edit_tool"


def edit(command: str, path: str, **more: object) -> tuple[str, dict[str, object]]:
    return EDITOR, {"command": command, "path": f"/workspace/stats/{path}", **more}


SCRIPT = [
    Step(
        "A place to work in.",
        [
            (
                "bash",
                {
                    "command": "mkdir -p /workspace/stats && cd /workspace/stats && python3 --version"
                },
            )
        ],
        "Python 3",
    ),
    Step(
        "The program and its test.",
        [
            edit("create", "stats.py", file_text=PROGRAM),
            edit("create", "test_stats.py", file_text=TEST),
            ("bash", {"command": "python3 -m unittest -q"}),  # the shell is still in that directory
        ],
        "AssertionError: 3 != 2.5",
    ),
    Step(
        "An even count has two in the middle.",
        [
            edit("view", "stats.py"),
            edit("str_replace", "stats.py", old_str=WRONG, new_str=RIGHT),
            ("bash", {"command": "python3 -m unittest -q"}),
        ],
        "OK",
    ),
    Step("Both tests pass."),
]


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    machine = Machine.create(ttl="1h")
    try:
        print(f"in machine {machine.id}")
        work(machine, TASK, SCRIPT, options)
        proof = machine.exec("python3 -m unittest", cwd="/workspace/stats")
        print(proof.stderr.strip().splitlines()[-1])
        raise SystemExit(0 if proof.ok else 1)
    finally:
        if not options.keep:
            machine.destroy()


if __name__ == "__main__":
    main()
