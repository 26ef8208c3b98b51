"""What is spoken inside sandboxes, as the gateway serves it."""

from __future__ import annotations

from roost.api.v1.services import Services
from roost.dialects.e2b.access import Access, action
from roost.dialects.e2b.envd import status
from roost.dialects.e2b.envd.accounts import Accounts
from roost.dialects.e2b.envd.files import FileRoutes
from roost.dialects.e2b.envd.filesystem import Filesystem
from roost.dialects.e2b.envd.metadata import Metadata
from roost.dialects.e2b.envd.place import Admission
from roost.dialects.e2b.envd.process import Processes
from roost.dialects.e2b.envd.refusals import problem
from roost.dialects.e2b.envd.watchers import Watchers
from roost.dialects.serving import App
from roost.gateway.dispatch import Target

PATHS = ("/process.Process", "/filesystem.Filesystem", "/files", "/health", "/envs")


def target(services: Services, access: Access) -> Target:
    """For all sandboxes on one URL. (``/metrics`` is there Roost's own; where each has a host of its own, theirs.)"""
    accounts = Accounts(services.files, services.machines)
    metadata = Metadata(services.files, services.machines)
    watchers = Watchers(services.files, services.machines)
    process = Processes(services, accounts).service()
    filesystem = Filesystem(services, accounts, watchers, metadata).service()
    routes = [
        *process.routes,
        *filesystem.routes,
        *FileRoutes(services, accounts, metadata).routes(),
        *status.routes(services),
    ]
    read_here = process.streams | filesystem.streams | {"/files"}

    def streams(method: str, path: str) -> bool:
        return method == "POST" and path in read_here

    return Target(
        "e2b-envd",
        App(routes),
        paths=PATHS,
        streams=streams,
        action=action,
        admit=Admission(access),
        problem=problem,
    )
