"""The commands that keep a store: ``backup``, ``restore``, ``upgrade``.

Plugged into the ``casstore`` command by name, like :mod:`casstore_server.commands`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casstore_client.cli.commands import speaking
from casstore_client.cli.exit_codes import VERIFICATION_FAILED
from casstore_client.cli.output import Output, human_bytes
from casstore_client.cli.session import connecting

if TYPE_CHECKING:
    from casstore.restoring import Restored
    from casstore.wire import BackupReport
    from casstore_client.config import Settings


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--store",
    "store_directory",
    type=click.Path(path_type=Path),
    help="Copy this store, which no server has open; without it the server is asked, and DIR is on its machine.",
)
@click.option(
    "--without-keys", is_flag=True, help="Leave the server's keys out: a restore then needs them from elsewhere."
)
@click.option(
    "--copy", "copy_packs", is_flag=True, help="Copy packs even where they could get a second name (hard link)."
)
@click.option("--prune", is_flag=True, help="Afterwards, remove packs that the backup does not need.")
@click.option("--verify", is_flag=True, help="Make none: check the backup in DIR, which is on this machine.")
@click.option("--quick", is_flag=True, help="With --verify: structure only, without hashing the content.")
@connecting
@speaking
def backup(
    *,
    directory: Path,
    store_directory: Path | None,
    without_keys: bool,
    copy_packs: bool,
    prune: bool,
    verify: bool,
    quick: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Copy a store to DIR: empty, not there yet, or an earlier backup, which is brought up to date.

    A running server makes the copy itself while it serves. The backup before stays valid until the new one is whole. It holds the
    log's private key unless told otherwise: keep it like one.
    """
    if verify:
        _verify(directory, quick, out)
        return
    if quick:
        raise click.UsageError("--quick belongs to --verify")
    options = {"keys": not without_keys, "link": not copy_packs, "prune": prune}
    report = _back_up(store_directory, directory, options, settings)
    out.emit(report, lambda: _show_backup(report))
    if report.absent_packs:
        raise click.exceptions.Exit(VERIFICATION_FAILED)


def _back_up(store: Path | None, directory: Path, options: dict[str, bool], settings: Settings) -> BackupReport:
    target = os.path.abspath(directory)
    if store is not None:
        from casstore.backup import BackupOptions, backup_store
        from casstore.store import Store

        with Store.open(store) as opened:
            return backup_store(opened, target, BackupOptions(**options))
    from casstore_client.cli.session import open_client

    with open_client(settings, content=True) as client:
        made: Any = client.backup(target, **options)
    return made  # type: ignore[no-any-return]


def _show_backup(report: BackupReport) -> None:
    click.echo(f"{report.directory}: the log {report.origin} with {report.log_size} entries, as of {report.began_at}")
    how = f", {report.linked_packs} of them by a second name" if report.linked_packs else ""
    click.echo(
        f"{report.packs} packs, {human_bytes(report.pack_bytes)}; new are {report.new_packs}, {human_bytes(report.new_bytes)}{how}"
    )
    if report.pruned_packs:
        click.echo(
            f"{report.pruned_packs} packs that it does not need were removed, {human_bytes(report.pruned_bytes)}"
        )
    click.echo(
        "The server's private keys are in it: keep it like a key."
        if report.keys
        else "The server's keys are not in it: without a copy of them the log cannot be continued."
    )
    if report.absent_packs:
        named = ", ".join(report.absent)
        click.echo(f"The store itself lacks {report.absent_packs} packs, and so does the backup: {named}")


def _verify(directory: Path, quick: bool, out: Output) -> None:
    from casstore.backup import verify_backup
    from casstore_server.commands import show_report

    width = os.cpu_count() or 1
    with ThreadPoolExecutor(width) as pool:
        report = verify_backup(directory, full=not quick, pool=pool, width=width)
    out.emit(report, lambda: show_report(report, "The backup"))
    if not report.ok:
        raise click.exceptions.Exit(VERIFICATION_FAILED)


@click.command()
@click.argument("backup_directory", type=click.Path(path_type=Path), metavar="BACKUP")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--signed-heads", "heads", type=click.Path(path_type=Path), help="The newest signed-heads of the lost store."
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A checkpoint of its log that somebody holds.")
@click.option("--heads-lost", is_flag=True, help="There is neither; you have looked.")
@click.option("--keys", type=click.Path(path_type=Path), help="Where the server's keys lie, for a backup without them.")
@click.option("--link", is_flag=True, help="Share the packs with the backup (hard links) instead of copying them.")
@click.option("--full", is_flag=True, help="Afterwards hash every object and put every file together.")
@speaking
def restore(
    *,
    backup_directory: Path,
    directory: Path,
    heads: Path | None,
    checkpoint: Path | None,
    heads_lost: bool,
    keys: Path | None,
    link: bool,
    full: bool,
    out: Output,
) -> None:
    """Make a store in DIR, which is empty or not there, out of a backup, and check it.

    Say what was signed after the backup was made: --signed-heads of the lost store, --checkpoint that a client or mirror holds, or
    --heads-lost. If it was more than the backup has, the store will be read-only: going on would make two histories under one key.
    """
    from casstore.restoring import Known, read_note, restore_backup

    known = Known(
        heads=None if heads is None else str(heads),
        checkpoint=None if checkpoint is None else read_note(str(checkpoint)),
        lost=heads_lost,
    )
    width = os.cpu_count() or 1
    with ThreadPoolExecutor(width) as pool:
        done = restore_backup(
            backup_directory,
            directory,
            known,
            keys=None if keys is None else str(keys),
            link=link,
            full=full,
            pool=pool,
            width=width,
        )
    out.emit(_restored_document(done), lambda: _show_restored(done))
    if done.missing or (done.report is not None and not done.report.ok):
        raise click.exceptions.Exit(VERIFICATION_FAILED)


def _restored_document(done: Restored) -> dict[str, object]:
    return {
        "store": done.directory,
        "origin": done.manifest.origin,
        "log_size": done.manifest.log_size,
        "signed_size": done.head.size,
        "read_only": done.read_only,
        "missing_packs": done.missing,
        "report": done.report,
        "upgrade_needed": done.report is None,
    }


def _show_restored(done: Restored) -> None:
    from casstore.wire import format_time
    from casstore_server.commands import show_report

    manifest = done.manifest
    click.echo(
        f"{done.directory}: the log {manifest.origin} with {manifest.log_size} entries, as of {format_time(manifest.began)}"
    )
    if done.missing:
        click.echo(f"{len(done.missing)} packs are missing in the backup: {', '.join(done.missing[:20])}")
    if done.report is None:
        click.echo(f"It has an older format: `casstore upgrade --store {done.directory}`, then `casstore fsck`.")
    else:
        show_report(done.report, "The store")
    if done.read_only is not None:
        click.echo(f"It will be READ-ONLY: {done.read_only}. See docs/operations/recovery.md.")


@click.command()
@click.option("--store", "directory", envvar="CASSTORE_STORE", type=click.Path(path_type=Path), required=True)
@click.option("--dry-run", is_flag=True, help="Change nothing; show the steps.")
@speaking
def upgrade(directory: Path, dry_run: bool, out: Output) -> None:
    """Convert a store that no server has open to the format of this version.

    There is no way back: make a backup first. What is interrupted is done again.
    """
    from casstore.limits import FORMAT_VERSION
    from casstore.storage.local.files import Files
    from casstore.storage.local.upgrade import upgrade_store

    steps = upgrade_store(directory, Files(), dry_run=dry_run)
    document = {
        "store": str(directory),
        "format": FORMAT_VERSION,
        "dry_run": dry_run,
        "steps": [{"format": step.version, "title": step.title, "changes": step.changes} for step in steps],
    }

    def people() -> None:
        for step in steps:
            click.echo(f"format {step.version}: {step.title}")
            for change in step.changes:
                click.echo(f"  {change}")
        if not steps:
            click.echo(f"{directory} has format {FORMAT_VERSION} already.")
        elif dry_run:
            click.echo("Nothing was changed: --dry-run.")

    out.emit(document, people)
