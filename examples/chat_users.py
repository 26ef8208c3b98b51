"""A chat product in a page: a machine for each user, asleep between turns, woken by the next one.

    python examples/chat_users.py                     three users, three turns each
    python examples/chat_users.py --restart "COMMAND" a daemon's restart in between, by that command

Each turn is one ``ensure`` (the user's machine: made the first time, found ever after) and one ``exec`` (which wakes
it). Nothing says when to sleep: a machine nobody uses is frozen after ``autosleep``, and after ``hibernate_after`` its
memory goes to the disk; both are short here, so that one sees it happen. What it cost stands at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from decimal import Decimal

from roost import AsyncClient, AsyncMachine

USERS = ("ada", "grace", "linus")
# What an agent might do in a user's turn. The second goes on from the first, the third from both.
TURNS = (
    'mkdir -p /workspace && cd /workspace && echo "$USER_NAME\'s notes" > notes.txt && '
    "(nohup python3 -c 'import time; t = time.monotonic(); n = 0\n"
    'while True: n += 1; open("/tmp/ticks", "w").write(str(n)); time.sleep(0.2)\' >/dev/null 2>&1 &) && cat notes.txt',
    "cd /workspace && echo 'second turn' >> notes.txt && wc -l < notes.txt",
    "cd /workspace && tail -n 1 notes.txt && test -s /tmp/ticks && echo 'the process of turn one still runs'",
)


async def turn(client: AsyncClient, user: str, command: str, prefix: str) -> tuple[str, float, str]:
    """What one message of a user costs in time; where the machine was before, milliseconds, what it said."""
    begun = time.perf_counter()
    found = await AsyncMachine.list(key=f"{prefix}{user}", client=client)
    before = (found[0].tier or found[0].phase) if found else "not there"
    machine = await AsyncMachine.ensure(
        f"{prefix}{user}",
        memory_mib=256,
        env={"USER_NAME": user},
        autosleep="2s",
        hibernate_after="4s",
        client=client,
    )
    done = await machine.exec(command, timeout=60, check=True)
    return before, (time.perf_counter() - begun) * 1000, done.stdout.strip()


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pause", type=float, default=4.0, help="seconds between turns")
    options.add_argument("--restart", help="a command that restarts the daemon, run between turns")
    options.add_argument("--keep", action="store_true", help="leave the machines")
    chosen = options.parse_args()
    prefix = f"chat-{os.getpid()}-"
    async with AsyncClient() as client:
        for number, command in enumerate(TURNS, 1):
            print(f"turn {number}")
            for user in USERS:
                before, ms, said = await turn(client, user, command, prefix)
                print(f"  {user:6} was {before:10} {ms:7.0f} ms  {said.splitlines()[-1]}")
            if number == len(TURNS):
                break
            if chosen.restart and number == 2:
                print(f"the daemon is restarted: {chosen.restart}")
                restart = await asyncio.create_subprocess_shell(chosen.restart, close_fds=False)
                if await restart.wait():
                    raise SystemExit("the daemon could not be restarted")
            await asyncio.sleep(
                chosen.pause * number
            )  # frozen after the first, on the disk after the second
        machines = [
            m for m in await AsyncMachine.list(client=client) if (m.key or "").startswith(prefix)
        ]
        used = await client.usage(group_by="machine")
        mine = [row for row in used["items"] if row["machine_id"] in {m.id for m in machines}]
        awake = sum(float(row["vcpu_seconds"]) for row in mine)
        memory = sum(float(row["memory_gib_seconds"]) for row in mine)
        cost = sum((Decimal(row["cost"]) for row in mine), Decimal(0))
        print(
            f"{awake:.1f} vCPU-seconds, {memory:.1f} GiB-seconds of memory: {cost} {used['prices']['currency']}"
        )
        if not chosen.keep:
            await asyncio.gather(*(m.destroy() for m in machines))


if __name__ == "__main__":
    asyncio.run(main())
