"""Everything an operator can set: environment ``ROOST_*`` or ``/etc/roost/roost.env``-style files."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from roost.prices import Prices


class Settings(BaseSettings):
    """The daemon's settings; each has a documented default."""

    model_config = SettingsConfigDict(env_prefix="ROOST_", extra="ignore")

    data_dir: Path = Field(Path("/var/lib/roost"), description="Database, pool, keys, logs.")
    run_dir: Path = Field(
        Path("/run/roost"), description="Sockets, pid file, bundles; gone after a reboot."
    )
    host: str = Field("127.0.0.1", description="Address the one port listens on.")
    port: int = Field(7676, ge=1, le=65535, description="The one port: HTTP and gRPC.")
    drivers: str = Field(
        "qemu,gvisor,runc",
        description="Drivers offered, best first; `auto` takes the first available that need not emulate a CPU.",
    )
    pool_gib: int = Field(200, ge=2, description="Apparent size of a loop-backed pool (sparse).")
    pool_reserve_percent: float = Field(
        5.0, ge=0, le=50, description="Free share below which new disks are refused."
    )
    network_cidr: str = Field(
        "10.201.0.0/16", description="Host-side range of network slots, a /30 each."
    )
    network_pool: int = Field(4, ge=0, description="Network slots made ahead.")
    warm_machines: int = Field(
        2,
        ge=0,
        le=64,
        description="Machines kept ready of each kind asked for lately (driver, template, size); they take memory.",
    )
    dns: str = Field("", description="Resolver machines are led to; empty: the host's own.")
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
        10.0, gt=0, description="Requests with one machine or preview token."
    )
    audit_days: int = Field(90, ge=1, description="Days the audit log goes back.")
    max_connections: int = Field(
        4096,
        ge=16,
        description="Open connections on the port, a fourth of them at most from one address (but loopback); more get 503.",
    )
    host_ca: bool = Field(False, description="Give machines the host's CA bundle.")
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
    usage_interval_s: float = Field(
        60.0, ge=1, le=3600, description="How often usage is counted while nothing changes."
    )
    prices: str = Field(
        "",
        description='JSON, e.g. `{"currency": "EUR", "vcpu_second": "0.00001"}`; also `memory_gib_second`, `storage_gib_hour`, `egress_gib`.',
    )
    log_level: str = Field("info", description="debug, info, warning, error.")

    @field_validator("prices")
    @classmethod
    def _prices(cls, value: str) -> str:
        Prices.read(value)
        return value

    @property
    def driver_names(self) -> list[str]:
        return [n.strip() for n in self.drivers.split(",") if n.strip()]
