"""The way in and out of a call: keys, tokens, roles, statuses, the audit log."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from roost.clock import SystemClock
from roost.dialects import boxd
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.errors import CODES, AuthError, NotFoundError, error
from roost.gateway.calls import code_of
from roost.services.exchange import Exchange
from roost.services.models import Role
from roost.store.audit import Wanted
from tests.unit.api.kit import OTHER, TENANT, until

from .conftest import Box

S = grpc.StatusCode


async def token(box: Box, key: str) -> str:
    async with box.served.client(None) as http:
        answer = await http.post("/api/v1/auth/token", json={"api_key": key})
        assert answer.status_code == 200
        return str(answer.json()["token"])


def slow(box: Box, key: str, name: str, messages: AsyncIterator[bytes]) -> Any:
    call = box._channel.stream_unary(f"/{boxd.SERVICE}/{name}")
    return call(messages, metadata=[("authorization", f"Bearer {key}")], timeout=20)


async def audited(box: Box) -> list[tuple[str, int, str | None]]:
    page = await box.served.audit.query(Wanted(TENANT), 50, None)
    return [(each.action, each.status, each.machine_id) for each in reversed(page.items)]


async def test_a_key_is_exchanged_for_a_token_that_calls(box: Box) -> None:
    form = "bxk_" + box.served.key.rpartition("_")[2]
    async with box.served.client(None) as http:
        answer = await http.post("/api/v1/auth/token", json={"api_key": form})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    said = answer.json()
    me = await box.as_(said["token"])("Whoami", pb.Empty(), pb.WhoamiResponse)
    assert me.user_id == TENANT
    assert (await box.as_(form)("Whoami", pb.Empty(), pb.WhoamiResponse)).user_id == TENANT


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"api_key": "bxk_" + "0" * 64}, 401),
        ({"api_key": "nonsense"}, 401),
        ({}, 422),
        ({"api_key": 7}, 422),
        ({"api_key": "x" * 20_000}, 413),  # nobody has said who they are yet
    ],
)
async def test_what_cannot_be_exchanged(box: Box, body: dict[str, object], status: int) -> None:
    async with box.served.client(None) as http:
        answer = await http.post("/api/v1/auth/token", json=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "code", "request_id"}


async def test_a_machines_token_cannot_be_exchanged(box: Box, vm: str) -> None:
    secret = await box.served.add_token(vm, Role.MACHINE)
    async with box.served.client(None) as http:
        assert (await http.post("/api/v1/auth/token", json={"api_key": secret})).status_code == 403


async def test_a_token_ends_with_its_hour(box: Box) -> None:
    given = await token(box, box.served.key)
    services = box.served.services
    clock = services.exchange._clock

    class Later:
        def now(self) -> object:
            return clock.now() + timedelta(hours=1, seconds=1)

    services.exchange._clock = Later()  # type: ignore[assignment]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.as_(given)("Whoami", pb.Empty())
    assert caught.value.code() is S.UNAUTHENTICATED


async def test_a_token_outlives_the_daemon(box: Box) -> None:
    given = await token(box, box.served.key)
    served = box.served
    again = Exchange(served.keys, served.rates, SystemClock(), b"secret")
    assert (await again.authenticate(given)).tenant == TENANT
    other = Exchange(served.keys, served.rates, SystemClock(), b"another")
    with pytest.raises(AuthError):
        await other.authenticate(given)


async def test_a_token_ends_with_its_key(box: Box) -> None:
    made = await box.served.keys.create(TENANT, "second")
    given = await token(box, str(made.secret))
    await box.as_(given)("Whoami", pb.Empty(), pb.WhoamiResponse)
    await box.served.keys.revoke(TENANT, made.id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.as_(given)("Whoami", pb.Empty())
    assert caught.value.code() is S.UNAUTHENTICATED


@pytest.mark.parametrize("credential", [None, "", "bxk_" + "1" * 64, "x.y", "a.rlt_AAAA", "é"])
async def test_who_is_nobody(box: Box, credential: str | None) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if credential == "é":
            credential = "%C3%A9"
        await box.as_(credential)("ListVms", pb.ListVmsRequest())
    assert caught.value.code() is S.UNAUTHENTICATED


async def test_a_token_for_another_key_cannot_be_made_of_ones_own(box: Box) -> None:
    mine = await token(box, box.served.key)
    theirs = await box.served.keys.create(OTHER, "k")
    forged = f"{theirs.id}.{mine.partition('.')[2]}"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.as_(forged)("Whoami", pb.Empty())
    assert caught.value.code() is S.UNAUTHENTICATED


async def test_another_tenants_machine_is_none(box: Box, vm: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.as_(box.served.other_key)("GetVm", pb.VmRef(vm_id=vm), pb.Vm)
    assert caught.value.code() is S.NOT_FOUND
    assert dict(caught.value.trailing_metadata())["roost-code"] == "MACHINE_NOT_FOUND"
    listed = await box.as_(box.served.other_key)(
        "ListVms", pb.ListVmsRequest(all_contexts=True), pb.ListVmsResponse
    )
    assert not listed.vms


async def test_a_key_that_only_reads(box: Box, vm: str) -> None:
    reader = box.as_(await box.served.add_key(TENANT, Role.READ_ONLY))
    assert (await reader("GetVm", pb.VmRef(vm_id=vm), pb.Vm)).vm_id == vm
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reader("DestroyVm", pb.VmRef(vm_id=vm))
    assert caught.value.code() is S.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reader.run(vm, "true")
    assert caught.value.code() is S.PERMISSION_DENIED
    await box("StopVm", pb.VmRef(vm_id=vm))
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # it would be woken for it
        await reader("ListDir", pb.PathRequest(vm_id=vm, path="/"), pb.ListDirResponse)
    assert caught.value.code() is S.PERMISSION_DENIED


@pytest.mark.parametrize("role", [Role.MACHINE, Role.PREVIEW])
async def test_tokens_of_machines_may_call_nothing(box: Box, vm: str, role: Role) -> None:
    port = 80 if role is Role.PREVIEW else None
    secret = await box.served.add_token(vm, role, port=port)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.as_(secret)("GetVm", pb.VmRef(vm_id=vm), pb.Vm)
    assert caught.value.code() is S.PERMISSION_DENIED


async def test_what_is_not_served_says_so(box: Box) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box("CreateOrg", pb.Empty())
    assert caught.value.code() is S.UNIMPLEMENTED
    assert caught.value.details() == "Roost does not serve CreateOrg."
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.as_(None)("CreateOrg", pb.Empty())
    assert caught.value.code() is S.UNAUTHENTICATED


async def test_a_field_that_nobody_reads_is_refused(box: Box) -> None:
    raw = pb.CreateVmRequest(name="x").SerializeToString() + b"\x6a\x01t"  # 13: team
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box("CreateVm", raw, pb.MadeVm)  # type: ignore[arg-type]
    assert caught.value.code() is S.UNIMPLEMENTED
    assert "field 13" in str(caught.value.details())
    inner = b"\x42\x02\x38\x01"  # 8: config {7: idle_ignore_outbound}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box("CreateVm", inner, pb.MadeVm)  # type: ignore[arg-type]
    assert "field 7 of VmConfig" in str(caught.value.details())


async def test_what_is_no_message(box: Box) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box("GetVm", b"\xff\xff\xff", pb.Vm)  # type: ignore[arg-type]
    assert caught.value.code() is S.INVALID_ARGUMENT


async def test_no_message_at_all(box: Box) -> None:
    call = box._channel.stream_unary(f"/{boxd.SERVICE}/GetVm", bytes, pb.Vm.FromString)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(iter(()), metadata=box._metadata, timeout=20)
    assert caught.value.code() is S.INVALID_ARGUMENT


async def test_a_strangers_message_is_not_waited_for(box: Box) -> None:
    """So none of it is kept."""
    call = box._channel.stream_unary(f"/{boxd.SERVICE}/UploadFile", bytes, pb.Empty.FromString)
    held = call(metadata=[("authorization", "Bearer nobody")], timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await held
    assert caught.value.code() is S.UNAUTHENTICATED


async def test_a_failure_of_ours_says_nothing_of_itself(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(box.served.machines, "named", broken)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box("GetVm", pb.VmRef(vm_id="x"), pb.Vm)
    assert caught.value.code() is S.INTERNAL
    assert "secret" not in str(caught.value.details())


async def test_what_failed_is_held_by_nothing(box: Box, vm: str) -> None:
    """It would hold a connection to the agent, which a capture waits to see closed."""
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in box.download(pb.PathRequest(vm_id=vm, path="/no-such")):
                pass
        await until(
            lambda: not [each for each in gc.get_objects() if isinstance(each, NotFoundError)]
        )
    finally:
        gc.enable()


async def test_changes_are_in_the_audit_log_and_looks_are_not(box: Box, vm: str) -> None:
    await box("GetVm", pb.VmRef(vm_id=vm), pb.Vm)
    await box.run(vm, "true")
    with pytest.raises(grpc.aio.AioRpcError):
        await box("CreateVm", pb.CreateVmRequest(name="one"), pb.MadeVm)
    await box("DestroyVm", pb.VmRef(vm_id=vm))
    assert await audited(box) == [
        ("boxd_CreateVm", 200, vm),
        ("boxd_Exec", 200, vm),
        ("boxd_CreateVm", 409, None),
        ("boxd_DestroyVm", 200, vm),
    ]


async def test_too_many_calls_are_told_to_wait(box: Box) -> None:
    box.served.rates.set(TENANT, {"requests_per_second": 1, "request_burst": 1})
    await box("Whoami", pb.Empty(), pb.WhoamiResponse)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box("Whoami", pb.Empty(), pb.WhoamiResponse)
    assert caught.value.code() is S.RESOURCE_EXHAUSTED


async def test_a_revoked_key_ends_what_is_open_and_its_command(box: Box, vm: str) -> None:
    made = await box.served.keys.create(TENANT, "second")
    call = box.as_(await token(box, str(made.secret))).exec()
    await call.write(pb.ExecChunk(vm_id=vm, command="echo here; sleep 60"))
    assert (await call.read()).data == b"here\n"
    await box.served.keys.revoke(TENANT, made.id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(10):
            while await call.read():
                pass
    assert caught.value.code() is S.UNAUTHENTICATED
    await until(lambda: not box.served.executions.running)
    assert not box.served.gateway.sessions._of_tenant


async def test_a_key_that_was_revoked_asks_for_nothing_more(
    box: Box, vm: str, tmp_path: Path
) -> None:
    """A call that was begun with it, and holds back what it asks, ends with it."""
    made = await box.served.keys.create(TENANT, "second")
    held = asyncio.Event()

    async def key() -> AsyncIterator[bytes]:
        await held.wait()
        yield pb.CreateApiKeyRequest(name="third").SerializeToString()

    async def pieces() -> AsyncIterator[bytes]:
        first = pb.UploadFileChunk(vm_id=vm, path=str(tmp_path / "held"), total_size=2, data=b"a")
        yield first.SerializeToString()
        await held.wait()
        yield pb.UploadFileChunk(data=b"b").SerializeToString()

    calls = [
        slow(box, str(made.secret), "CreateApiKey", key()),
        slow(box, str(made.secret), "UploadFileStream", pieces()),
    ]
    await until(lambda: box.served.gateway.sessions._of_tenant[TENANT] == 2)
    await box.served.keys.revoke(TENANT, made.id)
    try:
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call, 30)
            assert caught.value.code() is S.UNAUTHENTICATED
    finally:
        held.set()


async def test_a_message_that_does_not_come_is_not_waited_for(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    monkeypatch.setattr("roost.gateway.calls.MESSAGE_S", 0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(slow(box, box.served.key, "Whoami", never()), 15)
    assert caught.value.code() is S.DEADLINE_EXCEEDED
    assert "did not come" in str(caught.value.details())
    await until(lambda: not box.served.gateway.sessions._of_tenant)


async def test_tenants_share_no_sessions(box: Box, vm: str) -> None:
    call = box.exec()
    await call.write(pb.ExecChunk(vm_id=vm, command="sleep 60"))
    await until(lambda: box.served.gateway.sessions._of_tenant[TENANT] == 1)
    call.cancel()
    await until(lambda: not box.served.gateway.sessions._of_tenant)


def test_every_error_has_a_status_and_only_what_may_be_asked_again_is_unavailable() -> None:
    unavailable = {c for c in CODES if code_of(error(c, "x")) is S.UNAVAILABLE}
    assert unavailable == {
        "DEPENDENCY_UNAVAILABLE",
        "DATABASE_UNAVAILABLE",
        "DATABASE_CORRUPT",
        "DAEMON_UNREACHABLE",
        "SHUTTING_DOWN",
    }
    assert code_of(error("ALREADY_EXISTS", "x")) is S.ALREADY_EXISTS
    assert code_of(error("INVALID_STATE", "x")) is S.FAILED_PRECONDITION
    assert code_of(error("QUOTA_EXCEEDED", "x")) is S.RESOURCE_EXHAUSTED
    assert code_of(error("TIMEOUT", "x")) is S.DEADLINE_EXCEEDED


def test_every_call_declared_is_served() -> None:
    from roost.dialects.boxd import service

    declared = pb.DESCRIPTOR.services_by_name["BoxdApi"].methods_by_name
    served = {m.name: m for m in service.methods(_nothing())}
    assert set(declared) == set(served)
    for name, method in served.items():
        found = declared[name]
        assert method.request.DESCRIPTOR is found.input_type, name
        assert (method.many, method.streams) == (found.client_streaming, found.server_streaming)
    assert pb.DESCRIPTOR.services_by_name["BoxdApi"].full_name == boxd.SERVICE


def _nothing() -> object:
    class Nothing:
        def __getattr__(self, name: str) -> object:
            return Nothing()

    return Nothing()
