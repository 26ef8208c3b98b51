"""The gRPC service that boxd's clients speak, and the exchange of a key for a token that they begin with.

    app        over HTTP: POST /api/v1/auth/token            service   the table of calls, for the gateway's guard
    machines   their lives       execs  commands in them     files     theirs
    proxies    ports shown       captures  snapshots, checkpoints      disks     volumes
    account  who asks
    names      a machine's, a route's, a capture's name here and there      shapes    machines as messages
    wire       generated from proto/roost/dialects/boxd/wire/boxd.proto, which declares what is served and no more

A boxd machine's name is its key here, so no two of a tenant have the same. One org there is: the tenant.
"""

from roost.dialects.boxd.app import target
from roost.dialects.boxd.service import SERVICE, handler

__all__ = ["SERVICE", "handler", "target"]
