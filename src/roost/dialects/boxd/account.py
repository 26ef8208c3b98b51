"""Who asks: the tenant is the user, and the one org there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from roost.api.v1.services import Services
from roost.dialects.boxd import shapes
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.dialects.serving import not_served
from roost.errors import ConflictError
from roost.gateway.calls import Call, Method
from roost.services import limits
from roost.services.models import CreateMachine, Role

PREFIX = "bxk"


class Account:
    def __init__(self, services: Services) -> None:
        self._s = services

    def methods(self) -> list[Method]:
        return [
            Method("Whoami", pb.Empty, self.whoami, reads=True),
            Method("GetConfig", pb.Empty, self.config, reads=True),
            Method("ListOrgs", pb.Empty, self.orgs, reads=True),
            Method("LinkSshKey", pb.LinkSshKeyRequest, self.link),
            Method("CreateApiKey", pb.CreateApiKeyRequest, self.create_key),
            Method("ListApiKeys", pb.Empty, self.keys, reads=True),
            Method("DeleteApiKey", pb.ApiKeyRef, self.delete_key),
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

    # --- keys -----------------------------------------------------------------------------------

    async def link(self, call: Call, asked: pb.LinkSshKeyRequest) -> pb.Empty:
        """Again: nothing changes."""
        try:
            await self._s.ssh_keys.add(call.tenant, asked.pubkey, asked.label or None)
        except ConflictError as failure:
            if failure.code != "ALREADY_EXISTS":
                raise
        return pb.Empty()

    async def create_key(
        self, call: Call, asked: pb.CreateApiKeyRequest
    ) -> pb.CreateApiKeyResponse:
        """Of the role of the key it is asked with."""
        shapes.check_org(asked.org, call.tenant)
        if asked.kind not in ("", "member"):
            raise not_served(f"keys of kind {asked.kind[:32]!r}", "A key is its tenant's.")
        until = None
        if asked.expires_in_secs:
            limits.seconds("expires_in", asked.expires_in_secs)
            until = datetime.now(UTC) + timedelta(seconds=asked.expires_in_secs)
        role = call.who.role
        made = await self._s.keys.create(call.tenant, asked.name, role, expires_at=until, by=role)
        secret = str(made.secret).rpartition("_")[2]
        return pb.CreateApiKeyResponse(
            id=made.id, api_key=f"{PREFIX}_{secret}", expires_at=_seconds(made.expires_at)
        )

    async def keys(self, call: Call, asked: pb.Empty) -> pb.ListApiKeysResponse:
        found = [
            pb.ApiKey(
                id=each.id,
                name=each.name,
                created_at=_seconds(each.created_at),
                last_used_at=_seconds(each.last_used_at),
                expires_at=_seconds(each.expires_at),
                org=call.tenant,
                kind="member",
            )
            for each in await self._s.keys.list(call.tenant)
        ]
        return pb.ListApiKeysResponse(keys=found)

    async def delete_key(self, call: Call, asked: pb.ApiKeyRef) -> pb.Empty:
        await self._s.keys.revoke(call.tenant, asked.id, call.who.role)
        return pb.Empty()


def _seconds(at: datetime | None) -> int:
    return 0 if at is None else int(at.timestamp())
