"""Commands that read and move pointers: status, flip, rollback, promote, retire, hold, release, mark, history, at."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from casstore import wire
from casstore.errors import InvalidInput
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, human_bytes, print_table, short, tell
from casstore_client.cli.session import connecting, open_client, open_signing_client, signing

if TYPE_CHECKING:
    from casstore.formats.acts import Verdict
    from casstore_client.blocking import Client
    from casstore_client.config import Settings

_EXPECT = click.option(
    "--expect",
    metavar="fN|any|none",
    help="The flip that the pointer is at, as you saw it; 'none' for a new pointer, 'any' to take what comes.",
)
_REASON = click.option("--reason", "-m", default="", metavar="TEXT", help="Why; stands in the log for ever.")


def parse_flip(text: str) -> int:
    """``f1043`` → 1043.

    Raises:
        click.UsageError: any other spelling.
    """
    if not re.fullmatch(r"f(0|[1-9][0-9]{0,18})", text):
        raise click.UsageError(f"a flip is written f and its number, such as f1043, not {text[:100]!r}")
    return int(text[1:])


def check_expect(pointer: str, expect: str | None, out: Output) -> None:
    """Find out before anything else whether ``--expect`` says enough: a script must give it, a person is asked.

    Raises:
        click.UsageError: another spelling; or not said, and nobody at a terminal.
    """
    if expect not in (None, "any", "none"):
        parse_flip(expect)
    if expect is None and (out.json or not (sys.stdin.isatty() and sys.stderr.isatty())):
        raise click.UsageError(
            f"--expect is needed where nobody is asked: the flip that {pointer} is at (casstore status {pointer}), 'none' for a new "
            "pointer, or 'any'"
        )


def resolve_expect(client: Client, pointer: str, expect: str | None, action: str) -> Any:
    """What to put into the intent's ``expect``.

    On a terminal the flip that is shown to the person is the one that is expected, once they agree.

    Raises:
        click.Abort: the person declined.
    """
    if expect is not None:
        return {"any": "any", "none": None}[expect] if expect in ("any", "none") else parse_flip(expect)
    current: wire.Pointer | None = client.pointer_or_none(pointer)
    if current is None:
        tell(f"{pointer} does not exist yet.", err=True)
    else:
        tell(
            f"{pointer} is at f{current.flip}: {short(current.snapshot)} since {current.since} by {current.by}.",
            err=True,
        )
    click.confirm(f"{action}?", abort=True, err=True)
    return None if current is None else current.flip


def show_pointer(pointer: wire.Pointer) -> None:
    """Print one pointer for a person."""
    tell(f"{pointer.pointer}  f{pointer.flip}  {short(pointer.snapshot)}  {pointer.status}")
    tell(f"  {pointer.kind} by {pointer.by} at {pointer.since}, flip number {pointer.seq} of this pointer")
    if pointer.reason:
        tell(f"  reason: {pointer.reason}")
    if pointer.previous:
        tell(f"  before: {short(pointer.previous.snapshot)} (f{pointer.previous.flip}, {pointer.previous.status})")
    if pointer.hold:
        until = f" until {pointer.hold.until}" if pointer.hold.until else ""
        tell(f"  HELD{until} by {pointer.hold.by}: {pointer.hold.reason or 'no reason given'}")


def show_skipped(skipped: Sequence[wire.Skipped], *, err: bool = False) -> None:
    """Print what a rollback passed over."""
    for one in skipped:
        tell(f"  skipped {short(one.snapshot)} (f{one.flip}): {one.why}", err=err)


def show_submitted(answer: wire.Submitted) -> None:
    """Print what an act led to."""
    if answer.no_op:
        tell("Nothing to do: it is so already. Nothing was logged.")
    elif answer.replayed:
        tell(f"This was done before, as entry {answer.entry}.")
    else:
        tell(f"Done: entry {answer.entry} of the log.")
    show_skipped(answer.skipped)
    for pointer in answer.pointers:
        show_pointer(pointer)


@click.command()
@click.argument("pointer", required=False)
@connecting
@speaking
def status(pointer: str | None, settings: Settings, out: Output) -> None:
    """Show what POINTER names now; without POINTER, the server and every pointer."""
    with open_client(settings) as client:
        if pointer is not None:
            found = client.pointer(pointer)
            out.emit(found, lambda: show_pointer(found))
            return
        server = client.status()
        listed = client.pointers()

        def people() -> None:
            tell(f"{settings.url}  casstore {server['version']}  log {server['origin']} size {server['log_size']}")
            stored = human_bytes(server["stored_bytes"])
            tell(f"{server['packs']} packs, {stored}, {server['chunks']} chunks, {server['trees']} trees")
            if listed.pointers:
                click.echo()
                rows = [
                    [p.pointer, f"f{p.flip}", short(p.snapshot), p.status, "held" if p.hold else "", p.by, p.since]
                    for p in listed.pointers
                ]
                print_table(["pointer", "flip", "snapshot", "status", "", "by", "since"], rows)

        out.emit({"server": server, "pointers": listed.pointers}, people)


@click.command()
@click.argument("pointer")
@click.argument("snapshot")
@_EXPECT
@_REASON
@click.option("--clear-bad", is_flag=True, help="The snapshot is marked bad: take the mark away and flip.")
@click.option("--clear-hold", is_flag=True, help="The pointer is held: end the hold and flip.")
@signing
@speaking
def flip(
    pointer: str,
    snapshot: str,
    expect: str | None,
    reason: str,
    clear_bad: bool,
    clear_hold: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Make POINTER name SNAPSHOT (a digest, a short one, or another pointer's name)."""
    check_expect(pointer, expect, out)
    with open_signing_client(settings) as client:
        target = client.resolve(snapshot, "snapshot")
        expected = resolve_expect(client, pointer, expect, f"Flip {pointer} to {short(target)}")
        answer = client.flip(
            pointer, target, expect=expected, reason=reason, clear_bad=clear_bad, clear_hold=clear_hold
        )
        out.emit(answer, lambda: show_submitted(answer))


@click.command()
@click.argument("pointer")
@click.option(
    "--to",
    "target",
    default="previous",
    metavar="TARGET",
    help="previous (the default), fN, seq:N, a digest, or before:TIME.",
)
@_EXPECT
@_REASON
@click.option("--no-bad", is_flag=True, help="Do not mark the snapshot that is left bad.")
@click.option("--no-hold", is_flag=True, help="Do not put the pointer on hold.")
@signing
@speaking
def rollback(
    pointer: str,
    target: str,
    expect: str | None,
    reason: str,
    no_bad: bool,
    no_hold: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Take POINTER back to an earlier snapshot.

    The snapshot that is left is marked bad and the pointer is put on hold, so that automation does not put it back, and a second rollback
    goes further back. Forward again: `casstore flip --clear-bad --clear-hold`.
    """
    check_expect(pointer, expect, out)
    with open_signing_client(settings) as client:
        to = parse_rollback_target(client, target)
        agreed: str | None = None
        if expect is None:
            found = client.rollback_target(pointer, to)
            agreed = found.target
            target = f"{short(agreed)} (f{found.target_flip})"
            show_skipped(found.skipped, err=True)
        expected = resolve_expect(client, pointer, expect, f"Roll {pointer} back to {target}")
        answer = client.rollback(
            pointer,
            to=to,
            expect=expected,
            reason=reason,
            leave_bad=not no_bad,
            leave_hold=not no_hold,
            agreed=agreed,
        )
        out.emit(answer, lambda: show_submitted(answer))


def parse_rollback_target(client: Client, text: str) -> Any:
    """The ``--to`` of a rollback: previous, fN, seq:N, before:TIME, or a digest."""
    if text == "previous":
        return "previous"
    if text.startswith("seq:"):
        if not re.fullmatch(r"[1-9][0-9]{0,18}", text[4:]):
            raise click.UsageError(f"seq: wants a number, not {text[4:100]!r}")
        return wire.RollbackTo(seq=int(text[4:]))
    if text.startswith("before:"):
        return wire.RollbackTo(before=wire.format_time(wire.parse_time(text.removeprefix("before:"))))
    if text.startswith("f") and text[1:].isdigit():
        return wire.RollbackTo(flip=parse_flip(text))
    return wire.RollbackTo(snapshot=client.resolve(text, "snapshot"))


@click.command()
@click.argument("source")
@click.argument("destination")
@_EXPECT
@_REASON
@click.option(
    "--clear-bad", is_flag=True, help="The snapshot is marked bad for DESTINATION: take the mark away and flip."
)
@click.option("--clear-hold", is_flag=True, help="DESTINATION is held: end the hold and flip.")
@signing
@speaking
def promote(
    source: str,
    destination: str,
    expect: str | None,
    reason: str,
    clear_bad: bool,
    clear_hold: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Flip pointer DESTINATION to what pointer SOURCE names: production gets exactly what was tested."""
    check_expect(destination, expect, out)
    with open_signing_client(settings) as client:
        expected = resolve_expect(client, destination, expect, f"Promote {source} to {destination}")
        answer = client.promote(
            source, destination, expect=expected, reason=reason, clear_bad=clear_bad, clear_hold=clear_hold
        )
        out.emit(answer, lambda: show_submitted(answer))


@click.command()
@click.argument("pointer")
@_EXPECT
@_REASON
@signing
@speaking
def retire(pointer: str, expect: str | None, reason: str, settings: Settings, out: Output) -> None:
    """Make POINTER name nothing; its history stays, and it can be flipped again."""
    check_expect(pointer, expect, out)
    with open_signing_client(settings) as client:
        expected = resolve_expect(client, pointer, expect, f"Retire {pointer}")
        answer = client.retire(pointer, expect=expected, reason=reason)
        out.emit(answer, lambda: show_submitted(answer))


@click.command()
@click.argument("pointer")
@click.option("--until", metavar="TIME", help="When the hold ends by itself (RFC 3339).")
@_REASON
@signing
@speaking
def hold(pointer: str, until: str | None, reason: str, settings: Settings, out: Output) -> None:
    """Block every flip of POINTER but rollbacks."""
    until_ms = None if until is None else wire.parse_time(until)
    _act(settings, out, lambda client: client.hold(pointer, until_ms=until_ms, reason=reason))


@click.command()
@click.argument("pointer")
@_REASON
@signing
@speaking
def release(pointer: str, reason: str, settings: Settings, out: Output) -> None:
    """End the hold on POINTER."""
    _act(settings, out, lambda client: client.release(pointer, reason=reason))


@click.command()
@click.argument("verdict", type=click.Choice(["good", "bad"]))
@click.argument("pointer")
@click.argument("snapshot", required=False)
@_REASON
@signing
@speaking
def mark(verdict: Verdict, pointer: str, snapshot: str | None, reason: str, settings: Settings, out: Output) -> None:
    """Mark SNAPSHOT (by default the one that POINTER names now) good or bad for POINTER.

    A rollback never goes to a snapshot that is marked bad.
    """

    def act(client: Client) -> wire.Submitted:
        target = client.resolve(snapshot, "snapshot") if snapshot else client.pointer(pointer).snapshot
        if target is None:
            raise InvalidInput(f"{pointer} is retired and names no snapshot", hint="say which snapshot to mark")
        return client.mark(pointer, target, verdict, reason=reason)

    _act(settings, out, act)


def _act(settings: Settings, out: Output, act: Callable[[Client], wire.Submitted]) -> None:
    with open_signing_client(settings) as client:
        answer = act(client)
        out.emit(answer, lambda: show_submitted(answer))


@click.command()
@click.argument("pointer")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many flips.")
@click.option("--before", metavar="fN", help="Only flips before this one (the next page).")
@click.option("--since", metavar="TIME", help="Only flips at or after this time.")
@click.option("--until", metavar="TIME", help="Only flips before this time.")
@click.option(
    "--kind",
    type=click.Choice(["init", "deploy", "promote", "rollback", "retire"]),
    help="Only flips of this kind.",
)
@click.option("--by", help="Only flips by this principal.")
@connecting
@speaking
def history(
    pointer: str,
    limit: int,
    before: str | None,
    since: str | None,
    until: str | None,
    kind: str | None,
    by: str | None,
    settings: Settings,
    out: Output,
) -> None:
    """List the flips of POINTER, newest first."""
    with open_client(settings) as client:
        before_flip = None if before is None else parse_flip(before)
        found = client.history(pointer, limit=limit, before=before_flip, since=since, until=until, kind=kind, by=by)

        def people() -> None:
            rows = [
                [f"f{i.flip}", i.seq, i.at, i.kind, short(i.from_), short(i.to), i.status, i.by, i.reason]
                for i in found.items
            ]
            print_table(["flip", "seq", "at", "kind", "from", "to", "status", "by", "reason"], rows, right=(1,))
            if found.next:
                tell(f"… more: --before {found.next}", err=True)

        out.emit(found, people)


@click.command()
@click.argument("pointer")
@click.argument("time")
@connecting
@speaking
def at(pointer: str, time: str, settings: Settings, out: Output) -> None:
    """Show what POINTER named at TIME (RFC 3339, or fN), with a proof that is verified before it is shown."""
    with open_client(settings) as client:
        found = client.was_live(pointer, time)

        def people() -> None:
            if found.flip is None or found.snapshot is None:
                tell(f"{pointer} named nothing at {found.asked}.")
                return
            tell(f"{pointer} named {found.snapshot}")
            tell(f"  from {found.valid_from} until {found.valid_until or 'now'}")
            tell(
                f"  by {found.flip.kind} f{found.flip.flip} of {found.flip.by}"
                + (f": {found.flip.reason}" if found.flip.reason else "")
            )

        out.emit(found, people)
