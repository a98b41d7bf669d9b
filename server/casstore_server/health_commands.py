"""The commands for a store's health: ``scrub``, ``quarantine``.

Plugged into the ``casstore`` command by name.  Each asks the configured server, or works on a directory that no server has open.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from casstore.limits import SCRUB_RATE_MIN_BYTES_S
from casstore_client.cli.commands import speaking
from casstore_client.cli.exit_codes import VERIFICATION_FAILED
from casstore_client.cli.output import Output, human_bytes, print_table, tell
from casstore_client.cli.session import connecting, open_client

if TYPE_CHECKING:
    from casstore.wire import Finding, ScrubStatus
    from casstore_client.config import Settings

STORE_HELP: Final = "Work on this directory, which no server has open."
_POLL_FIRST_S: Final = 0.01
_POLL_S: Final = 0.5  # a small store is read before anyone would have looked; a large one is looked at twice a second
_SUFFIXES: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def parse_rate(text: str) -> int:
    """``50M`` → bytes a second.

    Raises:
        click.UsageError: any other spelling, or a rate at which a scrub never ends.
    """
    found = re.fullmatch(r"(0|[1-9][0-9]{0,11})([KMG]?)", text, re.ASCII)
    if not found:
        raise click.UsageError(
            f"a rate is a number of bytes a second, or one with K, M or G, such as 50M, not {text!r}"
        )
    rate = int(found[1]) * _SUFFIXES[found[2]]
    if 0 < rate < SCRUB_RATE_MIN_BYTES_S:
        raise click.UsageError(f"{text} is {rate} bytes a second, which takes for ever: did you mean {text}M?")
    return rate


@click.command()
@click.option("--store", "directory", type=click.Path(path_type=Path), help=STORE_HELP)
@click.option(
    "--rate", metavar="50M", help="Bytes a second; 0 is as fast as it can [default: the server's setting, or 0]."
)
@click.option("--full-pass", is_flag=True, help="Begin from the beginning, even if a pass is unfinished.")
@click.option("--status", "only_status", is_flag=True, help="Say how far it came; start nothing.")
@click.option("--background", is_flag=True, help="Do not wait for the end; not with --store.")
@connecting
@speaking
def scrub(
    *,
    directory: Path | None,
    rate: str | None,
    full_pass: bool,
    only_status: bool,
    background: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Read everything that the store holds and hash it again; what is damaged is taken out of use.

    Goes on where an unfinished pass stopped, and waits for its end. What is out of use is missing from then on: the next push that
    has it heals it. Ends with exit code 6 if this pass has found damage, or anything is in quarantine.
    """
    pace = None if rate is None else parse_rate(rate)
    if directory is not None:
        if background:
            raise click.UsageError("--background asks a server; --store works on a directory")
        found = _scrub_directory(directory, pace or 0, full_pass=full_pass, only_status=only_status, out=out)
    else:
        found = _scrub_server(settings, pace, full_pass=full_pass, wait=not background, only=only_status, out=out)
    out.emit(found, lambda: _show_scrub(found))
    if found.damaged or found.quarantined:
        raise click.exceptions.Exit(VERIFICATION_FAILED)


def _scrub_server(
    settings: Settings, rate: int | None, *, full_pass: bool, wait: bool, only: bool, out: Output
) -> ScrubStatus:
    with open_client(settings, content=True) as client:
        if only:
            return client.scrub_status()
        found = client.scrub(rate_bytes_s=rate, full_pass=full_pass)
        try:
            pause = _POLL_FIRST_S
            while wait and found.running:
                time.sleep(pause)
                pause = min(2 * pause, _POLL_S)
                found = client.scrub_status()
                _progress(found, out)
        except KeyboardInterrupt:
            out.say("The server goes on with the pass; `casstore scrub --status` says how far it is.")
            raise
        return found


def _scrub_directory(directory: Path, rate: int, *, full_pass: bool, only_status: bool, out: Output) -> ScrubStatus:
    from casstore.engine.scrub import STEP_BYTES
    from casstore.store import Store

    width = os.cpu_count() or 1
    with Store.open(directory) as store, ThreadPoolExecutor(width) as pool:
        scrubber = store.scrubber
        if only_status:
            return scrubber.status(running=False)
        scrubber.begin(fresh=full_pass)
        try:
            while scrubber.active:
                began = time.monotonic()
                step = scrubber.step(step_bytes=min(STEP_BYTES, rate or STEP_BYTES), pool=pool, width=width)
                scrubber.record(step)
                _progress(scrubber.status(running=True, rate_bytes_s=rate), out)
                if rate:
                    time.sleep(max(0.0, step.size_bytes / rate - (time.monotonic() - began)))
        finally:
            scrubber.save()
        return scrubber.status(running=False)


def _progress(found: ScrubStatus, out: Output) -> None:
    if out.shows_progress:
        done, total = human_bytes(found.verified_bytes), human_bytes(found.total_bytes)
        click.echo(f"\r{done} of {total} verified, {found.damaged} damaged \x1b[K", err=True, nl=not found.running)


def _show_scrub(found: ScrubStatus) -> None:
    done, total = human_bytes(found.verified_bytes), human_bytes(found.total_bytes)
    state = "runs" if found.running else "is unfinished" if found.pass_active else "has ended"
    if found.pass_number:
        click.echo(f"Pass {found.pass_number} {state}: {done} of {total} verified, {found.verified_frames} objects.")
    click.echo(f"Last full pass: {found.last_full_pass_at or 'never'}.")
    click.echo(f"Oldest verification: {found.oldest_verified_at or 'some packs were never verified'}.")
    show_findings(found.findings)
    if found.quarantined:
        click.echo(f"{found.quarantined} objects are in quarantine: casstore quarantine list")
    elif not found.damaged:
        click.echo("Nothing is damaged.")


def rebuild(directory: Path, out: Output) -> None:
    """Make the index of a store anew: ``fsck --rebuild-index``."""
    from casstore.admin import rebuild_index
    from casstore.engine.rebuild import RebuildProgress

    def tell_progress(found: RebuildProgress) -> None:
        if out.shows_progress:
            size = human_bytes(found.size_bytes)
            click.echo(f"\r{found.round}: {found.done}, {size} read \x1b[K", err=True, nl=False)

    width = os.cpu_count() or 1
    with ThreadPoolExecutor(width) as pool:
        report = rebuild_index(directory, progress=tell_progress, pool=pool, width=width)

    def people() -> None:
        size = human_bytes(report.stored_bytes)
        click.echo(f"The index was made anew: {report.objects} objects in {report.packs} packs, {size}.")
        click.echo(f"Proven: {report.pages} pages, {report.blobs} blobs, {report.trees} trees.")
        show_findings(report.findings, truncated=report.truncated)
        click.echo("Lost with the old one: what was condemned or in quarantine. Collection begins anew.")
        click.echo("Now: casstore fsck --store, which says whether everything is there that should be.")

    out.emit(report, people)
    if any(finding.severity == "error" for finding in report.findings):
        raise click.exceptions.Exit(VERIFICATION_FAILED)


def show_findings(findings: Sequence[Finding], *, truncated: bool = False) -> None:
    """Print what was found, for a person."""
    for finding in findings:
        tell(f"{finding.severity}: {finding.code}: {finding.object} at {finding.where}")
        tell(f"  expected {finding.expected}, found {finding.found}")
        if finding.hint:
            tell(f"  {finding.hint}")
    if truncated:
        click.echo("There is more; the list was cut.")


@click.group()
def quarantine() -> None:
    """Show what was found damaged and taken out of use, or put an object back."""


@quarantine.command("list")
@connecting
@speaking
def list_quarantined(settings: Settings, out: Output) -> None:
    """List what is out of use."""
    with open_client(settings, content=True) as client:
        found = list(client.quarantine())

    def people() -> None:
        if not found:
            click.echo("Nothing is in quarantine.")
            return
        rows = [[o.kind, o.id, o.where, o.since, o.reason] for o in found]
        print_table(["kind", "id", "where", "since", "found"], rows)

    out.emit({"objects": found}, people)


@quarantine.command("release")
@click.argument("object_id", metavar="OBJECT")
@connecting
@speaking
def release_object(object_id: str, settings: Settings, out: Output) -> None:
    """Put OBJECT back into use, if it reads right again; what still reads wrong stays out.

    OBJECT is a digest as messages name it, with its kind ('chunk blake3:…') or without.
    """
    from casstore_server.repair_commands import parse_named

    named = parse_named(object_id)
    with open_client(settings, content=True) as client:
        client.release_object(named.id, named.kind)
    out.emit({"id": named.id, "released": True}, lambda: click.echo(f"released {object_id}"))
