"""The command ``gc``: it asks a running server, or opens a store that no server has open.

Plugged into the ``casstore`` command by name, like :mod:`casstore_server.commands`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, human_bytes, print_table
from casstore_client.cli.session import connecting, open_client

if TYPE_CHECKING:
    from casstore.wire import GcDropped, GcReport, GcUndone
    from casstore_client.config import Settings


@click.command()
@click.option(
    "--store",
    "directory",
    envvar="CASSTORE_STORE",
    type=click.Path(path_type=Path),
    help="Open this store, which no server has open, instead of asking a server [env: CASSTORE_STORE].",
)
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    help="With --store: the server's settings (TOML), for what is kept.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be done, and what is kept for whom.")
@click.option("--undo", "undoing", is_flag=True, help="Make live again all that is condemned; do nothing else.")
@click.option("--dropped", metavar="DIGEST", help="Show the list that a gc entry of the log names; do nothing else.")
@connecting
@speaking
def gc(
    *,
    directory: Path | None,
    settings_file: Path | None,
    dry_run: bool,
    undoing: bool,
    dropped: str | None,
    settings: Settings,
    out: Output,
) -> None:
    """Collect what nothing needs any more.

    What the run does not reach is condemned: it can be read, and is missing for pushes. What a later run, a grace after that, does not
    reach either is gone. A server does this by itself every hour.
    """
    if settings_file is not None and directory is None:
        raise click.UsageError("--settings belongs to --store: a server has its own")
    if dry_run and undoing:
        raise click.UsageError("--dry-run and --undo say different things")
    if dropped is not None:
        if dry_run or undoing or settings_file is not None:
            raise click.UsageError("--dropped only shows what an entry of the log names")
        found = _dropped(directory, dropped, settings)
        out.emit(found, lambda: click.echo("\n".join(found.dropped)))
        return
    if undoing:
        undone = _undo(directory, settings)
        out.emit(undone, lambda: click.echo(f"{undone.revived:,} objects are live again"))
        return
    report = _collect(directory, settings_file, dry_run, settings)
    out.emit(report, lambda: show_report(report))


def _collect(directory: Path | None, settings_file: Path | None, dry_run: bool, settings: Settings) -> GcReport:
    if directory is None:
        with open_client(settings, content=True) as client:
            asked: Any = client.gc(dry_run=dry_run)
            return asked  # type: ignore[no-any-return]
    from casstore.config import ServerSettings, load_settings
    from casstore.store import Store

    kept = load_settings(settings_file) if settings_file is not None else ServerSettings()
    with Store.open(directory) as store:
        return store.collect(kept.retention.rules, kept.gc.times, dry_run=dry_run)


def _undo(directory: Path | None, settings: Settings) -> GcUndone:
    if directory is None:
        with open_client(settings, content=True) as client:
            asked: Any = client.gc_undo()
            return asked  # type: ignore[no-any-return]
    from casstore.store import Store
    from casstore.wire import GcUndone

    with Store.open(directory) as store:
        return GcUndone(revived=store.undo_collect())


def _dropped(directory: Path | None, digest: str, settings: Settings) -> GcDropped:
    if directory is None:
        with open_client(settings, content=True) as client:
            asked: Any = client.gc_dropped(digest)
            return asked  # type: ignore[no-any-return]
    from casstore.ids import BlobDigest
    from casstore.store import Store
    from casstore.wire import GcDropped

    with Store.open(directory) as store:
        return GcDropped(digest=digest, dropped=store.dropped(BlobDigest.parse(digest)))


def show_report(report: GcReport) -> None:
    """Print what a run did."""
    would = "would be " if report.dry_run else ""
    roots = ", ".join(f"{count:,} {reason}" for reason, count in report.roots.items()) or "none"
    click.echo(f"Mark {report.mark}, {report.seconds:.1f} s.  Kept for: {roots}.")
    if report.gone:
        click.echo(f"{report.gone:,} of these were collected before.")
    if report.kept:
        print_table(["why", "what", "digest", "for"], [[r.reason, r.kind, r.digest, r.owner] for r in report.kept])
    _counted(f"{would}condemned", report.condemned, report.condemned_bytes)
    if report.revived:
        click.echo(f"revived: {report.revived:,} objects")
    if report.waiting:
        click.echo(f"condemned, in grace: {report.waiting:,} objects; the first may go at {report.waiting_until}")
    _counted(f"{would}dropped", report.dropped, report.dropped_bytes)
    for line in report.removed:
        click.echo(f"  {line}")
    if report.artifacts_expired:
        click.echo(f"{report.artifacts_expired:,} artifacts expired")
    for entry in report.entries:
        click.echo(f"on record as entry {entry} of the log")
    if report.packs_written:
        click.echo(
            f"{report.packs_rewritten} sparse and {report.packs_merged} small packs became {report.packs_written}, "
            f"{human_bytes(report.rewritten_bytes)}"
        )
    if not report.dry_run:
        click.echo(
            f"packs: {report.packs_retired} retired, {report.packs_waiting} wait for their readers, {report.packs_deleted} deleted; "
            f"{human_bytes(report.freed_bytes)} freed"
        )
    for text in report.damaged:
        click.echo(f"DAMAGED: {text}", err=True)
    for text in report.gaps:
        click.echo(f"MISSING: {text}", err=True)
    for text in report.blocked:
        click.echo(f"{text}", err=True)


def _counted(what: str, counts: dict[str, int], size_bytes: int) -> None:
    if counts:
        listed = ", ".join(f"{count:,} {kind}s" for kind, count in counts.items())
        click.echo(f"{what}: {listed}; {human_bytes(size_bytes)}")
