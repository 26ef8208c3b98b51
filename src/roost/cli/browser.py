"""``roost browser``: the browser of a machine: goto, text, pages, eval, click, fill, cdp."""

from __future__ import annotations

from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._out import Json, note, print_json, say, table
from roost.units import parse_duration

app = typer.Typer(
    help="The browser of a machine: goto, text, pages, eval, click, fill, cdp.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

PageOption = Annotated[
    str | None,
    typer.Option("--page", metavar="ID", help="Of roost browser pages; default: used last."),
]
SelectorArg = Annotated[str, typer.Argument(metavar="SELECTOR", help="CSS: button[type=submit].")]


@app.command()
def goto(
    machine: MachineArg,
    url: Annotated[str, typer.Argument(metavar="URL")],
    wait_until: Annotated[
        str, typer.Option(metavar="WHEN", help="load, domcontentloaded or none.")
    ] = "load",
    timeout: Annotated[float, typer.Option(min=0.001, max=300.0, metavar="SECONDS")] = 30.0,
    page: PageOption = None,
    json: Json = False,
) -> None:
    """Open an address; prints where it led and the page's title."""
    found = find(machine).browser.goto(url, wait_until=wait_until, timeout=timeout, page=page)
    if json:
        print_json(
            {"page_id": found.id, "url": found.url, "title": found.title, "status": found.status}
        )
    else:
        say(f"{found.status or '-'}  {found.url}  {found.title}")


@app.command()
def text(
    machine: MachineArg,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Characters at most.")] = 100_000,
    page: PageOption = None,
    json: Json = False,
) -> None:
    """Print what is to be read on the page."""
    found = find(machine).browser.text(limit=limit, page=page)
    if json:
        print_json({"text": found})
        return
    for line in found.splitlines():
        say(line)


@app.command()
def pages(machine: MachineArg, json: Json = False) -> None:
    """List the pages that are open, the one used last first."""
    found = find(machine).browser.pages()
    if json:
        print_json({"items": [{"page_id": p.id, "url": p.url, "title": p.title} for p in found]})
        return
    table(["PAGE", "URL", "TITLE"], [(p.id, p.url, p.title) for p in found], empty="no pages")


@app.command("eval")
def eval_(
    machine: MachineArg,
    expression: Annotated[str, typer.Argument(metavar="JAVASCRIPT")],
    page: PageOption = None,
) -> None:
    """Print what a JavaScript expression is in the page, as JSON."""
    print_json(find(machine).browser.eval(expression, page=page))


@app.command()
def click(machine: MachineArg, selector: SelectorArg, page: PageOption = None) -> None:
    """Click the first element that a CSS selector finds."""
    find(machine).browser.click(selector, page=page)


@app.command()
def fill(
    machine: MachineArg,
    selector: SelectorArg,
    value: Annotated[str, typer.Argument(metavar="TEXT")],
    page: PageOption = None,
) -> None:
    """Put text into a field, over what is there."""
    find(machine).browser.fill(selector, value, page=page)


@app.command()
def cdp(
    machine: MachineArg,
    ttl: Annotated[
        str, typer.Option(metavar="TIME", help="How long the address is good for, a day at most.")
    ] = "1h",
    json: Json = False,
) -> None:
    """Print an address of the whole browser for Playwright, Puppeteer and others that speak CDP."""
    url = find(machine).browser.cdp_url(ttl=parse_duration(ttl) or 3600)
    if json:
        print_json({"url": url})
        return
    say(url)
    note("Whoever has this address has the browser: playwright.chromium.connect_over_cdp(URL)")
