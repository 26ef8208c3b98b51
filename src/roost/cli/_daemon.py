"""The daemon's process on this host: is it there, start it, stop it.

A pid from a file counts only while ``/proc`` says that it is a Roost daemon with this data directory;
it is signalled through a pidfd, so never another process that got its number.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from roost import defaults
from roost.cli._out import note
from roost.client import _tls as tls
from roost.client._config import data_dir, default_url, is_loopback
from roost.errors import RoostError, error

SYSTEM_DATA_DIR = "/var/lib/roost"  # what the unit serves
UNIT = Path("/etc/systemd/system/roost.service")
START_S = 60.0
STOP_S = 40.0
LOGS = ("daemon.err", "daemon.log")
LINES = 12  # of a failed start


def run_dir() -> Path:
    return Path(os.environ.get("ROOST_RUN_DIR") or defaults.run_dir())


def local_url() -> str:
    """Raises InvalidRequestError where ROOST_URL names another host: its daemon is not ours to drive."""
    url = default_url()
    if not is_loopback(urlsplit(url).hostname or ""):
        raise error(
            "CONFIG_INVALID",
            f"ROOST_URL is {url}, another host: `roost up` and `roost down` drive this host's daemon. "
            "Unset it, or run them there.",
        )
    return url


def healthy(url: str, timeout: float = 2.0) -> bool:
    """True if a Roost daemon answers there."""
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    connection: http.client.HTTPConnection
    try:
        if trusted := tls.context(url):
            connection = http.client.HTTPSConnection(
                host, parts.port or 443, timeout=timeout, context=trusted
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port or 80, timeout=timeout)
    except RoostError:
        return False
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        return answer.status == 200 and b'"ok"' in answer.read(4096)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def find() -> int | None:
    """A pidfd of the daemon of this data directory; None where it does not run. The caller closes it."""
    for pid in _candidates():
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        if _is_daemon(pid):
            return descriptor
        os.close(descriptor)
    return None


def _candidates() -> list[int]:
    """The pid file's first, then whatever looks like one."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        found.append(int((run_dir() / "daemon.pid").read_text().split()[0]))
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"roost.daemon" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def _is_daemon(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environment = _environment(pid)
        ours = Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False
    if b"roost.daemon" not in arguments:
        return False
    theirs = environment.get("ROOST_DATA_DIR")
    if not (theirs or ours):
        return False  # unless it is told, it keeps its things in its user's home, not in ours
    return os.path.realpath(theirs or defaults.data_dir()) == os.path.realpath(data_dir())


def _environment(pid: int) -> dict[str, str]:
    """As it was started with: the ROOST_ variables."""
    found = os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes()).split("\0")
    return dict(each.split("=", 1) for each in found if each.startswith("ROOST_") and "=" in each)


def unheard() -> list[str]:
    """Settings of this environment that the daemon of this data directory runs without, or with another value of."""
    mine = {name: value for name, value in os.environ.items() if name.startswith("ROOST_")}
    pid = next(filter(_is_daemon, _candidates()), None) if mine else None
    if pid is None:
        return []
    try:
        theirs = _environment(pid)
    except OSError:  # it ended
        return []
    differ = [name for name in mine if mine[name] != theirs.get(name)]
    return sorted(name for name in differ if not _means_the_same(name, mine[name], theirs))


def _means_the_same(name: str, value: str, theirs: Mapping[str, str]) -> bool:
    """What is no setting of a daemon's does, too."""
    from pydantic import TypeAdapter, ValidationError

    from roost.settings import Settings

    field = Settings.model_fields.get(name.removeprefix("ROOST_").lower())
    if field is None or name == "ROOST_DATA_DIR":  # by which it was found
        return True
    if name == "ROOST_RUN_DIR":
        other = theirs.get(name) or defaults.run_dir()
        return os.path.realpath(value) == os.path.realpath(other)
    read = TypeAdapter(field.annotation or str).validate_python
    try:
        other = read(theirs[name]) if name in theirs else field.default
        return bool(read(value) == other)
    except ValidationError:
        return False


def start() -> None:
    """Starts it and waits until it answers. Raises UnavailableError with the end of its log."""
    url = local_url()
    before = {name: _size(name) for name in LOGS}
    if _systemd():
        subprocess.run(["systemctl", "start", "roost"], check=False)
        process = None
    else:
        process = _spawn()
    deadline = time.monotonic() + START_S
    while not healthy(url):
        if process is not None and process.poll() is not None and not healthy(url):
            raise _failed(f"The daemon ended at once (exit code {process.returncode}).", before)
        if time.monotonic() > deadline:
            raise _failed(f"The daemon did not answer at {url} within {START_S:g} s.", before)
        time.sleep(0.05)


def foreground() -> None:
    """Becomes the daemon."""
    os.execv(sys.executable, [sys.executable, "-m", "roost.daemon"])  # noqa: S606


def _spawn() -> subprocess.Popen[bytes]:
    logs = data_dir() / "logs"
    try:
        logs.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        logs.mkdir(exist_ok=True, mode=0o700)
        path = logs / "daemon.err"
        if path.exists() and path.stat().st_size > 1 << 20:
            path.unlink()
        with open(path, "ab") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "roost.daemon"],
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                start_new_session=True,
                cwd="/",
            )
    except PermissionError as exc:
        raise error(
            "FORBIDDEN",
            f"{exc.filename} cannot be written. Run as root, or set ROOST_DATA_DIR.",
        ) from exc


def _size(name: str) -> int:
    with contextlib.suppress(OSError):
        return (data_dir() / "logs" / name).stat().st_size
    return 0


def _failed(what: str, before: dict[str, int]) -> RoostError:
    """What this start wrote, shown; the error that sums it up."""
    shown = False
    for name in LOGS:
        with contextlib.suppress(OSError), open(data_dir() / "logs" / name, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(before[name] if before[name] <= size else 0)
            lines = file.read(1 << 20).decode("utf-8", "replace").splitlines()
            for line in [line for line in lines if line.strip()][-LINES:]:
                note(f"  {line}")
                shown = True
        if shown:
            break  # the second has the same once more, for machines
    said = "Its last words stand above." if shown else "It said nothing."
    return error(
        "DEPENDENCY_UNAVAILABLE", f"{what} {said} See `roost logs --daemon`, `roost doctor`."
    )


def stop() -> bool:
    """SIGTERM, then waits for its end. False where none runs. Raises ConflictError past the deadline."""
    descriptor = find()
    if descriptor is None:
        return False
    try:
        if _systemd():
            subprocess.run(["systemctl", "stop", "roost"], check=False)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(STOP_S * 1000):
            raise error(
                "INVALID_STATE",
                f"The daemon did not stop within {STOP_S:g} s. See `roost logs --daemon`.",
            )
    finally:
        os.close(descriptor)
    return True


# --- systemd ------------------------------------------------------------------------------------


def _systemd() -> bool:
    """True where systemd runs this host and our unit is installed for the default directories."""
    return (
        UNIT.exists()
        and Path("/run/systemd/system").is_dir()
        and os.path.realpath(data_dir()) == SYSTEM_DATA_DIR
    )


def restart_hint() -> str:
    """How a setting comes to be heard."""
    if _systemd():
        return "set them in /etc/roost/roost.env, then: systemctl restart roost"
    return "roost down && roost up"


def install_service() -> None:
    """Installs and enables the shipped unit. Raises UnsupportedError where there is no systemd."""
    if not Path("/run/systemd/system").is_dir():
        raise error("HOST_UNSUPPORTED", "This host does not run systemd; `roost up` needs none.")
    shipped = Path(__file__).resolve().parents[3] / "packaging/systemd/roost.service"
    if not shipped.exists():
        raise error("UNSUPPORTED", f"This install ships no unit ({shipped}).")
    text = shipped.read_text().replace("@EXEC@", f"{sys.executable} -m roost.daemon")
    UNIT.write_text(text)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "enable", "roost"], check=True)
