"""Commands that say what is to be kept: pin, unpin."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from casstore_client.cli.commands import speaking
from casstore_client.cli.operate import parse_duration
from casstore_client.cli.output import Output, print_table
from casstore_client.cli.session import connecting, open_client

if TYPE_CHECKING:
    from casstore_client.config import Settings


@click.command()
@click.argument("target", required=False)
@click.option("--owner", metavar="WHO", help="For whom it is kept: a person or a team.")
@click.option("--reason", "-m", metavar="TEXT", help="Why.")
@click.option(
    "--until", metavar="30d", help="How long: a number and s, m, h or d, or a time. Without this, until `unpin`."
)
@connecting
@speaking
def pin(
    target: str | None, owner: str | None, reason: str | None, until: str | None, settings: Settings, out: Output
) -> None:
    """Keep TARGET, a snapshot, artifact, tree or blob, whatever its age; without TARGET, list what is pinned."""
    if target is None:
        _list(settings, out)
        return
    if not owner or not reason:
        raise click.UsageError("a pin says for whom and why: --owner WHO --reason TEXT")
    with open_client(settings, content=True) as client:
        made = client.pin(target, owner=owner, reason=reason, until=None if until is None else _parse_until(until))
    end = f"until {made.until}" if made.until else "until it is taken away"
    out.emit(made, lambda: click.echo(f"pin {made.id}: {made.kind} {made.digest} for {made.owner}, {end}"))


def _parse_until(text: str) -> str:
    from casstore.wire import format_time, parse_time

    if text[-1:] in "smhd" and text[:-1].isdigit():
        return format_time((int(time.time()) + parse_duration(text)) * 1000)
    return format_time(parse_time(text))


def _list(settings: Settings, out: Output) -> None:
    with open_client(settings, content=True) as client:
        found = client.pins()

    def people() -> None:
        rows = [[p.id, p.kind, p.digest, p.owner, p.reason, p.until or "unpinned"] for p in found.pins]
        print_table(["id", "what", "digest", "for", "why", "until"], rows)

    out.emit(found, people)


@click.command()
@click.argument("pin_id", metavar="ID")
@connecting
@speaking
def unpin(pin_id: str, settings: Settings, out: Output) -> None:
    """Take the pin ID away; `casstore pin` lists them."""
    with open_client(settings, content=True) as client:
        client.unpin(pin_id)
    out.emit({"id": pin_id, "unpinned": True}, lambda: click.echo(f"unpinned {pin_id}"))
