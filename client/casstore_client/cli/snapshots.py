"""``casstore snapshot create|show|list``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import InvalidInput
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, human_bytes, print_table, short, tell
from casstore_client.cli.session import connecting, open_client, open_signing_client, parse_labels, signing

if TYPE_CHECKING:
    from casstore_client.config import Settings


@click.group()
def snapshot() -> None:
    """Create, show and list snapshots: immutable descriptions of an environment."""


@snapshot.command()
@click.argument("components", nargs=-1, required=True, metavar="NAME=DIGEST…")
@click.option("--parent", "parents", multiple=True, metavar="SNAPSHOT", help="A snapshot that this one follows.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label; may be given more than once.")
@click.option(
    "--meta",
    "meta",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A JSON object that is stored with it.",
)
@click.option("--mutable", multiple=True, metavar="PATH", help="A path that programs may write to on a host.")
@click.option("--reason", "-m", default="", metavar="TEXT", help="Why; stands in the log for ever.")
@signing
@speaking
def create(
    components: tuple[str, ...],
    parents: tuple[str, ...],
    labels: tuple[str, ...],
    meta: Path | None,
    mutable: tuple[str, ...],
    reason: str,
    settings: Settings,
    out: Output,
) -> None:
    """Publish a snapshot of the given components; prints its digest.

    DIGEST is that of a pushed tree or blob, may be shortened, or is the name of an artifact (its newest push).
    """
    pairs = parse_labels(components, what="component", written="NAME=DIGEST")
    metadata = _read_metadata(meta) if meta else {}
    with open_signing_client(settings) as client:
        resolved = [(name, *client.resolve_artifact(text)) for name, text in pairs.items()]
        answer, digest = client.snapshot_create(
            resolved,
            parents=[client.resolve(parent, "snapshot") for parent in parents],
            labels=parse_labels(labels),
            metadata=metadata,
            mutable=list(mutable),
            why=reason,
        )
        document = {
            "digest": str(digest),
            "components": [{"name": name, "kind": kind, "digest": found} for name, kind, found in resolved],
            "entry": answer.entry,
            "replayed": answer.replayed,
            "no_op": answer.no_op,
        }
        out.emit(document, lambda: click.echo(str(digest)))
        for name, kind, found in resolved:
            out.say(f"{name} is the {kind} {short(found)}")


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the metadata {path} is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise InvalidInput(f"the metadata {path} is not a JSON object")
    return metadata


@snapshot.command()
@click.argument("snapshot_text", metavar="SNAPSHOT")
@connecting
@speaking
def show(snapshot_text: str, settings: Settings, out: Output) -> None:
    """Show a snapshot: its components, labels, parents and metadata."""
    with open_client(settings) as client:
        digest = client.resolve(snapshot_text, "snapshot")
        found = client.snapshot_document(digest)
        document = {
            "digest": digest,
            "components": [{"name": c.name, "kind": c.kind, "digest": str(c.digest)} for c in found.components],
            "labels": [{"k": label.k, "v": label.v} for label in found.labels],
            "parents": [str(parent) for parent in found.parents],
            "mutable": list(found.mutable),
            "metadata": found.metadata,
        }

        def people() -> None:
            click.echo(digest)
            print_table(
                ["component", "kind", "digest"], [[c.name, c.kind, short(str(c.digest))] for c in found.components]
            )
            for label in found.labels:
                tell(f"label {label.k}={label.v}")
            for parent in found.parents:
                click.echo(f"parent {short(str(parent))}")
            if found.metadata:
                click.echo(json.dumps(found.metadata, indent=2, sort_keys=True))

        out.emit(document, people)


@snapshot.command("list")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="Where the page before ended.")
@connecting
@speaking
def list_snapshots(limit: int, after: str | None, settings: Settings, out: Output) -> None:
    """List snapshots, newest first."""
    with open_client(settings) as client:
        found = client.snapshots(after=after, limit=limit)

        def people() -> None:
            rows = [
                [
                    short(s.digest),
                    s.entry,
                    s.published_at,
                    s.components,
                    human_bytes(s.size_bytes),
                    s.by,
                    " ".join(f"{label.k}={label.v}" for label in s.labels),
                ]
                for s in found.snapshots
            ]
            print_table(["snapshot", "entry", "published", "components", "size", "by", "labels"], rows, right=(1, 3, 4))
            if found.next:
                click.echo(f"… more: --after {found.next}", err=True)

        out.emit(found, people)
