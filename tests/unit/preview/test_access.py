"""Who sees what, and what everybody else hears (CASES 46 and 47)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest

from roost import ids
from roost.errors import InvalidRequestError
from roost.services.models import Role
from roost.services.places import Places
from tests.attack.record import case
from tests.unit.api.kit import OTHER, TENANT, Served, until
from tests.unit.preview.kit import Inside, Raw, get, inside, shown


def mine(host: str) -> str:
    return host.partition("-")[2].partition(".")[0]


async def status(served: Served, host: str, *lines: str, path: str = "/") -> int:
    async with Raw(served.port) as raw:
        return (await raw.ask(get(host, path, *lines)))[0]


@case(46)
async def test_a_private_port_opens_to_its_own_and_to_nobody_else(plane: Served) -> None:
    async with inside() as server:
        host = await shown(plane, server.port, visibility="private")
        machine = mine(host)
        sibling = plane.machine()
        at = {"port": server.port}
        good = await plane.add_token(machine, Role.PREVIEW, **at)
        opens = [plane.key, good, await plane.add_key(TENANT, Role.READ_ONLY)]
        refused = [
            plane.other_key,
            plane.admin,  # of another tenant: its own is "default"
            await plane.add_token(machine, Role.PREVIEW, port=server.port - 1),
            await plane.add_token(sibling, Role.PREVIEW, **at),
            await plane.add_token(machine, Role.MACHINE),
            "roost_" + "0" * 64,
            "nonsense",
            "rlt_" + "A" * 75,
            "",
        ]
        for way in ("Authorization: Bearer {}", "X-API-Key: {}", "X-Roost-Preview-Token: {}"):
            for token in opens:
                assert await status(plane, host, way.format(token)) == 200, (way, token)
            for token in refused:
                assert await status(plane, host, way.format(token)) == 401, (way, token)
        assert await status(plane, host, f"Cookie: roost_preview={good}") == 200
        assert (
            await status(plane, host, f"Cookie: roost_preview=x; a=b; roost_preview={good}") == 200
        )
        assert await status(plane, host, f"Cookie: roost_preview={plane.key}") == 401, (
            "keys are no cookies"
        )
        assert await status(plane, host) == 401


async def test_whoever_has_nothing_hears_the_same_of_everything(plane: Served) -> None:
    """There, private; there, not shown; not there; a name nobody has; another tenant's."""
    async with inside() as server:
        host = await shown(plane, server.port, visibility="private")
        machine = mine(host)
        named = plane.machine()
        await plane.ports.create(TENANT, named, server.port, name="attempt-1")
        told = set()
        for place in (
            host, f"1-{machine}.localhost", f"80-{ids.new()}.localhost", "attempt-1.localhost", "attempt-2.localhost",
            "a.b.localhost", f"99999-{machine}.localhost", f"{server.port}-{machine}.localhost.",
        ):  # fmt: skip
            for token in ("", f"Authorization: Bearer {plane.other_key}"):
                async with Raw(plane.port) as raw:
                    code, fields, body = await raw.ask(get(place, "/", *([token] if token else [])))
                    told.add((code, body, tuple(sorted(fields.items()))))
        assert len(told) == 1
        assert next(iter(told))[0] == 401
        assert not server.heads
        async with Raw(plane.port) as raw:
            _, fields, body = await raw.ask(get(host, "/", "Accept: text/html,*/*"))
            assert fields["content-type"].startswith("text/html") and b"<h1>Unauthorized" in body
        assert (
            await status(plane, "attempt-1.localhost", f"Authorization: Bearer {plane.key}") == 200
        )


async def test_a_link_sets_a_cookie_for_its_own_host_and_goes(plane: Served) -> None:
    async with inside() as server:
        host = await shown(plane, server.port, visibility="private")
        machine = mine(host)
        full = f"{host}:{plane.port}"
        link = await plane.ports.link(TENANT, machine, server.port, 60)
        assert link.url.startswith(f"http://{full}/?roost_token=rlt_")
        token = link.url.partition("=")[2]
        async with Raw(plane.port) as raw:
            code, fields, _ = await raw.ask(
                get(full, f"//evil.example/x?a=1&roost_token={token}&b=2")
            )
            assert (code, fields["location"]) == (302, f"http://{full}//evil.example/x?a=1&b=2")
            cookie = fields["set-cookie"]
            assert cookie.startswith(
                f"roost_preview={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age="
            )
            assert "omain" not in cookie and "Secure" not in cookie
            assert (await raw.ask(get(full, "/", f"Cookie: {cookie.partition(';')[0]}")))[0] == 200
            assert token.encode() not in server.heads[0]
            code, fields, _ = await raw.ask(
                get(full, f"/?roost_token={token}", "X-Forwarded-Proto: https")
            )
            assert fields["location"].startswith("https://") and "Secure" in fields["set-cookie"]
            cookie = fields["set-cookie"].partition(";")[0]
            assert cookie == f"__Host-roost_preview={token}"
            tossed = "; ".join(["roost_preview=x"] * 9)  # by a sibling, for the whole domain
            assert (await raw.ask(get(full, "/", f"Cookie: {tossed}; {cookie}; a=b")))[0] == 200
            assert b"cookie: a=b\r\n" in server.heads[-1]
            places, plane.ports.places = (
                plane.ports.places, Places("localhost", f"https://localhost:{plane.port}", True)
            )  # fmt: skip
            _, fields, _ = await raw.ask(get(full, f"/?roost_token={token}"))
            assert fields["location"].startswith("https://") and "Secure" in fields["set-cookie"]
            plane.ports.places = places
        assert await status(plane, full, path=f"/?roost_token={token[:-3]}AAA") == 401
        assert await status(plane, full, path=f"/?roost_token={plane.key}") == 401, (
            "a key has no place in a URL"
        )
        sibling = await shown(plane, server.port, visibility="private")
        assert await status(plane, sibling, path=f"/?roost_token={token}") == 401
        assert await status(plane, sibling, f"Cookie: roost_preview={token}") == 401
        await plane.ports.end_links(TENANT, machine, server.port)
        assert await status(plane, full, f"Cookie: roost_preview={token}") == 401
        later = await plane.ports.link(TENANT, machine, server.port, 60)
        token = later.url.partition("=")[2]
        plane.previews.access._now = lambda: datetime.now(UTC).timestamp() + 61  # type: ignore[method-assign]
        assert await status(plane, full, f"Cookie: roost_preview={token}") == 401


@case(47)
@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([], 200),
        (["Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"], 200),
        (["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"], 200),
        (["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate"], 200),
        (["Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"], 403),
        (["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors"], 403),
        (["Origin: http://{host}"], 200),
        (["Origin: http://1-x.localhost"], 403),
        (["Origin: null"], 403),
    ],
)
async def test_a_siblings_page_cannot_use_the_cookie(
    plane: Served, lines: list[str], code: int
) -> None:
    """To browsers all hosts below one domain are one site."""
    async with inside() as server:
        host = await shown(plane, server.port, visibility="private")
        token = await plane.add_token(mine(host), Role.PREVIEW, port=server.port)
        said = [line.format(host=host) for line in lines]
        assert await status(plane, host, f"Cookie: roost_preview={token}", *said) == code
        assert await status(plane, host, f"X-Roost-Preview-Token: {token}", *said) == 200


async def switch(
    server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await server.head(reader)
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello "
    )
    while data := await reader.read(1000):
        writer.write(data.upper())
    writer.write(b" bye")


UPGRADE = ("Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Key: eA==")


async def test_a_tunnel_and_its_ends(plane: Served) -> None:
    async with inside(switch) as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port, visibility="private")
        token = await plane.add_token(mine(host), Role.PREVIEW, port=server.port)
        await raw.say(get(host, "/", *UPGRADE, f"X-Roost-Preview-Token: {token}") + b"early ")
        assert (await raw.answer())[0] == 101
        assert await raw.reader.readexactly(12) == b"hello EARLY "
        await raw.say(b"abc")
        assert await raw.reader.readexactly(3) == b"ABC"
        raw.writer.write_eof()
        assert await raw.rest() == b" bye"
        assert b"upgrade: websocket\r\n" in server.heads[0]


@case(47)
async def test_under_a_cookie_a_websocket_says_where_it_is_from(plane: Served) -> None:
    async with inside(switch) as server:
        host = await shown(plane, server.port, visibility="private")
        token = await plane.add_token(mine(host), Role.PREVIEW, port=server.port)
        cookie = f"Cookie: roost_preview={token}"
        for origin, code in (
            (f"http://{host}", 101), (f"https://{host.upper()}:1", 101), ("http://evil.example", 403), ("null", 403), (None, 403),
        ):  # fmt: skip
            said = [f"Origin: {origin}"] if origin else []
            async with Raw(plane.port) as raw:
                await raw.say(get(host, "/", *UPGRADE, cookie, *said))
                assert (await raw.answer())[0] == code, origin


async def test_what_ends_access_cuts_what_is_open(plane: Served) -> None:
    async with inside(switch) as server:
        for end in ("token", "port", "private", "expiry"):
            host = await shown(
                plane, server.port, visibility="public" if end == "private" else "private"
            )
            machine = mine(host)
            at = datetime.now(UTC) + timedelta(seconds=1.5) if end == "expiry" else None
            made = await plane.keys.issue(
                TENANT, machine, Role.PREVIEW, port=server.port, expires_at=at
            )
            async with Raw(plane.port) as raw:
                await raw.say(get(host, "/", *UPGRADE, f"X-Roost-Preview-Token: {made.secret}"))
                assert (await raw.answer())[0] == 101
                assert await raw.reader.readexactly(6) == b"hello "
                if end == "token":
                    await plane.keys.revoke_token(TENANT, machine, made.id)
                elif end == "port":
                    await plane.ports.delete(TENANT, machine, server.port)
                elif end == "private":
                    await plane.ports.patch(TENANT, machine, server.port, visibility="private")
                try:
                    assert await raw.rest() == b"", end
                except ConnectionResetError:
                    pass
            if end in ("token", "port"):
                assert await status(plane, host, f"X-Roost-Preview-Token: {made.secret}") == 401


async def test_a_machine_that_goes_takes_its_ports_along_and_frees_their_names(
    plane: Served,
) -> None:
    async with inside() as server:
        host = await shown(plane, server.port, name="attempt")
        assert await status(plane, "attempt.localhost") == 200
        answer = await plane.http.delete(f"/v1/machines/{mine(host)}")
        assert answer.status_code == 200
        assert await status(plane, host) in (401, 404, 409)


async def test_by_path_with_a_key_alone(plane: Served) -> None:
    async with inside() as server:
        machine = plane.machine()
        theirs = plane.machine(OTHER)
        server.answers = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=1\r\nService-Worker-Allowed: /\r\n"
            b"NEL: {}\r\nReport-To: {}\r\nAccept-CH: DPR\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nCritical-CH: DPR\r\nAccept-CH: DPR\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ]
        path = f"/v1/machines/{machine}/proxy/{server.port}"
        bearer = f"Authorization: Bearer {plane.key}"
        async with Raw(plane.port) as raw:
            code, fields, _ = await raw.ask(
                get("127.0.0.1", f"{path}/a/b?c=d", bearer, "Cookie: x=1")
            )
            assert code == 200 and fields["content-security-policy"] == "sandbox"
            assert not fields.keys() & {
                "set-cookie", "service-worker-allowed", "nel", "report-to", "accept-ch"
            }  # fmt: skip
            code, fields, _ = await raw.ask(get("127.0.0.1", path, bearer))
            assert code == 103 and fields == {"link": "x"}
            assert (await raw.answer())[0] == 200
            head = server.heads[0]
            assert (
                head.startswith(b"GET /a/b?c=d HTTP/1.1\r\n")
                and b"ookie" not in head
                and b"earer" not in head
            )
            assert f"x-forwarded-prefix: {path}\r\n".encode() in head
            assert (await raw.ask(get("127.0.0.1", "/healthz")))[0] == 200
            assert (await raw.ask(get("127.0.0.1", path, bearer)))[0] == 200
        assert server.heads[-1].startswith(b"GET / HTTP/1.1\r\n")
        token = await plane.add_token(machine, Role.PREVIEW, port=server.port)
        watched = await plane.add_token(machine, Role.MACHINE)
        reader = await plane.add_key(TENANT, Role.READ_ONLY)
        for line, code in (
            ("A: b", 401), (f"X-API-Key: {plane.key}", 401), (f"Cookie: roost_preview={token}", 401),
            (f"X-Roost-Preview-Token: {token}", 401), (f"Authorization: Bearer {token}", 403),
            (f"Authorization: Bearer {watched}", 403), (f"Authorization: Bearer {plane.other_key}", 404),
            (f"Authorization: Bearer {reader}", 200), ("Authorization: Bearer x", 401),
        ):  # fmt: skip
            assert await status(plane, "127.0.0.1", line, path=path) == code, line
        async with Raw(plane.port) as raw:
            said = get("127.0.0.1", path, f"Authorization: Bearer {reader}").replace(
                b"GET", b"POST"
            )
            assert (await raw.ask(said))[0] == 403
        answer = await plane.http.get(f"/v1/machines/{theirs}/proxy/{server.port}/")
        missing = await plane.http.get(f"/v1/machines/{ids.new()}/proxy/{server.port}/")
        assert answer.status_code == missing.status_code == 404
        assert answer.json()["error_code"] == missing.json()["error_code"] == "MACHINE_NOT_FOUND"


@case(48)
async def test_no_port_is_a_way_to_elsewhere(plane: Served) -> None:
    """CASES 48: the agent's port, ``@host``, absolute targets, redirects."""
    machine = plane.machine()
    bearer = f"Authorization: Bearer {plane.key}"
    agent = f"/v1/machines/{machine}/proxy/7111/"
    async with Raw(plane.port) as raw:
        code, _, body = await raw.ask(get("127.0.0.1", agent, bearer))
        assert code == 502 and json.loads(body)["error_code"] == "PORT_CLOSED"
    for odd in ("0", "65536", "08000", "80@127.0.0.1:22", "80:22", "-1", "8%30", "80%2F..", "1e3"):
        assert (
            await status(plane, "127.0.0.1", bearer, path=f"/v1/machines/{machine}/proxy/{odd}/")
            == 404
        ), odd
    made = await plane.http.post(f"/v1/machines/{machine}/ports", json={"port": 7111})
    assert made.status_code == 422
    async with inside() as server:
        host = await shown(plane, server.port)
        server.answers = [
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://127.0.0.1:1/\r\n\r\n"
        ]
        assert await status(plane, host) == 302, "the browser's to follow, not ours"
        for line in (
            "GET http://127.0.0.1:22/ HTTP/1.1",
            "CONNECT 127.0.0.1:22 HTTP/1.1",
            "GET @x HTTP/1.1",
        ):
            async with Raw(plane.port) as raw:
                await raw.ask(get(host))
                code, _, _ = await raw.ask(f"{line}\r\nHost: {host}\r\n\r\n".encode())
                assert code == 400, line


async def test_a_sleeping_machine_is_woken_but_not_for_who_only_reads(plane: Served) -> None:
    async with inside() as server:
        host = await shown(plane, server.port, visibility="private")
        machine = mine(host)
        reader = await plane.add_key(TENANT, Role.READ_ONLY)
        assert await status(plane, host, f"Authorization: Bearer {reader}") == 200
        await plane.machines.sleep(TENANT, machine)
        assert await status(plane, host, f"Authorization: Bearer {reader}") == 403
        assert await status(plane, host) == 401
        assert plane.machines.machines[machine].phase == "sleeping"
        assert await status(plane, host, f"Authorization: Bearer {plane.key}") == 200
        assert plane.machines.machines[machine].phase == "running"
        assert not plane.machines.users[machine]


async def test_bounds_of_a_machine_and_of_a_token(
    plane: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.preview.plane.OF_TOKEN", 2)
    async with inside(switch) as server:
        host = await shown(plane, server.port, visibility="private")
        token = await plane.add_token(mine(host), Role.PREVIEW, port=server.port)
        line = f"X-Roost-Preview-Token: {token}"
        async with Raw(plane.port) as one, Raw(plane.port) as two:
            for raw in (one, two):
                assert (await raw.ask(get(host, "/", *UPGRADE, line)))[0] == 101
            assert await status(plane, host, line) == 429
        await until(lambda: not plane.previews._under_way)
        plane.previews._per_second, plane.previews._burst = 1.0, 2.0
        plane.previews._left.clear()
        nobody = f"Authorization: Bearer roost_{'0' * 64}"
        codes = [await status(plane, host, nobody) for _ in range(5)]
        assert codes == [401] * 5, "who may not come in takes nothing from who may"
        codes = [await status(plane, host, f"Authorization: Bearer {plane.key}") for _ in range(5)]
        assert 429 in codes


async def test_ports_of_the_api(plane: Served) -> None:
    machine = plane.machine()
    at = f"/v1/machines/{machine}/ports"
    made = await plane.http.post(at, json={"port": 8000, "visibility": "public", "name": "web"})
    assert made.status_code == 201, made.text
    assert made.json()["url"] == f"http://web.localhost:{plane.port}"
    again = await plane.http.post(at, json={"port": 8000})
    assert again.json()["error_code"] == "ALREADY_EXISTS"
    taken = await plane.http.post(
        f"/v1/machines/{plane.machine()}/ports", json={"port": 1, "name": "web"}
    )
    assert taken.status_code == 409 and "taken" in taken.json()["message"]
    for name in ("api", "Web", "a_b", "-a", "a.b", "xn--a", f"80-{machine}", "a" * 64, "", "login"):
        bad = await plane.http.post(at, json={"port": 9, "name": name})
        assert bad.status_code == 422, name
    raw = await plane.http.post(at, json={"port": 22, "protocol": "tcp"})
    assert raw.status_code == 201 and raw.json()["url"] is None
    assert (await plane.http.post(f"{at}/22/links", json={})).status_code == 501
    changed = await plane.http.patch(f"{at}/8000", json={"name": None, "visibility": "private"})
    assert changed.json()["url"] == f"http://8000-{machine}.localhost:{plane.port}"
    assert [p["port"] for p in (await plane.http.get(at)).json()["items"]] == [22, 8000]
    link = await plane.http.post(f"{at}/8000/links", json={"ttl_seconds": 5})
    assert link.status_code == 201 and link.headers["cache-control"] == "no-store"
    assert (await plane.http.delete(f"{at}/8000")).status_code == 204
    assert (await plane.http.get(f"{at}/8000")).json()["error_code"] == "PORT_NOT_FOUND"
    for port in range(1000, 1063):
        assert (await plane.http.post(at, json={"port": port})).status_code == 201
    full = await plane.http.post(at, json={"port": 2000})
    assert full.json()["error_code"] == "QUOTA_EXCEEDED"
    async with plane.client(plane.other_key) as other:
        assert (await other.get(at)).json()["error_code"] == "MACHINE_NOT_FOUND"


async def test_nobody_else_takes_from_what_a_machine_may_be_asked(plane: Served) -> None:
    theirs = plane.machine(OTHER)
    plane.previews._per_second, plane.previews._burst = 0.0, 2.0
    bearer = f"Authorization: Bearer {plane.key}"
    for _ in range(2):
        for machine in (theirs, ids.new()):
            for _ in range(3):
                assert (
                    await status(plane, "127.0.0.1", bearer, path=f"/v1/machines/{machine}/proxy/1")
                    == 404
                )
        assert not plane.previews._left
        plane.machines.machines[theirs] = dataclasses.replace(
            plane.machines.machines[theirs], phase="sleeping"
        )


async def test_a_machine_that_is_being_destroyed_is_given_no_port(
    plane: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that began after the machine was looked at."""
    monkeypatch.setattr("roost.store.machines.phase", lambda connection, machine_id: "destroying")
    machine = plane.machine()
    made = await plane.http.post(f"/v1/machines/{machine}/ports", json={"port": 8000})
    assert made.status_code == 409
    assert (await plane.http.get(f"/v1/machines/{machine}/ports")).json()["items"] == []


async def test_a_name_stays_its_first_tenants(
    plane: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What browsers keep of it, service workers among that, is nobody else's."""
    mine, theirs = plane.machine(), plane.machine(OTHER)
    named = {"port": 1, "name": "web"}
    await plane.ports.create(TENANT, mine, 1, name="web")
    await plane.ports.patch(TENANT, mine, 1, name=None)
    await plane.ports.delete(TENANT, mine, 1)
    async with plane.client(plane.other_key) as other:
        refused = await other.post(f"/v1/machines/{theirs}/ports", json=named)
        assert refused.status_code == 409 and "taken" in refused.json()["message"]
        assert (await other.get(f"/v1/machines/{theirs}/ports")).json()["items"] == []
        plain = await other.post(f"/v1/machines/{theirs}/ports", json={"port": 1})
        assert plain.status_code == 201
        moved = await other.patch(f"/v1/machines/{theirs}/ports/1", json={"name": "web"})
        assert moved.json()["error_code"] == "ALREADY_EXISTS"
    again = await plane.http.post(f"/v1/machines/{plane.machine()}/ports", json=named)
    assert again.status_code == 201, "its own may have it again"
    monkeypatch.setattr("roost.services.ports.NAMES", 1)
    more = await plane.http.post(f"/v1/machines/{mine}/ports", json={"port": 2, "name": "web2"})
    assert more.json()["error_code"] == "QUOTA_EXCEEDED"


async def test_every_port_at_once(plane: Served) -> None:
    """Port 0: each that is not shown by itself, but for those that Roost's own calls use."""
    async with inside() as server, inside() as other:
        machine = plane.machine()
        path = f"/v1/machines/{machine}/ports"
        made = await plane.http.post(path, json={"port": 0, "visibility": "public"})
        assert made.status_code == 201 and made.json()["url"] is None
        for each in (server, other):
            assert await status(plane, f"{each.port}-{machine}.localhost") == 200
        assert await status(plane, f"7114-{machine}.localhost") == 401
        # One that is shown by itself is as it says.
        await plane.http.post(path, json={"port": other.port, "visibility": "private"})
        assert await status(plane, f"{other.port}-{machine}.localhost") == 401
        assert await status(plane, f"{server.port}-{machine}.localhost") == 200
        for wrong in ({"protocol": "tcp"}, {"name": "all"}):
            answer = await plane.http.post(path, json={"port": 0, **wrong})
            assert answer.status_code == 422
        assert (await plane.http.post(f"{path}/0/links")).status_code == 501
        assert (await plane.http.delete(f"{path}/0")).status_code == 204
        with pytest.raises(InvalidRequestError):  # for its owner to say
            await plane.ports.create(TENANT, machine, 0, from_inside=True)
        assert await status(plane, f"{server.port}-{machine}.localhost") == 401
