"""What must not hurt, numbered: attacks (1-53) and faults (F1-F11). Each has tests, marked ``case(N)``, anywhere below
``tests/``; what they found on each rung is the table in SPECIFICATION.md (``scripts/attacks``).
"""

from __future__ import annotations

CASES: dict[str, str] = {
    "1": "A fork bomb stops at the limit of processes",
    "2": "A memory bomb, a full `/dev/shm`: ended inside only, and told",
    "3": "A disk filled by bytes, inodes, holes: no space, inside only",
    "4": "File descriptors used up inside; streams of the API without end outside",
    "5": "CPU burnt, packets flooding: the share holds",
    "6": "Output without end, one huge line, characters cut in two: bounded everywhere",
    "7": "A console that is flooded is a ring",
    "8": "What an execution's timeout ends: setsid, double forks, deaf to SIGTERM",
    "9": "Zombies by the thousand are reaped",
    "10": "The agent killed or stopped by the machine's root",
    "11": "Writes to `/proc/sys`, sysrq, core_pattern, release_agent, `/sys`",
    "12": "mount, user namespaces, setns, pivot_root, handles to files",
    "13": "mknod, raw memory, `/dev/kvm`, block devices",
    "14": "ptrace, process_vm, kill and `/proc/PID/root` of others",
    "15": "Sockets of packets, of the kernel's ciphers, of VMs",
    "16": "Modules, bpf, perf, io_uring, userfaultfd, keys, kexec",
    "17": "Setuid programs of an ordinary user's machine",
    "18": "Descriptors that are inherited",
    "19": "The host's docker socket, D-Bus, ssh-agent, abstract sockets",
    "20": "After delete: cron, SysV IPC, shared memory, `/tmp`",
    "21": "Paths: `..`, absolute, NUL, encoded, overlong, surrogates",
    "22": "Links of every place, and links swapped during a call",
    "23": "A pipe, device or socket where a file was asked for",
    "24": "Archives that lead out, a hard link to a link, setuid, endless entries",
    "25": "Bombs of gzip and zstd, sizes that lie",
    "26": "A hostile tree fetched to the client's machine",
    "27": "A file that grows while it is read",
    "28": "Escape sequences and HTML in names and output",
    "29": "The agent's channel: lengths that lie, cuts, nesting, replayed numbers",
    "30": "A machine that says it is another",
    "31": "A socket replaced by a link to another",
    "32": "A machine that answers slowly or never holds up nobody else",
    "33": "Addresses, odd ports, UDP, QUIC, ICMP past the policy",
    "34": "Tunnels in names",
    "35": "DNS over HTTPS or TLS, resolvers of its own",
    "36": "SNI and Host that differ from where it goes, or are missing",
    "37": "IPv6 and IPv4 mapped in it",
    "38": "The metadata address in any spelling, and redirects to it",
    "39": "The gateway, the daemon, the host's services and networks",
    "40": "Machine to machine; forged ARP, MAC and sender",
    "41": "The policy during boot, fork and wake; tightening cuts what lives",
    "42": "Every route x every wrong caller; a foreign id is a missing one",
    "43": "Ids of 122 random bits at least, and asked for all the same",
    "44": "Names that are paths, options, commands, 64 KiB long",
    "45": "Options smuggled into a monitor's command line",
    "46": "Previews: another port's or machine's token; an origin for each machine",
    "47": "A WebSocket of another origin's page under a cookie",
    "48": "The port proxy as a way to elsewhere",
    "49": "A canary secret is where it was declared and nowhere else",
    "50": "Fifty forks draw fifty different numbers, before any command",
    "51": "machine-id, host name, token of a copy are its own; its MAC is every machine's, for no two share a link",
    "52": "The clock at the first command after a sleep",
    "53": "Connections from before a pause end cleanly",
    "F1": "The daemon killed in create, exec, sleep, snapshot, fork, wake, delete",
    "F2": "Monitor, agent or proxy killed",
    "F3": "Power lost in the middle of a snapshot",
    "F4": "The disk full in the middle of a snapshot",
    "F5": "A snapshot damaged, cut short, of another CPU or version",
    "F6": "A parent deleted while its children run",
    "F7": "The database locked, full, damaged",
    "F8": "Delete during create, two wakes, a fork during a snapshot",
    "F9": "Thousands made and destroyed: nothing of them is left",
    "F10": "The host restarted",
    "F11": "A new daemon with an old agent, an old snapshot with a new daemon",
}
RUNGS = {
    "workspace": "workspace",
    "user": "user",
    "runc": "runc",
    "gvisor": "gVisor",
    "qemu": "microVM",
}
# What has nothing to be tried on, and why.
MEANINGLESS: dict[str, dict[str, str]] = {
    "45": {
        "workspace": "it has no monitor",
        **dict.fromkeys(
            ("user", "runc", "gvisor"),
            "its command line has ids and paths of our own alone; what is asked for stands in its bundle",
        ),
    },
    "F5": dict.fromkeys(("workspace", "user", "runc"), "no memory is saved there"),
}
# What of a case that held no test tries there, and why.
_KILLED_IN = (
    "killed in create, exec and delete; at every step of all of them with a driver of the tests"
)
IN_PART: dict[str, dict[str, str]] = {
    "1": {"qemu": "its memory is the limit: its own kernel counts its processes, the host one"},
    "9": {"gvisor": "three hundred of them", "qemu": "five hundred of them"},
    "24": dict.fromkeys(RUNGS, "a thousand entries, not a million"),
    "50": {"qemu": "ten of them; fifty by hand (`--long`)"},
    "51": {"user": "SSH host keys of an image stay as they are: only root could read them"},
    "52": dict.fromkeys(RUNGS, "a sleep of seconds"),
    "F1": {
        **dict.fromkeys(("workspace", "user", "runc"), _KILLED_IN),
        "gvisor": "snapshot, and most boundaries of the others, by hand (`--long`)",
        "qemu": f"{_KILLED_IN}; sleep, wake, snapshot and fork by hand (`--long`)",
    },
}
