"""Commands that move content: push, pull, cat, ls, diff, artifacts."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

import click

from casstore.formats.tree import EntryType
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, human_bytes, path_fields, print_path, print_table, short, tell
from casstore_client.cli.progress import ProgressLine
from casstore_client.cli.session import connecting, open_client, parse_labels

if TYPE_CHECKING:
    from casstore import wire
    from casstore.formats.tree import TreeEntry
    from casstore_client.config import Settings


@click.command()
@click.argument("path", type=click.Path())
@click.option("--name", "-n", metavar="NAME", help="What the artifact is called.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label; may be given more than once.")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Leave out what matches, as .casstoreignore does; repeatable."
)
@click.option("--no-cache", is_flag=True, help="Read every file, also those that were not touched since the last push.")
@connecting
@speaking
def push(
    path: str,
    name: str | None,
    labels: tuple[str, ...],
    exclude: tuple[str, ...],
    no_cache: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Push PATH, a directory, a file, or - for stdin; prints its digest.

    Only what the server does not have travels. The answer comes after everything is durable and every file has been reassembled.
    """
    with open_client(settings, content=True) as client, ProgressLine(out) as progress:
        result = client.push(
            path,
            name=name,
            labels=parse_labels(labels),
            exclude=exclude,
            cache=not no_cache,
            progress=progress.callback,
        )
    document = {
        "digest": result.artifact.digest,
        "kind": result.artifact.kind,
        "name": result.artifact.name,
        "number": result.artifact.number,
        "files": result.artifact.files,
        "size_bytes": result.artifact.size_bytes,
        "sent_bytes": result.sent_bytes,
        "new_chunks": result.new_chunks,
        "chunks": result.chunks,
        "seconds": round(result.seconds, 3),
    }

    def people() -> None:
        tell(result.artifact.digest)
        rate = human_bytes(int(result.artifact.size_bytes / max(result.seconds, 1e-9)))
        out.say(
            f"{result.artifact.files:,} files, {human_bytes(result.artifact.size_bytes)} in {result.seconds:.2f} s ({rate}/s); "
            f"{human_bytes(result.sent_bytes)} sent, {result.new_chunks:,} of {result.chunks:,} chunks were new"
        )

    out.emit(document, people)


@click.command()
@click.argument("digest")
@click.argument("dest", type=click.Path())
@click.option(
    "--replace", is_flag=True, help="DEST exists: put the new one in its place at once, then remove the old one."
)
@click.option("--no-sync", is_flag=True, help="Do not wait until it is on the disk.")
@click.option(
    "--seed",
    "seeds",
    metavar="DIR",
    multiple=True,
    type=click.Path(),
    help="Take files from here where they are the same; may be given more than once.",
)
@click.option(
    "--link", is_flag=True, help="What an earlier pull made may be hard-linked: only for trees that nobody writes to."
)
@click.option("--no-cache", is_flag=True, help="Neither use nor keep listings of earlier pulls.")
@connecting
@speaking
def pull(
    digest: str,
    dest: str,
    replace: bool,
    no_sync: bool,
    seeds: tuple[str, ...],
    link: bool,
    no_cache: bool,
    settings: Settings,
    out: Output,
) -> None:
    """Restore DIGEST (or an artifact's name) at DEST: bytes, permission bits, symlinks, empty directories.

    Every file is verified. DEST appears whole or not at all. What is replaced is a seed by itself.
    """
    with open_client(settings, content=True) as client, ProgressLine(out) as progress:
        _, whole = client.resolve_artifact(digest)
        result = client.pull(
            whole,
            dest,
            replace=replace,
            sync=not no_sync,
            seeds=seeds,
            link=link,
            cache=not no_cache,
            progress=progress.callback,
        )
    document = {
        "digest": whole,
        "dest": dest,
        "files": result.files,
        "size_bytes": result.size_bytes,
        "received_bytes": result.received_bytes,
        "reused_files": result.reused_files,
        "reused_bytes": result.reused_bytes,
        "seconds": round(result.seconds, 3),
    }

    def people() -> None:
        rate = human_bytes(int(result.size_bytes / max(result.seconds, 1e-9)))
        reused = f", {result.reused_files:,} of them from seeds" if result.reused_files else ""
        tell(
            f"{dest}: {short(whole)}, {result.files:,} files{reused}, {human_bytes(result.size_bytes)} in {result.seconds:.2f} s "
            f"({rate}/s), all verified"
        )

    out.emit(document, people)


@click.command()
@click.argument("digest")
@click.argument("path", required=False)
@connecting
def cat(digest: str, path: str | None, settings: Settings) -> None:
    """Print the blob DIGEST, or the file PATH of the tree DIGEST, to stdout; verified piece by piece."""
    with open_client(settings, content=True) as client:
        _, whole = client.resolve_artifact(digest)
        target = sys.stdout.buffer
        for piece in client.cat(whole, None if path is None else os.fsencode(path)):
            target.write(piece)
        target.flush()


@click.command()
@click.argument("digest")
@click.argument("path", required=False, default="")
@click.option("--recursive", "-R", is_flag=True, help="Everything below, not one level.")
@connecting
@speaking
def ls(digest: str, path: str, recursive: bool, settings: Settings, out: Output) -> None:
    """List the tree DIGEST, or what lies at PATH in it."""
    with open_client(settings, content=True) as client:
        _, whole = client.resolve_artifact(digest)
        entries = list(client.ls(whole, os.fsencode(path), recursive=recursive))

    def people() -> None:
        rows = [[_mode(e), human_bytes(e.size) if e.type is EntryType.FILE else "", _name(e)] for e in entries]
        print_table(["mode", "size", "path"], rows, right=(1,))

    out.emit({"digest": whole, "entries": [_entry_document(e) for e in entries]}, people)


def _mode(entry: TreeEntry) -> str:
    kinds = {EntryType.FILE: stat.S_IFREG, EntryType.DIRECTORY: stat.S_IFDIR, EntryType.LINK: stat.S_IFLNK}
    return stat.filemode(kinds[entry.type] | entry.mode)


def _name(entry: TreeEntry) -> str:
    name = print_path(entry.path) or "."
    return f"{name} -> {print_path(entry.target)}" if entry.type is EntryType.LINK else name


def _entry_document(entry: TreeEntry) -> dict[str, object]:
    document: dict[str, object] = {
        **path_fields(entry.path),
        "type": entry.type.name.lower(),
        "mode": f"{entry.mode:04o}",
    }
    if entry.type is EntryType.FILE:
        document |= {"size_bytes": entry.size, "digest": str(entry.digest)}
    if entry.type is EntryType.LINK:
        document |= {
            f"target_{key}" if key != "path" else "target": value for key, value in path_fields(entry.target).items()
        }
    return document


@click.command()
@click.argument("a")
@click.argument("b")
@connecting
@speaking
def diff(a: str, b: str, settings: Settings, out: Output) -> None:
    """Compare two trees, two snapshots, or what two pointers name: what was added, changed and removed, with sizes."""
    with open_client(settings) as client:
        found = client.diff(client.resolve(a), client.resolve(b))

    def people() -> None:
        for component in found.components:
            if len(found.components) > 1 or component.name:
                tell(
                    f"{component.change} {component.name or 'tree'}: {short(component.from_)} -> {short(component.to)}"
                )
            rows = [
                [_SIGNS[f.change], _size(f.from_size), _size(f.to_size), _diff_path(f), ", ".join(f.what)]
                for f in component.files
            ]
            if rows:
                print_table(["", "from", "to", "path", ""], rows, right=(1, 2))
            if component.truncated:
                tell("… and more", err=True)
        if not found.components:
            tell("no difference")

    out.emit(found, people)


_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def _size(size: int | None) -> str:
    return "" if size is None else human_bytes(size)


def _diff_path(file: wire.DiffFile) -> str:
    import base64

    return print_path(base64.b64decode(file.path_b64) if file.path_b64 is not None else (file.path or "").encode())
