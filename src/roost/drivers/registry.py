"""Name -> constructor. Imports a driver only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from roost.drivers.interface import Driver
from roost.errors import InvalidRequestError
from roost.settings import Settings


def _runc(settings: Settings) -> Driver:
    from roost.drivers.runc import RuncDriver

    return RuncDriver(settings)


def _gvisor(settings: Settings) -> Driver:
    from roost.drivers.gvisor import GVisorDriver

    return GVisorDriver(settings)


def _user(settings: Settings) -> Driver:
    from roost.drivers.user import UserDriver

    return UserDriver(settings)


def _systemd(settings: Settings) -> Driver:
    from roost.drivers.systemd import SystemdDriver

    return SystemdDriver(settings)


def _qemu(settings: Settings) -> Driver:
    from roost.drivers.qemu import QemuDriver

    return QemuDriver(settings)


def _workspace(settings: Settings) -> Driver:
    from roost.drivers.workspace import WorkspaceDriver

    return WorkspaceDriver(settings)


def _fake(settings: Settings) -> Driver:
    from roost.drivers.fake import FakeDriver

    return FakeDriver()


_DRIVERS: dict[str, Callable[[Settings], Driver]] = {
    "qemu": _qemu,
    "gvisor": _gvisor,
    "runc": _runc,
    "user": _user,
    "systemd": _systemd,
    "workspace": _workspace,
    "fake": _fake,
}


def names() -> list[str]:
    """What an operator can name in ROOST_DRIVERS."""
    return [name for name in _DRIVERS if name != "fake"]


def create(name: str, settings: Settings) -> Driver:
    try:
        constructor = _DRIVERS[name]
    except KeyError:
        raise InvalidRequestError(
            f"There is no driver {name!r}; ROOST_DRIVERS can name {', '.join(names())}.",
            code="CONFIG_INVALID",
        ) from None
    return constructor(settings)
