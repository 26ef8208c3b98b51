"""The daemon: everything put together, in order, and taken apart again.

```
settings -> lock on data_dir -> the port -> logs -> store -> storage, network, drivers -> engine
         -> services -> gateway -> READY ... SIGTERM -> gateway first, store last; machines live on
```

Nothing of an earlier daemon is touched before the lock and the port are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import structlog
import uvloop
from asyncssh import SSHKey
from pydantic import ValidationError

import roost
from roost import dialects, memory
from roost.agent.client import Agents
from roost.api.v1 import Services, create_app, native
from roost.clock import SystemClock
from roost.drivers import registry
from roost.drivers.tree import AgentBinary, default_agent
from roost.egress.supervisor import Supervisor
from roost.engine.engine import Engine
from roost.errors import ConflictError, ForbiddenError, InvalidRequestError, RoostError
from roost.gateway import tls
from roost.gateway.app import Gateway
from roost.gateway.calls import Calls
from roost.gateway.dispatch import Table
from roost.gateway.front import Front, bind
from roost.gateway.metrics import Metrics
from roost.gateway.rpc import Rpc
from roost.gateway.tls import Tls
from roost.logs import Logs
from roost.network import HostNetwork, Network, SlotNetwork
from roost.preview.plane import Plane
from roost.prices import Prices
from roost.secrets import process as boundary
from roost.secrets.keeper import Keeper
from roost.secrets.trust import host_ca
from roost.secrets.vault import Vault
from roost.services.approvals import Approvals
from roost.services.audit import Audit
from roost.services.bakes import Bakes
from roost.services.browser import HELPER as BROWSER
from roost.services.browser import Browser
from roost.services.build_files import BuildFiles
from roost.services.builds import Builds
from roost.services.code import HELPER as KERNEL
from roost.services.code import Code
from roost.services.computer import HELPER as DISPLAY
from roost.services.computer import Computer
from roost.services.diffs import Diffs
from roost.services.doors import Doors
from roost.services.exchange import Exchange
from roost.services.executions import Executions
from roost.services.files import Files
from roost.services.helpers import Helpers, programs
from roost.services.host import Host
from roost.services.inner import Inner
from roost.services.inside import Links, Requests
from roost.services.keys import Keys
from roost.services.layers import Layers
from roost.services.listening import ListeningPorts
from roost.services.machines import Machines
from roost.services.places import Places
from roost.services.policies import Policies
from roost.services.ports import Ports
from roost.services.promotions import Promotions
from roost.services.rates import Rates
from roost.services.secrets import Secrets
from roost.services.snapshots import Snapshots
from roost.services.ssh_keys import SshAddress, SshKeys
from roost.services.starting import Starting
from roost.services.templates import Templates
from roost.services.tenants import Tenants
from roost.services.terminals import Terminals
from roost.services.tickets import Tickets
from roost.services.toolsets import Toolsets
from roost.services.transfer import Transfers
from roost.services.trees import Trees
from roost.services.usage import Usage
from roost.services.volume_files import VolumeFiles
from roost.services.volumes import Volumes
from roost.services.warm import Warm
from roost.settings import Settings
from roost.ssh import host_key as host_keys
from roost.ssh.server import SshServer
from roost.ssh.visit import Inside
from roost.storage import PoolStorage
from roost.store import Store
from roost.store import executions as execution_rows
from roost.store.cursor import Cursors
from roost.store.idempotency import Idempotency
from roost.templates.library import Library
from roost.templates.oci import Images
from roost.watching import watch, watch_previews

log = structlog.get_logger("roost.daemon")

GRACE_S = 10.0
HOUSEKEEPING_S = 60.0
TIDY_S = 3600.0
COLLECT_S = 300.0


def main() -> int:
    """``python -m roost.daemon``. 0 after a stop that was asked for; 1 with the reason on stderr."""
    os.umask(0o077)
    memory.give_back()
    try:
        settings = load_settings()
        require_root(settings)
        certificate = tls.of(settings.tls_cert, settings.tls_key)
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(settings.data_dir))
            sockets = bind(settings.host, settings.port)
            for sock in sockets:
                stack.callback(sock.close)
            settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            logs = Logs(settings.data_dir / "logs", settings.log_level)
            stack.callback(logs.close)
            ssh_sockets = bind_ssh(settings)
            for sock in ssh_sockets:
                stack.callback(sock.close)
            uvloop.run(serve(settings, sockets, logs, ssh_sockets, certificate))
    except RoostError as failure:
        print(f"roost: {failure.message} [{failure.code}]", file=sys.stderr)
        return 1
    return 0


def load_settings() -> Settings:
    """Raises CONFIG_INVALID, naming the variable."""
    try:
        return Settings.model_validate({})
    except ValidationError as failure:
        said = "; ".join(
            f"ROOST_{'.'.join(str(part) for part in each['loc']).upper()}: {each['msg']}"
            for each in failure.errors()
        )
        raise InvalidRequestError(said, code="CONFIG_INVALID") from failure


def require_root(settings: Settings) -> None:
    """Of a daemon that offers nothing without it. Raises FORBIDDEN."""
    if os.geteuid() != 0 and not {"workspace", "fake"} & set(settings.driver_names):
        raise ForbiddenError(
            f"The drivers {settings.drivers} make namespaces, mounts and firewall rules, which needs root: run the"
            " daemon as root, or offer workspaces too (ROOST_DRIVERS)."
        )


@contextlib.contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """One daemon a data directory, for as long as the process lives. Raises DATA_DIR_IN_USE."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        raise InvalidRequestError(
            f"ROOST_DATA_DIR {data_dir} cannot be used: {failure.strerror}.", code="CONFIG_INVALID"
        ) from failure
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise ConflictError(
                f"Another daemon (pid {pid or 'unknown'}) uses {data_dir}; stop it or set ROOST_DATA_DIR.",
                code="DATA_DIR_IN_USE",
                details={"pid": pid, "data_dir": str(data_dir)},
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


async def serve(
    settings: Settings,
    sockets: list[socket.socket],
    logs: Logs,
    ssh_sockets: list[socket.socket],
    certificate: Tls | None,
) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def again() -> None:
        logs.reopen()
        if certificate is not None:
            certificate.reload()

    loop.add_signal_handler(signal.SIGHUP, again)
    warn_exposed(settings)
    async with contextlib.AsyncExitStack() as stack:
        opened = asyncio.ensure_future(compose(settings, sockets, stack, ssh_sockets, certificate))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            opened.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await opened
            return
        try:
            front = opened.result()
        except RoostError as failure:
            log.error("daemon.start", error_code=failure.code, message=failure.message)
            raise
        finally:
            stopped.cancel()
        pid_file = settings.run_dir / "daemon.pid"
        pid_file.write_text(f"{os.getpid()}\n")
        stack.callback(pid_file.unlink, missing_ok=True)
        log.info("daemon.ready", version=roost.__version__, host=settings.host, port=front.port)
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("daemon.stopping")
    log.info("daemon.stopped")


async def compose(
    settings: Settings,
    sockets: list[socket.socket],
    stack: contextlib.AsyncExitStack,
    ssh_sockets: list[socket.socket],
    certificate: Tls | None,
) -> Front:
    """Makes and opens everything; ``stack`` closes what was opened, last first."""
    clock = SystemClock()
    store = await asyncio.to_thread(Store.open, settings.data_dir / "roost.db", clock)
    stack.push_async_callback(store.close)
    storage = PoolStorage(settings)
    network: Network = HostNetwork()
    if os.geteuid() == 0:
        network = SlotNetwork(settings, Supervisor(settings))
    drivers = {name: registry.create(name, settings) for name in settings.driver_names}
    agents = Agents()
    stack.push_async_callback(agents.close)
    keeper = Keeper(
        store,
        clock,
        settings.data_dir,
        Path(settings.secrets_python) if settings.secrets_python else boundary.INSTALLED,
        host_ca(settings.egress_ca),
    )
    engine = Engine(
        store,
        settings,
        clock,
        drivers=drivers,
        network=network,
        storage=storage,
        agents=agents,
        boundary=keeper,
    )
    library = Library(storage)
    templates = Templates(store, storage, clock, library)
    layers = Layers(engine, templates.images)
    agent = AgentBinary(default_agent())
    foreign = Images(settings, storage.pool, storage.image_store, agent)
    builds = Builds(engine, templates, layers, library.seal, settings.data_dir / "builds", foreign)
    build_files = BuildFiles(
        settings.data_dir / "build-files",
        engine.identity.secret,
        clock,
        settings.build_context_mib << 20,
        storage.require,
    )
    keys = Keys(store, clock, settings.data_dir)
    stack.push_async_callback(keys.flush)
    rates = Rates(clock.monotonic, settings.token_requests_per_second)
    tenants = Tenants(store, settings, keys, rates)
    starting = Starting(engine)
    bakes = Bakes(engine)
    warm = Warm(engine, bakes, settings.warm_machines)
    machines = Machines(engine, templates, bakes, warm)
    volumes = Volumes(engine)
    where = Places(
        settings.domain, settings.preview_url or preview_url(settings), bool(settings.preview_url)
    )
    ports = Ports(store, machines, clock, engine.identity.secret, where)
    idempotency = Idempotency(store, engine.identity.secret)
    cursors = Cursors(engine.identity.secret)
    vault = Vault.load(settings.data_dir)
    approvals = Approvals(store, clock, vault, cursors, settings.approval_timeout_s)
    machines.on_change(lambda id: approvals.changed(id, lambda: machines.over(id)))
    executions = Executions(
        execution_rows.Executions(store), machines, agents, cursors, clock, approvals
    )
    starting.began.append(executions.began)
    audit = Audit(store, clock, cursors, settings.audit_days)
    metrics = Metrics()
    watch(metrics, engine, executions, warm)
    stack.callback(asyncio.get_running_loop().create_task(metrics.watch_loop()).cancel)

    await idempotency.recover()
    stack.push_async_callback(keeper.close)
    await keeper.open()
    stack.push_async_callback(engine.close, GRACE_S)
    await engine.open()
    await volumes.open()
    await templates.open()
    stack.push_async_callback(templates.close)
    await builds.open()
    stack.push_async_callback(builds.close)
    await warm.open()
    stack.push_async_callback(warm.close)
    if await keys.bootstrap() is not None:
        log.info("daemon.first_key", path=str(settings.data_dir / "key"))
    await approvals.open()
    await executions.open()
    stack.push_async_callback(executions.close)
    await tenants.open()
    await ports.open()
    await audit.open()
    stack.push_async_callback(audit.close)

    terminals, files = Terminals(machines), Files(machines)
    doors = Doors(machines, machines.connection, programs=programs(BROWSER, DISPLAY, KERNEL))
    helpers = Helpers(Inner(doors), executions)
    browser = Browser(helpers, engine.identity.secret, clock)
    ssh_keys = SshKeys(store, clock, keys.ended)
    stack.push_async_callback(ssh_keys.flush)
    host_key = host_keys.load(settings.data_dir) if ssh_sockets else None
    services = Services(
        machines=machines,
        snapshots=Snapshots(engine, machines),
        volumes=volumes,
        volume_files=VolumeFiles(machines, volumes),
        executions=executions,
        approvals=approvals,
        terminals=terminals,
        files=files,
        templates=templates,
        builds=builds,
        build_files=build_files,
        keys=keys,
        ports=ports,
        tenants=tenants,
        audit=audit,
        host=Host(engine, settings, url(settings), warm=warm),
        usage=Usage(store, clock, Prices.read(settings.prices)),
        doors=doors,
        ssh_keys=ssh_keys,
        ssh=ssh_address(settings, ssh_sockets, host_key),
        secrets=Secrets(engine, machines, keeper),
        metrics=metrics,
        policies=Policies(engine, machines),
        toolsets=Toolsets(engine, machines),
        transfers=Transfers(engine, templates),
        browser=browser,
        computer=Computer(helpers),
        code=Code(helpers, machines),
        promotions=Promotions(engine, machines, ports, keys, templates),
        diffs=Diffs(machines),
        trees=Trees(store, machines),
        tickets=Tickets(keys, engine.identity.secret, clock),
        exchange=Exchange(keys, rates, clock, engine.identity.secret),
        listening=ListeningPorts(files, machines),
    )
    asked = Requests(engine, machines, ports, services.usage, audit)
    stack.push_async_callback(asked.close)
    links = Links(engine.roster, asked, clock.monotonic)
    stack.push_async_callback(links.close)
    links.open()
    table = Table([*dialects.targets(services), native(create_app(services), services.tickets)])
    gateway = Gateway(table, keys, idempotency, metrics, rates, audit, clock)
    guard = Calls(services.exchange.authenticate, gateway.sessions, rates, audit, metrics)
    rpc = Rpc(settings.run_dir / "grpc.sock", dialects.handlers(services, guard))
    await rpc.start()
    stack.push_async_callback(rpc.stop, 2.0)
    plane = Plane(
        ports, machines, keys, rates, clock, settings.preview_requests_per_second, doors, browser
    )
    watch_previews(metrics, plane)
    dialects.previews(plane)
    front = Front(
        gateway,
        rpc.path,
        sockets=sockets,
        max_connections=settings.max_connections,
        tls=certificate,
        previews=plane,
    )
    await front.start()
    stack.push_async_callback(front.stop, GRACE_S)
    if host_key is not None:
        inside = Inside(machines, executions, terminals, files, doors, audit, set())
        ssh = SshServer(inside, keys, ssh_keys, rates, clock.now, host_key, ssh_sockets)
        await ssh.start()
        stack.push_async_callback(ssh.stop)
    rounds: list[tuple[Callable[[], Awaitable[object]], float]] = [
        (approvals.sweep, 1.0),
        (approvals.tidy, TIDY_S),
        (idempotency.sweep, HOUSEKEEPING_S),
        (keys.flush, HOUSEKEEPING_S),
        (ssh_keys.flush, HOUSEKEEPING_S),
        (bakes.collect, HOUSEKEEPING_S),
        (bakes.tidy, TIDY_S),
        (builds.collect, COLLECT_S),
        (audit.tidy, TIDY_S),
        (keys.tidy, TIDY_S),
        (build_files.tidy, TIDY_S),
    ]
    for work, pause in rounds:
        task = asyncio.get_running_loop().create_task(every(pause, work))
        stack.callback(task.cancel)
    return front


async def every(pause: float, work: Callable[[], Awaitable[object]]) -> None:
    """Again and again; a failure is logged and the next round comes."""
    while True:
        await asyncio.sleep(pause)
        try:
            await work()
        except Exception as failure:
            log.error("daemon.housekeeping", exc_info=failure)


def bind_ssh(settings: Settings) -> list[socket.socket]:
    """None where SSH is off, or its port is taken and nobody asked for it. Raises PORT_IN_USE, CONFIG_INVALID."""
    if not settings.ssh_port:
        return []
    try:
        return bind(settings.ssh_host or settings.host, settings.ssh_port, "SSH")
    except ConflictError as failure:
        if "ssh_port" in settings.model_fields_set:
            raise
        log.warning("daemon.ssh_off", port=settings.ssh_port, message=failure.message)
        return []


def ssh_address(
    settings: Settings, sockets: list[socket.socket], host_key: SSHKey | None
) -> SshAddress:
    if host_key is None:
        return SshAddress()
    port = int(sockets[0].getsockname()[1])
    return SshAddress(settings.ssh_host or None, port, host_keys.public(host_key))


def url(settings: Settings) -> str:
    """Where this host reaches the port."""
    host = settings.host
    if host in ("", "0.0.0.0", "::"):  # noqa: S104
        host = "127.0.0.1"
    return f"{scheme(settings)}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def scheme(settings: Settings) -> str:
    return "https" if settings.tls_cert else "http"


def preview_url(settings: Settings) -> str:
    """Where browsers reach the preview domain with nothing in front of the port."""
    return f"{scheme(settings)}://{settings.domain}:{settings.port}"


def warn_exposed(settings: Settings) -> None:
    try:
        exposed = not ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        exposed = settings.host != "localhost"
    if exposed and not settings.tls_cert:
        log.warning(
            "daemon.exposed",
            host=settings.host,
            message="The port speaks plain HTTP and gRPC: set ROOST_TLS_CERT and ROOST_TLS_KEY, or put TLS in front of it.",
        )


def notify(state: str) -> None:
    """Tells systemd, where it asked to be told."""
    target = os.environ.get("NOTIFY_SOCKET")
    if not target:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + target[1:] if target.startswith("@") else target)
        sock.sendall(state.encode())


if __name__ == "__main__":
    sys.exit(main())
