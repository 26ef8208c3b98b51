"""The list of commands and the first page of help, without the parser: it must come at once."""

from __future__ import annotations

HELP = "Roost: a machine for every agent to come home to."
EPILOG = "Machines are named by id, the start of an id (4 characters), key or name."

# name -> (module below roost.cli, help). A module's ``app`` holds the command of that name, or is the group.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Start the daemon, bake the base template, make a first machine."),
    "down": ("down", "Stop the daemon; machines go on. --purge removes everything."),
    "doctor": ("doctor", "What this host can do, and how to mend the rest."),
    "create": ("machines", "Make a machine."),
    "ensure": ("machines", "The machine of a key: made if there is none, woken if it slept."),
    "ls": ("machines", "List machines."),
    "show": ("machines", "Everything about one machine."),
    "exec": ("exec", "Run a command in a machine."),
    "shell": ("shell", "Open a terminal in a machine."),
    "ssh": ("ssh", "SSH into a machine with OpenSSH's client; --config for other programs."),
    "port-forward": ("port_forward", "Ports of a machine as ports here, raw TCP."),
    "cp": ("cp", "Copy files and directories to, from and between machines."),
    "fork": ("snapshots", "Machines that go on from another's instant."),
    "snapshot": ("snapshots", "Snapshots of machines: create, ls, show, rm, export, import."),
    "volume": ("volume", "Disks that outlive machines: create, ls, show, rm."),
    "explore": ("explore", "Best of N: fork, run, score, keep the best in its parent's place."),
    "promote": ("explore", "Put a fork in its parent's place, or a machine on a higher rung."),
    "diff": ("diff", "What differs between the files of two machines."),
    "tree": ("tree", "Which machines and snapshots came of which."),
    "rollback": ("snapshots", "Take a machine back to a snapshot of its own."),
    "secret": ("secret", "What a machine's requests carry and it never sees: set, ls, rm."),
    "egress": ("egress", "What a machine may reach, what it tried, and changing it."),
    "tools": ("tools", "Which programs may be run in a machine, and changing it."),
    "approvals": ("approvals", "Commands that wait for approval."),
    "approve": ("approvals", "Let a command run that waits for approval."),
    "deny": ("approvals", "Refuse a command that waits for approval."),
    "inside": ("inside", "What a machine may ask of its daemon itself, and changing it."),
    "port": ("port", "Ports shown outside: add, ls, rm."),
    "open": ("port", "Open a port of a machine in the browser."),
    "screenshot": ("screenshot", "Save a picture of a machine's screen or of its browser's page."),
    "browser": ("browser", "The browser of a machine: goto, text, pages, eval, click, fill, cdp."),
    "computer": ("computer", "Mouse, keyboard, windows and clipboard of a machine with a screen."),
    "run-code": ("run_code", "Run code in a machine's Jupyter kernel, which keeps its names."),
    "logs": ("logs", "A machine's life, or the daemon's log."),
    "watch": ("machines", "What a machine comes to be, as it happens."),
    "metrics": ("machines", "What a machine used while it ran: CPU, memory, disk."),
    "ps": ("machines", "Commands that run in a machine."),
    "usage": ("usage", "What was used and what it costs; or what one machine uses now."),
    "sleep": ("machines", "Take a machine off the host; what needs it wakes it."),
    "wake": ("machines", "Start a sleeping machine."),
    "reboot": ("machines", "Start a machine again from its disk; its processes are gone."),
    "rm": ("machines", "Destroy machines and their disks."),
    "template": (
        "template",
        "Templates machines start from: ls, show, build, tag, rm, gc, export, import.",
    ),
    "key": ("key", "API keys: show, ls, create, rm (or revoke)."),
    "ssh-key": ("ssh_key", "Public keys that may come in over SSH: add, list, rm."),
    "tenant": ("tenant", "Tenants and their quotas: create, ls, show, set, rm."),
    "audit": ("audit", "Who changed what, when, from where."),
    "mcp": ("mcp", "Machines as tools for agents' hosts (MCP), over stdio or --http."),
    "completion": ("about", "Print the completion script of a shell."),
    "version": ("about", "Versions of this command and of the daemon."),
}
GROUPS = {"template", "volume", "key", "ssh-key", "tenant", "secret", "browser", "computer"}


def overview() -> str:
    """What ``roost --help`` prints."""
    options = {
        "--install-completion": "Install completion for this shell.",
        "--show-completion": "Print it instead.",
        "--help": "Of a command: roost COMMAND --help.",
    }
    lines = ["Usage: roost [OPTIONS] COMMAND [ARGS]...", "", f"  {HELP}", "", "Commands:"]
    lines += [f"  {name:<14}{text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "Options:"]
    lines += [f"  {name:<22}{text}" for name, text in options.items()]
    return "\n".join([*lines, "", f"  {EPILOG}", ""])
