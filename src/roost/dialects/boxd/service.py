"""The calls that are served, one table."""

from __future__ import annotations

import grpc

from roost.api.v1.services import Services
from roost.dialects.boxd.account import Account
from roost.dialects.boxd.captures import Captures
from roost.dialects.boxd.disks import Disks
from roost.dialects.boxd.execs import Execs
from roost.dialects.boxd.files import Files
from roost.dialects.boxd.machines import Machines
from roost.dialects.boxd.proxies import Proxies
from roost.gateway.calls import Calls, Method

SERVICE = "boxd.api.v1.BoxdApi"


def methods(services: Services) -> list[Method]:
    proxies = Proxies(services)
    things = (
        Machines(services, proxies), proxies, Execs(services), Files(services), Captures(services), Disks(services),
        Account(services),
    )  # fmt: skip
    return [method for each in things for method in each.methods()]


def handler(services: Services, guard: Calls) -> grpc.GenericRpcHandler:
    return guard.handler("boxd", SERVICE, methods(services))
