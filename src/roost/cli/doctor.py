"""``roost doctor``: what this host can do, why not more, and the command that mends it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

import typer

from roost.cli._inert import plain
from roost.cli._out import Json, print_json, say, table
from roost.errors import NotFoundError, RoostError, UnsupportedError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def doctor(
    contract: Annotated[
        bool,
        typer.Option(
            "--contract",
            help="What each rung can, what it defends against and what not, and how that is known.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """What this host can do, and how to mend the rest.

    Asks the daemon; where none answers, looks itself. Exit code 1 where no rung is available.
    """
    from roost.cli._connect import client

    try:
        host = client().host()
        with contextlib.suppress(NotFoundError):  # a daemon of an older release
            host["contract"] = client().capabilities()
    except RoostError as exc:
        if exc.code not in ("DAEMON_UNREACHABLE", "AUTH_REQUIRED"):
            raise
        host = asyncio.run(look())
    if json:
        print_json(host)
    elif contract:
        if host.get("contract") is None:
            raise UnsupportedError("This daemon is of an older release and knows no contracts.")
        _show_contract(host["contract"])
    else:
        _show(host)
    if not any(rung["available"] for rung in host["rungs"]):
        raise typer.Exit(1)


def _show(host: dict[str, Any]) -> None:
    daemon = host.get("daemon") or {}
    if daemon.get("pid"):
        say(f"daemon {daemon['version']} at {daemon['url']}, pid {daemon['pid']}")
    elif host.get("node_id"):
        say(f"daemon {daemon['version']} at {daemon['url']} (an admin's key shows more)")
    else:
        say("daemon: none answers here (roost up)")
    print()
    table(
        ["RUNG", "DRIVER", "AVAILABLE", "VERSION", "ISOLATION OR REASON"],
        [
            (
                f"{rung['level']} {rung['isolation']}" if rung.get("isolation") else "-",
                rung["driver"] + ("*" if rung["driver"] == host.get("default_driver") else ""),
                "yes" if rung["available"] else "no",
                rung.get("version"),
                (rung.get("capabilities") or {}).get("claim")
                if rung["available"]
                else rung.get("reason"),
            )
            for rung in host["rungs"]
        ],
        empty="No driver is offered: ROOST_DRIVERS is empty.",
    )
    if host.get("default_driver"):
        print("* isolation=auto takes this one")
    for rung in host["rungs"]:
        details = rung.get("details") or {}
        if rung["available"] and details.get("kvm") is False:
            print(f"{rung['driver']} emulates a CPU, slowly: {plain(details['kvm_reason'])}")
    told = host.get("contract") or {}
    if told.get("least_why"):
        print(f"below level {told['least_level']} nothing is yours: {plain(told['least_why'])}")
    print("what each rung defends against, and what not: roost doctor --contract")
    bad = [c for c in host.get("checks") or [] if not c["ok"]]
    if bad:
        print()
        table(["CHECK", "FOUND"], [(c["name"], c["detail"]) for c in bad])
    for check in host.get("checks") or []:
        if check.get("warning"):
            print(f"\n{plain(check['name'])}: {plain(check['detail'])}")
            for line in check["warning"].splitlines():
                print(f"  {plain(line)}")
    remedies = [r.get("remedy") for r in host["rungs"] if not r["available"]]
    remedies += [c.get("remedy") for c in bad]
    if wanted := list(dict.fromkeys(r for r in remedies if r)):
        print("\nTo mend:")
        for remedy in wanted:
            print(f"  {plain(remedy)}")


_MARKS = {"measured": "measured here", "tested": "tested", "unverified": "not verified"}


def _show_contract(told: dict[str, Any]) -> None:
    for rung in told["rungs"]:
        state = "" if rung["available"] else "; not available here"
        state += "" if rung["allowed"] else "; not yours"
        say(f"{rung['level']} {rung['isolation']} ({rung['driver']}{state}): {rung['claim']}")
        print(f"  between machine and host: {plain(rung['boundary'])}")
        for title, name in (("can", "can"), ("against", "defends_against"), ("not", "does_not")):
            for line in rung[name]:
                how = f"{_MARKS[line['known']]}: {line['by']}"
                print(f"  {title:8}{plain(line['text'])}  [{plain(how)}]")
        print()
    print(f"--unrestricted: {plain(told['unrestricted'])}")
    print(plain(told["advice"]))


async def look() -> dict[str, Any]:
    """The daemon's answer as far as it can be told without one."""
    from roost import __version__
    from roost.client._config import data_dir, default_url
    from roost.drivers import registry
    from roost.engine.ladder import Profile
    from roost.engine.rungs import ANY, Rungs
    from roost.services import contracts
    from roost.settings import Settings

    settings = Settings.model_validate({})
    drivers = {name: registry.create(name, settings) for name in settings.driver_names}
    offer = Rungs(drivers, settings.driver_names, Profile(settings.profile))
    await offer.probe()
    rungs = []
    for name in offer.offered:
        probe, what = offer.probes[name], offer.capabilities(name)
        rungs.append(
            {
                "driver": name,
                "isolation": what.isolation.value if what else None,
                "level": what.level if what else None,
                "available": probe.available,
                "version": probe.version,
                "reason": probe.reason,
                "remedy": probe.remedy,
                "details": dict(probe.details),
                "capabilities": {"claim": what.claim, "boundary": what.boundary} if what else None,
            }
        )
    return {
        "daemon": {
            "pid": None,
            "version": __version__,
            "started_at": None,
            "data_dir": str(data_dir()),
            "url": default_url(),
        },
        "node_id": None,
        "rungs": rungs,
        "checks": await _checks(settings),
        "default_driver": offer.default,
        "profile": offer.profile.value,
        "contract": contracts.describe(offer, ANY, True),
        "capacity": None,
        "pool": None,
    }


async def _checks(settings: Any) -> list[dict[str, Any]]:
    from importlib import import_module

    try:
        module = import_module("roost.host.doctor")
    except ModuleNotFoundError:
        return []
    return [dict(check) for check in await module.checks(settings)]
