"""``artifacts``: what was pushed, and the removal of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, human_bytes, print_table, short, tell
from casstore_client.cli.session import connecting, open_client

if TYPE_CHECKING:
    from casstore.wire import Artifact
    from casstore_client.config import Settings


@click.group(invoke_without_command=True)
@click.option("--name", metavar="NAME", help="Only artifacts of this name.")
@click.option("--label", metavar="K=V", help="Only artifacts with this label.")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="Where the page before ended.")
@connecting
@speaking
@click.pass_context
def artifacts(
    context: click.Context,
    name: str | None,
    label: str | None,
    limit: int,
    after: str | None,
    settings: Settings,
    out: Output,
) -> None:
    """List what was pushed, newest first; or remove artifacts."""
    if context.invoked_subcommand is not None:
        return
    with open_client(settings, content=True) as client:
        found = client.artifacts(name=name, label=label, limit=limit, after=after)

    def people() -> None:
        _show(found.artifacts)
        if found.next:
            tell(f"… more: --after {found.next}", err=True)

    out.emit(found, people)


def _show(artifacts: Sequence[Artifact]) -> None:
    rows = [
        [
            a.number,
            a.name or "-",
            a.kind,
            short(a.digest),
            f"{a.files:,}",
            human_bytes(a.size_bytes),
            a.pushed_at,
            a.by,
            " ".join(f"{label.k}={label.v}" for label in a.labels),
        ]
        for a in artifacts
    ]
    print_table(["number", "name", "kind", "digest", "files", "size", "pushed", "by", "labels"], rows, right=(0, 4, 5))


@artifacts.command("rm")
@click.argument("target", metavar="NUMBER|NAME")
@click.option("--all", "every", is_flag=True, help="Every artifact of that name.")
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would be removed.")
@connecting
@speaking
def remove(target: str, every: bool, dry_run: bool, settings: Settings, out: Output) -> None:
    """Forget an artifact: its number, name and labels.

    What a published snapshot or a pointer names stays, whether or not an artifact names it too; content that nothing needs any more is
    collected later.
    """
    with open_client(settings, content=True) as client:
        done = client.remove_artifacts(target, all=every, dry_run=dry_run)

    def people() -> None:
        _show(done.removed)

    out.emit(done, people)
    out.say("Nothing was removed: --dry-run." if dry_run else f"{len(done.removed)} removed.")
