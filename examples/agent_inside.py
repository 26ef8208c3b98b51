"""An agent that lives in its machine, and asks for what it needs itself.

    python examples/agent_inside.py            a scripted agent, so that it runs anywhere
    python examples/agent_inside.py --template agent --setup "npm install -g SOME-AGENT" --agent "some-agent -p" \\
        --secret SOME_API_KEY=api.some-provider.example
                                               a real one, whose key it never sees

The agent is driven from outside twice: by an exec (one task, an answer) and on a terminal (a conversation). From inside
it asks its daemon by ``roost``, which needs no network and no key: how much it may still do, a URL for what it built, a
copy of itself to try something in, sleep when it is done. What it may is said when the machine is made.
"""

from __future__ import annotations

import argparse
import os
import re
import sys

from roost import Machine, Secret

# As an agent's command line is: a task as argument is done and answered; without one it talks.
SCRIPTED = r"""#!/usr/bin/env python3
import json, os, subprocess, sys

def roost(*words):
    done = subprocess.run(["roost", *words], capture_output=True, text=True)
    return (done.stdout if done.returncode == 0 else done.stderr).strip()

def act(task):
    if "build" in task:
        os.makedirs("/workspace/site", exist_ok=True)
        with open("/workspace/site/index.html", "w") as page:
            page.write("<h1>built by an agent inside</h1>\n")
        return "wrote /workspace/site/index.html"
    if "show" in task:
        subprocess.Popen(["python3", "-m", "http.server", "8000", "-d", "/workspace/site"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, start_new_session=True)
        return "it is at " + roost("expose", "8000")
    if "budget" in task:
        return "forks left: %d" % json.loads(roost("--json", "budget"))["forks"]["left"]
    if "try" in task:
        which = roost("fork")
        if which == "child":  # this very process, in the copy
            with open("/workspace/tried", "w") as file:
                file.write("another way, tried in a copy\n")
            return "tried it"
        return "a copy tries it: " + which
    if "rest" in task:
        return roost("sleep")
    return "I can build, show, try, rest and tell my budget."

if len(sys.argv) > 1:
    print(act(" ".join(sys.argv[1:])))
else:
    while True:
        sys.stdout.write("agent> ")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line or line.strip() == "bye":
            break
        print(act(line), flush=True)
"""


def scripted(machine: Machine) -> None:
    machine.files.write("/usr/local/bin/scripted-agent", SCRIPTED, mode=0o755)
    agent = ["scripted-agent"]
    print("exec:     ", machine.exec([*agent, "build a page"], check=True).stdout.strip())
    with machine.terminal(command=agent) as terminal:
        terminal.read_until("agent> ")
        for line, waits in (("show it", 60), ("your budget?", 60), ("try another way", 180)):
            terminal.send(line + "\n")
            said = terminal.read_until("agent> ", timeout=waits)
            answer = said.replace("\r", "").split("\n")[1]
            print(f"{line:10}", answer)
            if copy := re.search(r"a copy tries it: (\w+)", answer):
                look(Machine.get(copy[1]))
        terminal.send("rest now\n")
        print("rest now  ", terminal.read_until("agent> ").replace("\r", "").split("\n")[1])
    for state in machine.states():
        if state.phase == "sleeping":
            print("the machine sleeps:", state.tier)
            break
    print("and wakes: ", machine.exec("cat /workspace/site/index.html", check=True).stdout.strip())


def look(copy: Machine) -> None:
    """What the agent did in its copy, which is then of no more use. A rung that keeps no memory has the files alone."""
    if copy.to_json()["memory_kept"]:
        found = copy.exec(
            "for i in $(seq 100); do test -s /workspace/tried && break; sleep 0.2; done; cat /workspace/tried"
        )
        print("in the copy:", found.stdout.strip())
    copy.destroy()


def real(machine: Machine, agent: str, task: str) -> None:
    """On a terminal, as its user would; what it writes is shown as it comes."""
    with machine.terminal(
        command=["/bin/sh", "-c", f'exec {agent} "$TASK"'], env={"TASK": task}
    ) as terminal:
        while not terminal.closed:
            sys.stdout.write(terminal.read(timeout=600))
            sys.stdout.flush()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--driver", help="gvisor, runc, qemu; default: the host's choice")
    options.add_argument("--template", default="base")
    options.add_argument("--setup", help="a shell command that installs the agent")
    options.add_argument("--agent", help="the agent's command; its task is the last argument")
    options.add_argument(
        "--task",
        default="Build a small web page, serve it on port 8000 and show it with roost expose 8000.",
    )
    options.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=HOST",
        help="from this environment; for that host",
    )
    chosen = options.parse_args()
    secrets = []
    for each in chosen.secret:
        name, _, host = each.partition("=")
        secrets.append(Secret(name, os.environ[name], [host]))
    with Machine.create(
        chosen.template,
        driver=chosen.driver,
        memory_mib=2048 if chosen.agent else 256,
        secrets=secrets,
        allow_inside=["expose", "fork", "sleep"],
        inside_forks=3,
        ttl="1h",
    ) as machine:
        print("machine:  ", machine.id)
        if chosen.agent is None:
            scripted(machine)
            return
        if chosen.setup:
            machine.exec(chosen.setup, timeout=600, check=True)
        real(machine, chosen.agent, chosen.task)


if __name__ == "__main__":
    main()
