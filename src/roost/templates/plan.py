"""What a Dockerfile means: a state that its instructions change, and the steps that change files. Pure.

    begin(base) -> for each instruction: ``step = plan.take(instruction)``; metadata gives None

The state is known only while the build goes on, since what it begins from has variables, too; what can be found
wrong before is found by ``check``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roost.templates import substitute
from roost.templates.dockerfile import Dockerfile, Instruction, json_form, wrong
from roost.templates.roosttoml import RoostToml
from roost.templates.substitute import Unreadable

SHELL = ("/bin/sh", "-c")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# May be given though no ARG names them, are told to RUN, and are no part of a key.
PROXIES = frozenset(
    each
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for each in (name, name.upper())
)
MAX_ENV = 128 * 1024
MAX_VARIABLES = 5000  # each step has all of them; an image from elsewhere brings 4096 at most
MAX_WORDS = 1000  # of what ARG, ENV, LABEL and EXPOSE name at once
MAX_INLINE = 4 << 20  # of here-documents that are files, in all
MAX_LABELS = 64
MAX_PORTS = 100
_BYTES = {
    "RUN",
    "COPY",
    "ADD",
}  # scripts and names of files may be any; the rest is a template's text
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
SECRET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_REMOTE = re.compile(r"(?:https?|ftp|ssh|git)://|git@", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SecretMount:
    """Of one RUN: as a file on a tmpfs, or as a variable (then ``target`` is None)."""

    id: str
    target: str | None
    env: str | None
    mode: int
    owner: str  # "uid:gid", or ""
    required: bool


@dataclass(frozen=True, slots=True)
class Run:
    argv: tuple[str, ...]
    env: Mapping[str, str]
    user: str
    workdir: str
    secrets: tuple[SecretMount, ...]
    proxies: Mapping[str, str]
    script: str | None = None  # a here-document with a first line of its own (#!)


@dataclass(frozen=True, slots=True)
class Inline:
    """A file whose content stands in the Dockerfile."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Copy:
    """``target`` is absolute; with a final slash it is a directory."""

    sources: tuple[str, ...]
    inline: tuple[Inline, ...]
    target: str
    owner: str
    mode: int | None
    unpack: bool  # ADD: archives are unpacked


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str


Step = Run | Copy | MakeDirectory


@dataclass(slots=True)
class State:
    env: dict[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    shell: tuple[str, ...] = SHELL
    args: dict[str, str] = field(default_factory=dict)  # those declared so far that have a value
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    entrypoint: list[str] | str | None = None
    cmd: list[str] | str | None = None
    own_start: bool = False  # this Dockerfile said CMD or ENTRYPOINT
    ready: dict[str, Any] | None = None
    own_ready: bool = False


class _Guess(dict[str, str]):
    """Of a variable that is not known: what passes for a path, a port, a mode and a user."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name, "755")


class Plan:
    """``given``: the build's own arguments."""

    def __init__(self, dockerfile: Dockerfile, given: Mapping[str, str]) -> None:
        self.dockerfile = dockerfile
        self._given = dict(given)
        self._used: set[str] = set()
        self._global: dict[str, str] = {}
        self._base: dict[str, Any] = {}
        self._begun = False
        self._trial = False
        self._inline = 0
        self.state = State()

    # --- before anything is known ---------------------------------------------------------------

    def check(self) -> str:
        """What FROM names. Raises DOCKERFILE_INVALID for what is wrong whatever it begins from."""
        reference = ""
        trial = Plan(self.dockerfile, self._given)
        trial._trial = True  # variables of what it begins from are not known yet
        for each in self.dockerfile.instructions:
            if each.keyword == "FROM":
                reference = trial._from(each)
                trial.begin({})
            else:
                trial.take(each)
        return reference

    @property
    def unused(self) -> list[str]:
        """Arguments that were given and that no ARG named."""
        return sorted(set(self._given) - self._used - PROXIES)

    # --- while it goes on -----------------------------------------------------------------------

    def begin(self, base: Mapping[str, Any]) -> None:
        """``base``: the config of what FROM names."""
        self._base = dict(base)
        self._begun = True
        own = dict(base.get("env") or {})
        self.state = State(
            env={str(k): str(v) for k, v in own.items()},
            user=str(base.get("user") or ""),
            workdir=str(base.get("workdir") or ""),
            labels=dict(base.get("labels") or {}),
            ports=list(base.get("ports") or []),
            entrypoint=base.get("entrypoint"),
            cmd=base.get("cmd"),
            ready=base.get("ready"),
        )

    def take(self, each: Instruction) -> Step | None:
        """What it changes of files; what it changes of the state is done. Raises DOCKERFILE_INVALID."""
        if each.keyword not in _BYTES and not _is_text(each.text):
            raise wrong(each.line, f"{each.keyword}: there are bytes in it that are no UTF-8")
        try:
            step: Step | None = self._TAKE[each.keyword](self, each)
            return step
        except Unreadable as failure:
            raise wrong(each.line, f"{each.keyword}: {failure}") from failure

    def config(self, beside: RoostToml | None) -> dict[str, Any]:
        """The template's."""
        state, base = self.state, self._base
        kept = ("start", "warmup", "size", "bake", "no_new_privs")
        config: dict[str, Any] = {key: base[key] for key in kept if base.get(key) is not None}
        config |= {"env": dict(state.env), "user": state.user, "workdir": state.workdir}
        if state.labels:
            config["labels"] = dict(state.labels)
        if state.ports:
            config["ports"] = list(state.ports)
        if state.own_start:
            config.pop("start", None)
            if (start := _start(state.entrypoint, state.cmd)) is not None:
                config["start"] = start
        # What a template inherits to start it does not inherit once it starts something else.
        if state.ready is not None and (state.own_ready or not state.own_start):
            config["ready"] = dict(state.ready)
        # For a template FROM this one that says CMD.
        config |= {k: v for k, v in (("entrypoint", state.entrypoint), ("cmd", state.cmd)) if v}
        if beside is not None:
            said = beside.config()
            if "start" in said and not state.own_ready:
                config.pop("ready", None)
            for key in ("size", "labels"):
                if key in said:
                    said[key] = {**config.get(key, {}), **said[key]}
            if "ports" in said:
                said["ports"] = sorted({*config.get("ports", []), *said["ports"]})
            config |= said
        return config

    # --- instructions ---------------------------------------------------------------------------

    @property
    def _variables(self) -> dict[str, str]:
        kind = _Guess if self._trial else dict
        return kind({"PATH": PATH, **self.state.args, **self.state.env})

    def _word(self, text: str) -> str:
        return substitute.word(text, self._variables, self.dockerfile.escape)

    def _split(self, each: Instruction) -> list[str]:
        words = substitute.split(each.text, self.dockerfile.escape)
        if len(words) > MAX_WORDS:
            raise wrong(each.line, f"{each.keyword} has more than {MAX_WORDS} words")
        return words

    def _from(self, each: Instruction) -> str:
        try:
            words = substitute.split(each.text, self.dockerfile.escape)
            name = substitute.word(words[0] if words else "", self._global, self.dockerfile.escape)
        except Unreadable as failure:
            raise wrong(each.line, f"FROM: {failure}") from failure
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise wrong(each.line, "FROM takes one name, and perhaps AS and another")
        platform = each.flag("platform")
        if platform is not None and not platform.startswith("$") and platform != "linux/amd64":
            raise wrong(each.line, f"FROM --platform={platform}: machines here are linux/amd64")
        if not name:
            raise wrong(each.line, f"FROM {words[0]}: the name is empty; give its ARG a value")
        if name == "scratch":
            raise wrong(
                each.line, "FROM scratch: a machine needs a system to start; begin with base"
            )
        return name

    def reference(self, each: Instruction) -> str:
        """Of FROM, once the ARGs before it were taken."""
        return self._from(each)

    def _take_from(self, each: Instruction) -> None:
        return None

    def _arg(self, each: Instruction) -> None:
        begun = self._begun
        held = self.state.args if begun else self._global
        variables = self._variables if begun else self._global
        for text in self._split(each):
            name, equals, default = text.partition("=")
            if not _NAME.fullmatch(name):
                raise wrong(each.line, f"ARG {name[:40]!r}: that is no name")
            value: str | None = None
            if name in self._given:
                value = self._given[name]
                self._used.add(name)
            elif equals:
                value = substitute.word(default, variables, self.dockerfile.escape)
            elif begun and name in self._global:
                value = self._global[name]
            if value is not None:
                held[name] = value
                if name not in self.state.env:
                    variables[name] = value
        _check_size(each, held)

    def _env(self, each: Instruction) -> None:
        self.state.env |= dict(self._pairs(each))
        _check_size(each, self.state.env)

    def _label(self, each: Instruction) -> None:
        self.state.labels |= dict(self._pairs(each, labels=True))
        if len(self.state.labels) > MAX_LABELS:
            raise wrong(each.line, f"LABEL: there are more than {MAX_LABELS} labels")

    def _pairs(self, each: Instruction, labels: bool = False) -> list[tuple[str, str]]:
        words = self._split(each)
        if "=" not in words[0]:
            if labels or len(words) < 2:
                raise wrong(each.line, f"{each.keyword} takes NAME=VALUE")
            # The old form: the rest of the line is the value.
            name = words[0]
            pairs = [(name, self._word(each.text[len(name) :].strip()))]
        else:
            before = dict(self._variables)  # of one instruction none sees another's value
            pairs = []
            for text in words:
                name, equals, value = text.partition("=")
                if not equals:
                    raise wrong(each.line, f"{each.keyword}: {text[:40]!r} is not NAME=VALUE")
                name = substitute.word(name, before, self.dockerfile.escape)
                pairs.append((name, substitute.word(value, before, self.dockerfile.escape)))
        for name, value in pairs:
            if (not labels and not _NAME.fullmatch(name)) or not name or len(name) > 256:
                raise wrong(each.line, f"{each.keyword}: {name[:40]!r} is no name")
            if "\0" in value or len(value) > MAX_ENV:
                raise wrong(each.line, f"{each.keyword}: the value of {name[:40]} is too long")
        return pairs

    def _workdir(self, each: Instruction) -> MakeDirectory:
        path = absolute(self._word(each.text), self.state.workdir, each.line)
        self.state.workdir = path.rstrip("/") or "/"
        return MakeDirectory(self.state.workdir)

    def _user(self, each: Instruction) -> None:
        name = self._word(each.text)
        if not name or len(name) > 64 or any(c.isspace() for c in name):
            raise wrong(each.line, f"USER {name[:40]!r}: that is no user")
        self.state.user = name

    def _expose(self, each: Instruction) -> None:
        for word in map(self._word, self._split(each)):
            port, _, protocol = word.partition("/")
            first, dash, last = port.partition("-")
            if (
                protocol.lower() not in ("", "tcp", "udp")
                or not first.isdecimal()
                or (dash and not last.isdecimal())
                or len(port) > len("65535-65535")
            ):
                raise wrong(
                    each.line, f"EXPOSE {word[:40]!r}: a port is from 1 to 65535, perhaps with /tcp"
                )
            low, high = int(first), int(last or first)
            if not 1 <= low <= high <= 65535 or high - low >= MAX_PORTS:
                raise wrong(
                    each.line, f"EXPOSE {word[:40]!r}: a port is from 1 to 65535, 100 at most"
                )
            if protocol.lower() == "udp":
                continue  # previews carry TCP
            self.state.ports += [p for p in range(low, high + 1) if p not in self.state.ports]
        if len(self.state.ports) > MAX_PORTS:
            raise wrong(each.line, f"EXPOSE: more than {MAX_PORTS} ports")

    def _shell(self, each: Instruction) -> None:
        if not each.words:
            raise wrong(each.line, 'SHELL takes a list: ["/bin/bash", "-c"]')
        self.state.shell = each.words

    def _cmd(self, each: Instruction) -> None:
        self.state.cmd = list(each.words) if each.words is not None else self._command(each.text)
        self.state.own_start = True

    def _entrypoint(self, each: Instruction) -> None:
        self.state.entrypoint = (
            list(each.words) if each.words is not None else self._command(each.text)
        )
        if not self.state.own_start:
            self.state.cmd = None  # what was inherited is for another program
        self.state.own_start = True

    def _command(self, text: str) -> str | list[str]:
        """Of the shell form: a string is for /bin/sh."""
        return text if self.state.shell == SHELL else [*self.state.shell, text]

    def _healthcheck(self, each: Instruction) -> None:
        self.state.own_ready = True
        kind, _, rest = each.text.partition(" ")
        if kind.upper() == "NONE":
            self.state.ready = None
            return
        if kind.upper() != "CMD" or not rest.strip():
            raise wrong(each.line, "HEALTHCHECK takes CMD and a command, or NONE")
        interval = self._duration(each, "start-interval")
        period = self._duration(each, "start-period") or 0.0
        every = self._duration(each, "interval") or 30.0
        retries = each.flag("retries") or "3"
        if not retries.isdecimal() or len(retries) > 4 or int(retries) > 1000:
            raise wrong(each.line, f"HEALTHCHECK --retries={retries[:20]}: a number")
        words = json_form(rest.strip())
        command = list(words) if words is not None else self._command(rest.strip())
        self.state.ready = {
            "command": command,
            # Docker looks every 30 s at what runs; here somebody waits for it.
            "interval_s": min(interval or 0.5, 600.0),
            "timeout_s": min(max(60.0, period + (int(retries) or 3) * min(every, 30.0)), 3600.0),
        }

    def _duration(self, each: Instruction, name: str) -> float | None:
        text = each.flag(name)
        if text is None:
            return None
        match = _DURATION.fullmatch(text)
        if match is None or not text:
            raise wrong(
                each.line, f"{each.keyword} --{name}={text[:20]}: a time is like 30s or 1m30s"
            )
        hours, minutes, seconds, milli = (float(part or 0) for part in match.groups())
        return hours * 3600 + minutes * 60 + seconds + milli / 1000

    # --- what changes files -----------------------------------------------------------------------

    def _run(self, each: Instruction) -> Run:
        for name in ("network", "security"):
            if (value := each.flag(name)) not in (None, "default", "sandbox"):
                raise wrong(each.line, f"RUN --{name}={value}: a step runs as every machine does")
        script = None
        argv = (*self.state.shell, self._script(each))
        if each.words is not None:
            argv = each.words
            if not argv or not argv[0]:
                raise wrong(each.line, "RUN []: there is no command")
        elif len(each.heredocs) == 1 and _only_heredoc(each.text):
            content = each.heredocs[0].content
            if content.startswith("#!"):
                script, argv = content, ()
            else:
                argv = (*self.state.shell, content)
        secrets = tuple(
            found
            for key, value in each.flags
            if key == "mount" and (found := self._mount(each, value)) is not None
        )
        proxies = {
            k: v for k, v in self._given.items() if k in PROXIES and k not in self._variables
        }
        return Run(
            argv, self._variables, self.state.user, self.state.workdir, secrets, proxies, script
        )

    def _script(self, each: Instruction) -> str:
        """With its here-documents: the shell reads them."""
        parts = [each.text]
        for heredoc in each.heredocs:
            parts.append(f"\n{heredoc.content}{heredoc.name}")
        return "".join([*parts, "\n"]) if each.heredocs else each.text

    def _mount(self, each: Instruction, text: str) -> SecretMount | None:
        fields: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            fields[name.strip().lower()] = self._word(value) if equals else "true"
        kind = fields.pop("type", "bind")
        if kind in ("cache", "tmpfs"):
            return None  # a help for others' builders; what it holds here is a plain directory
        if kind != "secret":
            raise wrong(
                each.line, f"RUN --mount=type={kind[:20]}: of mounts only type=secret is known"
            )
        known = {"id", "target", "dst", "destination", "env", "required", "mode", "uid", "gid"}
        if unknown := sorted(set(fields) - known):
            raise wrong(
                each.line,
                f"RUN --mount: {unknown[0][:40]!r} is unknown; there are {', '.join(sorted(known))}",
            )
        target = fields.get("target") or fields.get("dst") or fields.get("destination")
        env = fields.get("env")
        name = fields.get("id") or (target or env or "").rpartition("/")[2]
        if not SECRET.fullmatch(name):
            raise wrong(
                each.line, "RUN --mount=type=secret needs an id: letters, digits, dots and dashes"
            )
        if env is not None and not _NAME.fullmatch(env):
            raise wrong(each.line, f"RUN --mount: env={env[:40]} is no name")
        mode = fields.get("mode", "0400")
        if not re.fullmatch(r"[0-7]{3,4}", mode):
            raise wrong(each.line, f"RUN --mount: mode={mode[:20]} is no octal mode")
        for number in ("uid", "gid"):
            if not fields.get(number, "0").isdecimal():
                raise wrong(each.line, f"RUN --mount: {number} is a number")
        owner = f"{fields.get('uid', '0')}:{fields.get('gid', '0')}"
        if target is None and env is None:
            target = f"/run/secrets/{name}"
        if target is not None:
            target = absolute(target, self.state.workdir, each.line)
        return SecretMount(
            name,
            target,
            env,
            int(mode, 8),
            owner,
            fields.get("required", "false").lower() in ("true", "1"),
        )

    def _copy(self, each: Instruction) -> Copy:
        keyword = each.keyword
        if each.flag("from") is not None:
            raise wrong(
                each.line,
                "COPY --from: a template is built in one stage, so there is none to copy from. Put what is "
                "needed into the context, or make it in this machine",
            )
        for name in ("checksum", "keep-git-dir"):
            if each.flag(name) is not None:
                raise wrong(
                    each.line,
                    f"ADD --{name}: it is for what ADD would fetch, which it does not here",
                )
        words = (
            list(each.words)
            if each.words is not None
            else substitute.split(each.text, self.dockerfile.escape)
        )
        if each.words is None:
            # A here-document is a word of its own: <<EOF.
            words = [word for word in words if not word.startswith("<<")]
        words = [self._word(word) for word in words]
        if not words or len(words) + len(each.heredocs) < 2:
            raise wrong(each.line, f"{keyword} takes what to copy, and where to")
        *sources, target = words
        for source in sources:
            if keyword == "ADD" and _REMOTE.match(source):
                raise wrong(
                    each.line,
                    f"ADD {source[:80]}: nothing is fetched for ADD. Fetch it in the machine, e.g. "
                    f"RUN curl -fsSLO {shlex.quote(source)[:100]}, or put it into the context",
                )
            if ".." in source.split("/"):
                raise wrong(each.line, f"{keyword} {source[:80]}: that is outside the context")
        many = len(sources) + len(each.heredocs) > 1
        if many and not target.endswith("/"):
            raise wrong(
                each.line, f"{keyword} of several: the last is a directory, and ends with /"
            )
        slash = target.endswith(("/", "/.")) or target in (".", "..")
        path = absolute(target, self.state.workdir, each.line).rstrip("/")
        mode = each.flag("chmod")
        if mode is not None:
            mode = self._word(mode)
            if not re.fullmatch(r"[0-7]{3,4}", mode):
                raise wrong(each.line, f"{keyword} --chmod={mode[:20]}: an octal mode, like 755")
        owner = self._word(each.flag("chown") or "")
        if len(owner) > 64 or any(c.isspace() for c in owner):
            raise wrong(each.line, f"{keyword} --chown={owner[:40]}: a user, or user:group")
        inline = []
        for doc in each.heredocs:
            content = doc.content
            if not doc.raw:
                content = substitute.expand(content, self._variables, self.dockerfile.escape)
            self._inline += len(content)
            if self._inline > MAX_INLINE:
                raise wrong(each.line, f"here-documents are more than {MAX_INLINE >> 20} MiB")
            inline.append(Inline(doc.name, content))
        return Copy(
            tuple(sources),
            tuple(inline),
            f"{path}/" if slash or not path else path,
            owner,
            None if mode is None else int(mode, 8),
            keyword == "ADD",
        )

    def _nothing(self, each: Instruction) -> None:
        """STOPSIGNAL, VOLUME, MAINTAINER: what they ask for means nothing of a machine."""

    def _refuse(self, each: Instruction) -> None:
        raise wrong(
            each.line, "ONBUILD is not known here: write it into the Dockerfile that needs it"
        )

    _TAKE: dict[str, Any] = {  # noqa: RUF012
        "FROM": _take_from, "ARG": _arg, "ENV": _env, "LABEL": _label, "WORKDIR": _workdir, "USER": _user,
        "EXPOSE": _expose, "SHELL": _shell, "CMD": _cmd, "ENTRYPOINT": _entrypoint, "HEALTHCHECK": _healthcheck,
        "RUN": _run, "COPY": _copy, "ADD": _copy, "STOPSIGNAL": _nothing, "VOLUME": _nothing,
        "MAINTAINER": _nothing, "ONBUILD": _refuse,
    }  # fmt: skip


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_size(each: Instruction, variables: Mapping[str, str]) -> None:
    size = sum(len(k.encode()) + len(v.encode()) for k, v in variables.items())
    if size > MAX_ENV or len(variables) > MAX_VARIABLES:
        raise wrong(
            each.line,
            f"{each.keyword}: the variables are more than {MAX_ENV} bytes in all, or than {MAX_VARIABLES}",
        )


def absolute(path: str, below: str, line: int) -> str:
    """Without ``..``; a final slash stays."""
    if not path or "\0" in path or len(path.encode(errors="surrogatepass")) > 4096:
        raise wrong(line, "a path is empty, or too long")
    whole = path if path.startswith("/") else f"{below or '/'}/{path}"
    parts: list[str] = []
    for part in whole.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    found = "/" + "/".join(parts)
    return f"{found}/" if path.endswith("/") and found != "/" else found


def _only_heredoc(text: str) -> bool:
    return re.fullmatch(r"<<-?\s*[\"']?[A-Za-z_][A-Za-z0-9_]*[\"']?", text.strip()) is not None


def _start(entrypoint: Any, cmd: Any) -> str | list[str] | None:
    """As Docker joins them: arguments after an entry point that is a list; one for the shell takes none."""
    if not entrypoint:
        return cmd or None
    if isinstance(entrypoint, str):
        return entrypoint
    if isinstance(cmd, str):
        return [*entrypoint, *SHELL, cmd]
    extra: Sequence[str] = cmd or []
    return [*entrypoint, *extra]
