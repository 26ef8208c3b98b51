"""A chat product that gives each user a machine of their own; nothing in it knows where it runs but for URL and key
(``DEDALUS_BASE_URL``, ``DEDALUS_API_KEY``).

    program_per_user_machine.py first             prints the machine's id
    program_per_user_machine.py next MACHINE_ID   the user's next turn, another day
"""

import json
import sys
import time

from dedalus_sdk import Dedalus
from websockets.sync.client import connect

client = Dedalus()


def run(machine_id, *command, timeout_ms=300_000):
    """An execution, waited for."""
    ran = client.machines.executions.create(
        machine_id=machine_id, command=list(command), timeout_ms=timeout_ms
    )
    while ran.status in ("wake_in_progress", "queued", "running"):
        time.sleep(0.2)
        ran = client.machines.executions.retrieve(
            machine_id=machine_id, execution_id=ran.execution_id
        )
    out = client.machines.executions.output(machine_id=machine_id, execution_id=ran.execution_id)
    if ran.status != "succeeded":
        raise SystemExit(f"{command}: {ran.status} {ran.exit_code}\n{out.stdout}\n{out.stderr}")
    return out.stdout


class Shell:
    """A terminal, driven by a small loop."""

    def __init__(self, machine_id):
        terminal = client.machines.terminals.create(
            machine_id=machine_id, width=120, height=40, shell="/bin/bash", cwd="/root"
        )
        while terminal.status == "wake_in_progress":
            time.sleep((terminal.retry_after_ms or 500) / 1000)
            terminal = client.machines.terminals.retrieve(
                machine_id=machine_id, terminal_id=terminal.terminal_id
            )
        self.ws = connect(terminal.stream_url)
        self.ws.send(json.dumps({"cols": 100, "rows": 30}))
        self.number = 0

    def do(self, line):
        """What a line of the user's says."""
        self.number += 1
        mark = f"--{self.number}-done--"
        self.ws.send(f"{line}\n".encode())
        self.ws.send(f"echo --{self.number}-'done--'\n".encode())
        said = b""
        while mark.encode() not in said:
            said += self.ws.recv(timeout=30)
        return said.decode(errors="replace")

    def leave(self):
        self.ws.send(b"exit\n")
        try:
            while True:
                self.ws.recv(timeout=10)
        except Exception:
            pass
        self.ws.close()


def first():
    machine = client.machines.create(vcpu=1, memory_mib=2048, storage_gib=10)
    machine_id = machine.machine_id
    while machine.status.phase != "running":
        time.sleep(0.5)
        machine = client.machines.retrieve(machine_id=machine_id)
    install = "apt-get update -q && apt-get install -y -q --no-install-recommends jq"
    run(machine_id, "/bin/bash", "-c", install)
    client.machines.wake(machine_id=machine_id)
    shell = Shell(machine_id)
    shell.do("echo 'write the report' > plan.txt")
    said = shell.do("jq -n '{days: (6 + 1)}' | tee week.json")
    assert '"days": 7' in said, said
    shell.leave()
    print(machine_id)


def following(machine_id):
    machine = client.machines.retrieve(machine_id=machine_id)
    assert machine.status.phase == "sleeping", machine
    client.machines.wake(machine_id=machine_id)
    assert run(machine_id, "cat", "/root/plan.txt") == "write the report\n"
    assert run(machine_id, "jq", ".days", "/root/week.json") == "7\n"
    shell = Shell(machine_id)
    said = shell.do("history")
    assert "echo 'write the report' > plan.txt" in said, said
    shell.leave()
    print("ok")


if __name__ == "__main__":
    first() if sys.argv[1] == "first" else following(sys.argv[2])
