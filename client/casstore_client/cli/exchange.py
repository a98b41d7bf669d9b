"""``export`` and ``import``: content for sites without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from casstore.errors import ConfigurationError
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, human_bytes, short, tell
from casstore_client.cli.session import connecting, open_client, open_signing_client, signing

if TYPE_CHECKING:
    from casstore.formats.trust import TrustFile
    from casstore_client.config import Settings
    from casstore_client.importing import Imported


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("targets", nargs=-1, required=True, metavar="SNAPSHOT|ARTIFACT…")
@click.option(
    "--since", multiple=True, metavar="SNAPSHOT", help="The other side has this: leave out what it consists of."
)
@click.option(
    "--since-export",
    "since_files",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="The other side has this earlier export.",
)
@click.option("--with-parents", is_flag=True, help="Also the snapshots that these follow, all the way back.")
@click.option("--directory", is_flag=True, help="Write a directory instead of a ZIP.")
@connecting
@speaking
def export(
    *,
    file: Path,
    targets: tuple[str, ...],
    since: tuple[str, ...],
    since_files: tuple[Path, ...],
    with_parents: bool,
    directory: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Write snapshots, trees or blobs, with everything that they need, to FILE.

    With a trust file the snapshots' places in the log are proven, and the proofs travel along.
    """
    with open_client(settings) as client:
        done = client.export(
            list(targets),
            file,
            since=list(since),
            since_files=[str(path) for path in since_files],
            parents=with_parents,
            directory=directory,
        )
    manifest = done.manifest
    document = {
        "file": str(file),
        "log": manifest.log,
        "snapshots": [{"digest": str(s.digest), "entry": s.entry} for s in manifest.snapshots],
        "artifacts": [
            {"kind": a.kind, "digest": str(a.digest), "name": None if a.name is None else str(a.name)}
            for a in manifest.artifacts
        ],
        "base": list(manifest.base),
        "proven": done.proven,
        "objects": dict(done.objects),
        "left_out": done.left_out,
        "size_bytes": done.size_bytes,
    }

    def people() -> None:
        for snapshot in manifest.snapshots:
            click.echo(f"snapshot {snapshot.digest}")
        for artifact in manifest.artifacts:
            tell(f"{artifact.kind} {artifact.digest} {artifact.name or ''}".rstrip())

    out.emit(document, people)
    objects = ", ".join(f"{number} {kind}s" for kind, number in sorted(done.objects.items()))
    out.say(f"{file}: {human_bytes(done.size_bytes)}; {objects or 'no object'}; {done.proven} proofs")
    if done.left_out:
        out.say(f"{done.left_out} pages and chunks were left out: the other side has them")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--publish", is_flag=True, help="Publish the snapshots in this server's log; needs a signing key.")
@click.option("--reason", "-m", default="", metavar="TEXT", help="With --publish: why; stands in the log for ever.")
@click.option(
    "--trust",
    "trust_file",
    type=click.Path(path_type=Path),
    help="Trust file of the log that it comes from: every snapshot must be proven to lie in it.",
)
@signing
@speaking
def import_(
    *, file: Path, publish: bool, reason: str, trust_file: Path | None, settings: Settings, out: Output
) -> None:
    """Bring an export into this server: verified whole, then only what is missing is sent, then committed.

    A file that is cut short or damaged changes nothing.
    """
    trust = None if trust_file is None else _read_trust(trust_file)
    with open_signing_client(settings) if publish else open_client(settings, content=True) as client:
        done = client.import_file(file, publish=publish, why=reason, trust=trust)
    out.emit(_document(done), lambda: _show(done))
    out.say(
        f"{done.objects} objects hold, {done.new_objects} chunks and pages were missing here; "
        f"{human_bytes(done.sent_bytes)} sent in {done.seconds:.2f} s"
    )
    if done.manifest.snapshots and trust is None:
        out.say("Where the snapshots come from was not checked: --trust FILE checks it.")
    if done.documents and not publish:
        out.say(f"Nothing was published: `casstore import --publish {file}` does, with a signing key.")


def _read_trust(path: Path) -> TrustFile:
    from casstore.formats.trust import decode_trust

    try:
        return decode_trust(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _document(done: Imported) -> dict[str, object]:
    return {
        "log": done.manifest.log,
        "artifacts": done.artifacts,
        "snapshots": [str(digest) for digest in done.documents],
        "published": [str(digest) for digest in done.published],
        "proven": [
            {
                "digest": str(found.digest),
                "log": found.log,
                "entry": found.entry,
                "size": found.size,
                "published_at": _time(found.published_at_ms),
                "existed_by": None if found.existed_by_ms is None else _time(found.existed_by_ms),
            }
            for found in done.proven
        ],
        "objects": done.objects,
        "new_objects": done.new_objects,
        "sent_bytes": done.sent_bytes,
    }


def _time(ms: int) -> str:
    from casstore.wire import format_time

    return format_time(ms)


def _show(done: Imported) -> None:
    for artifact in done.artifacts:
        tell(f"{artifact.kind} {artifact.digest} {artifact.name or ''}".rstrip())
    for digest, snapshot in done.documents.items():
        state = "published" if digest in done.published else "not published"
        tell(f"snapshot {digest} {state}: {', '.join(component.name for component in snapshot.components)}")
    for found in done.proven:
        tell(
            f"{short(str(found.digest))} was published in the log {found.log} as entry {found.entry} "
            f"at {_time(found.published_at_ms)}; proven by its checkpoint of {found.size} entries"
        )
