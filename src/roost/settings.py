"""Everything an operator can set: environment ``ROOST_*`` or ``/etc/roost/roost.env``-style files."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from roost import defaults
from roost.egress.policy import Mode, Policy, private_ranges
from roost.errors import RoostError
from roost.host.idmaps import COUNT, DEFAULT_BASE, LAST
from roost.prices import Prices

_REGISTRY = re.compile(r"([a-z0-9](?:[a-z0-9.-]{0,253}[a-z0-9])?)(?::([0-9]{1,5}))?", re.ASCII)


class Settings(BaseSettings):
    """The daemon's settings; each has a documented default."""

    model_config = SettingsConfigDict(env_prefix="ROOST_", extra="ignore")

    data_dir: Path = Field(
        Path("/var/lib/roost"),
        description="Database, pool, keys, logs; of a daemon that is not root `~/.local/share/roost`.",
    )
    run_dir: Path = Field(
        Path("/run/roost"),
        description="Sockets, pid file, bundles; gone after a reboot; of a daemon that is not root `$XDG_RUNTIME_DIR/roost`.",
    )
    host: str = Field("127.0.0.1", description="Address the one port listens on.")
    port: int = Field(7676, ge=1, le=65535, description="The one port: HTTP and gRPC.")
    tls_cert: str = Field(
        "",
        description="PEM file of the certificate (chain) the one port shows; with `ROOST_TLS_KEY` it speaks TLS only. Read again on SIGHUP.",
    )
    tls_key: str = Field("", description="PEM file of the certificate's key.")
    ssh_port: int = Field(
        2222,
        ge=0,
        le=65535,
        description="Port of SSH into machines; 0: off. Unless it is set, a port that is taken only turns it off.",
    )
    ssh_host: str = Field("", description="Address SSH listens on; empty: that of the one port.")
    drivers: str = Field(
        "qemu,gvisor,runc,user,workspace",
        description="Drivers offered, best first; `auto` takes the first available that need not emulate a CPU, and rungs 0 and 1 only where there is nothing else.",
    )
    workspace_user: str = Field(
        "nobody",
        min_length=1,
        description="Account that programs of workspaces run as where the daemon is root, never root itself; another daemon's run as its own user.",
    )
    profile: Literal["indie", "managed"] = Field(
        "indie",
        description="`managed`: tenants' machines stand on rungs 2 and 3, `auto` takes a container; `indie`: every rung offered is everybody's.",
    )
    pool_gib: int = Field(200, ge=2, description="Apparent size of a loop-backed pool (sparse).")
    pool_reserve_percent: float = Field(
        5.0, ge=0, le=50, description="Free share below which new disks are refused."
    )
    network_cidr: str = Field(
        "10.201.0.0/16", description="Host-side range of network slots, a /30 each."
    )
    uid_base: int = Field(
        DEFAULT_BASE,
        ge=1 << 16,
        le=LAST - COUNT,
        description="First of the numbers of users that machines' own stand for on the host, 65,536 a machine; nobody else's.",
    )
    network_pool: int = Field(4, ge=0, description="Network slots made ahead.")
    warm_machines: int = Field(
        2,
        ge=0,
        le=64,
        description="Machines kept ready of each kind asked for lately (driver, template, size); they take memory.",
    )
    egress: str = Field(
        "open",
        description="What new machines may reach unless they say: `open`, `off`, or an allowlist's entries with blanks between.",
    )
    dns: str = Field(
        "", description="Resolver that Roost's own asks for machines; empty: the host's."
    )
    egress_proxy: SecretStr = Field(
        SecretStr(""),
        description="HTTP proxy that proven names are dialled by, `http://[USER:PASSWORD@]HOST:PORT`; empty: straight out.",
    )
    memory_overcommit: float = Field(
        4.0, gt=0, description="Sum of memory_mib of running machines over the host's."
    )
    cpu_overcommit: float = Field(
        64.0, gt=0, description="Sum of vcpu of running machines over the host's cores."
    )
    memory_reserve_mib: int = Field(
        512, ge=0, description="Kept for the host: create refuses below this."
    )
    hibernate_after_s: int = Field(
        600,
        ge=0,
        description="Seconds a machine stays frozen before its memory goes to the disk, unless it says otherwise;"
        " 0: for as long as there is room.",
    )
    tenant_machines: int = Field(
        10, ge=0, description="Machines a new tenant may have, asleep or not; `roost tenant set`."
    )
    tenant_requests_per_second: float = Field(
        100.0, gt=0, description="Requests of a new tenant, all its keys together."
    )
    tenant_request_burst: int = Field(
        200, ge=1, description="Requests of a new tenant at once, before that rate counts."
    )
    token_requests_per_second: float = Field(
        10.0, gt=0, description="Requests with one machine token, or preview token at the API."
    )
    audit_days: int = Field(90, ge=1, description="Days the audit log goes back.")
    approval_timeout_s: float = Field(
        900.0, gt=0, le=604_800, description="A command that waits for approval is given up then."
    )
    registries_private: str = Field(
        "",
        description="Registries at private or loopback addresses that templates may be built from, `HOST[:PORT]` with commas"
        " between, and hosts they send to; everything public may be fetched from without.",
    )
    egress_private: str = Field(
        "",
        description="Private networks that machines may reach, e.g. `10.20.0.0/16,192.168.1.7/32`; an address of the"
        " host itself only by an entry for just that one.",
    )
    max_connections: int = Field(
        4096,
        ge=16,
        description="Open connections on the port, a fourth of them at most from one address (but loopback); more get 503.",
    )
    domain: str = Field(
        "localhost",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,180}[a-z0-9])?$",
        description="Below it previews have their hosts: `{port}-{id}.{domain}`; nothing else may be served there.",
    )
    preview_url: str = Field(
        "",
        pattern=r"^(https?://[a-z0-9.-]+(:[0-9]{1,5})?)?$",
        description="Where browsers reach that domain, as `https://preview.example.com`; empty: the port itself, by http.",
    )
    preview_requests_per_second: float = Field(
        1000.0, gt=0, description="Requests to the previews of one machine, twice as many at once."
    )
    host_ca: bool = Field(False, description="Give machines the host's CA bundle.")
    egress_ca: str = Field(
        "",
        description="CA bundle that servers of hosts with secrets are verified with; empty: the host's.",
    )
    secrets_python: str = Field(
        "", description="Python of mitmproxy's environment; empty: the one that `scripts/up` makes."
    )
    vm_cpu: str = Field(
        "Haswell-v4",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="CPU model of microVMs, as QEMU names them; a fixed one, so that snapshots move between hosts.",
    )
    vm_disk_mib_per_s: int = Field(
        0,
        ge=0,
        le=1 << 20,
        description="Bandwidth of a microVM's disk, both ways; 0: without limit.",
    )
    vm_disk_ops_per_s: int = Field(
        0, ge=0, le=1 << 24, description="Operations of a microVM's disk; 0: without limit."
    )
    gvisor_memory: bool = Field(
        True,
        description="Keep gVisor machines' memory in forks, snapshots and sleep; limits: SPECIFICATION.md, 3.",
    )
    operation_timeout_s: float = Field(
        60.0, gt=0, description="Longest a create, wake or stop step may take."
    )
    builds_at_once: int = Field(
        2, ge=1, le=64, description="Templates that are built at the same time; others wait."
    )
    build_vcpu: float = Field(
        2.0, gt=0, description="vCPUs of a build's machine, at most the host's."
    )
    build_memory_mib: int = Field(2048, ge=128, description="Memory of a build's machine.")
    build_step_timeout_s: float = Field(
        3600.0, gt=0, le=86400, description="Longest one step of a build may take."
    )
    build_context_mib: int = Field(
        2048, ge=1, le=1 << 20, description="Largest context a build may be sent."
    )
    build_cache_gib: int = Field(
        20,
        ge=0,
        description="Disk that layers of builds may take; those used longest ago go first.",
    )
    tenant_templates: int = Field(
        200, ge=1, description="Templates a tenant may have, named or not."
    )
    usage_interval_s: float = Field(
        60.0, ge=1, le=3600, description="How often usage is counted while nothing changes."
    )
    prices: str = Field(
        "",
        description='JSON, e.g. `{"currency": "EUR", "vcpu_second": "0.00001"}`; also `memory_gib_second`, `storage_gib_hour`, `egress_gib`.',
    )
    log_level: str = Field("info", description="debug, info, warning, error.")

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: Any) -> Any:
        given = dict(values)
        given.setdefault("data_dir", defaults.data_dir())
        given.setdefault("run_dir", defaults.run_dir())
        return given

    @field_validator("dns")
    @classmethod
    def _dns(cls, value: str) -> str:
        if value:
            ipaddress.ip_address(value)
        return value

    @field_validator("prices")
    @classmethod
    def _prices(cls, value: str) -> str:
        Prices.read(value)
        return value

    @model_validator(mode="after")
    def _one_domain(self) -> Settings:
        if self.preview_url and urlsplit(self.preview_url).hostname != self.domain:
            raise ValueError("ROOST_PREVIEW_URL: its host is ROOST_DOMAIN")
        return self

    @field_validator("egress")
    @classmethod
    def _egress(cls, value: str) -> str:
        try:
            read_egress(value)
        except RoostError as failure:
            raise ValueError(failure.message) from failure
        return value

    @property
    def egress_policy(self) -> Policy:
        """Of new machines that do not say."""
        return read_egress(self.egress)

    @field_validator("egress_private")
    @classmethod
    def _egress_private(cls, value: str) -> str:
        private_ranges(value)
        return value

    @field_validator("registries_private")
    @classmethod
    def _registries_private(cls, value: str) -> str:
        registries(value)
        return value

    @property
    def driver_names(self) -> list[str]:
        return [n.strip() for n in self.drivers.split(",") if n.strip()]


def registries(text: str) -> frozenset[tuple[str, int]]:
    """Of ``HOST[:PORT]`` with commas between; without a port 443. Raises ValueError."""
    found = set()
    for each in filter(None, (part.strip().lower() for part in text.split(","))):
        match = _REGISTRY.fullmatch(each)
        port = int(match[2] or 443) if match else 0
        if match is None or not 1 <= port <= 65535:
            raise ValueError(f"{each[:100]!r} is no HOST[:PORT]")
        found.add((match[1], port))
    return frozenset(found)


def read_egress(text: str) -> Policy:
    """Of ``open``, ``off`` or entries with blanks between. Raises VALIDATION_FAILED."""
    words = text.split()
    if len(words) == 1 and words[0] in set(Mode):
        return Policy.read(words[0])
    return Policy.read({"mode": Mode.ALLOWLIST.value, "allow": words})
