"""Who asks: the tenant is the user, and the one org there is."""

from __future__ import annotations

from roost.api.v1.services import Services
from roost.dialects.boxd import shapes
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.gateway.calls import Call, Method
from roost.services.models import CreateMachine, Role


class Account:
    def __init__(self, services: Services) -> None:
        self._s = services

    def methods(self) -> list[Method]:
        return [
            Method("Whoami", pb.Empty, self.whoami, reads=True),
            Method("GetConfig", pb.Empty, self.config, reads=True),
            Method("ListOrgs", pb.Empty, self.orgs, reads=True),
        ]

    async def whoami(self, call: Call, asked: pb.Empty) -> pb.WhoamiResponse:
        keys = await self._s.ssh_keys.list(call.tenant)
        return pb.WhoamiResponse(
            user_id=call.tenant,
            display_name=call.tenant,
            pubkey_fingerprints=[each.fingerprint for each in keys],
        )

    async def config(self, call: Call, asked: pb.Empty) -> pb.GetConfigResponse:
        return pb.GetConfigResponse(
            default_image=CreateMachine().template, zone=shapes.zone(self._s.ports.places)
        )

    async def orgs(self, call: Call, asked: pb.Empty) -> pb.ListOrgsResponse:
        org = pb.Org(
            id=call.tenant,
            name=call.tenant,
            slug=call.tenant,
            is_admin=call.who.role is not Role.READ_ONLY,
        )
        return pb.ListOrgsResponse(orgs=[org], default_org_id=call.tenant)
