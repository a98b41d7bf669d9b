"""``casstore log show|prove``"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import ConfigurationError
from casstore_client.cli.commands import speaking
from casstore_client.cli.output import Output, print_table, tell
from casstore_client.cli.session import connecting, open_client

if TYPE_CHECKING:
    from casstore.formats.entry import Entry
    from casstore_client.blocking import Client
    from casstore_client.config import Settings
    from casstore_client.facts import ProvenEntry


@click.group()
def log() -> None:
    """Show entries of the signed log, and prove them."""


@log.command()
@click.argument("index", required=False, type=click.IntRange(min=0))
@click.option("--checkpoint", "only_checkpoint", is_flag=True, help="The newest checkpoint, as it was signed.")
@click.option("--from", "first", type=click.IntRange(min=0), help="List from this entry on [default: the newest ones].")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@connecting
@speaking
def show(
    index: int | None, only_checkpoint: bool, first: int | None, limit: int, settings: Settings, out: Output
) -> None:
    """Show the entry INDEX, or list entries; each with a proof that is verified before it is shown."""
    if only_checkpoint and index is not None:
        raise click.UsageError("either an entry or the checkpoint")
    with open_client(settings) as client:
        known = _log_document(client)
        if only_checkpoint:
            _show_checkpoint(client, known, out)
        elif index is not None:
            proven = client.entry(index)
            out.emit({"log": known, **entry_document(proven)}, lambda: _show_entry(proven))
        else:
            _list(client, known, first, limit, out)


def _log_document(client: Client) -> dict[str, str]:
    if client.log is not None:
        return {"origin": client.log.trust.origin, "vkey": client.log.trust.log_vkey}
    info = client.config().log
    return {"origin": info.origin, "vkey": info.vkey}


def _show_checkpoint(client: Client, known: dict[str, str], out: Output) -> None:
    from casstore.wire import format_time

    opened = client.checkpoint()
    document = {
        "log": known,
        "size": opened.checkpoint.size,
        "root": opened.checkpoint.root.hex(),
        "note": opened.note.decode(),
        "cosigned_at": {name: format_time(ms) for name, ms in sorted(opened.cosigned_at_ms.items())},
    }
    out.emit(document, lambda: click.echo(opened.note.decode(), nl=False))


def _list(client: Client, known: dict[str, str], first: int | None, limit: int, out: Output) -> None:
    if first is None:
        size = client.checkpoint().checkpoint.size if client.log is not None else client.status()["log_size"]
        first = max(0, size - limit)
    found = client.entries(first, limit)

    def people() -> None:
        rows = [[p.idx, _time(p.entry), p.entry.type, _signers(p.entry), _what(p.entry)] for p in found]
        print_table(["entry", "at", "type", "by", "what"], rows, right=(0,))

    out.emit({"log": known, "entries": [entry_document(proven) for proven in found]}, people)


def entry_document(proven: ProvenEntry) -> dict[str, Any]:
    """An entry for ``--json``: its bytes, and what they say."""
    payload = proven.entry.payload
    return {
        "idx": proven.idx,
        "type": proven.entry.type,
        "at": _time(proven.entry),
        "entry_b64": base64.b64encode(proven.data).decode(),
        "entry": json.loads(proven.data),
        "intent": None if payload is None else json.loads(payload),
    }


def _show_entry(proven: ProvenEntry) -> None:
    document = entry_document(proven)
    tell(f"entry {proven.idx}: {proven.entry.type} at {document['at']} by {_signers(proven.entry)}")
    click.echo("what was signed:")
    click.echo(json.dumps(document["intent"], indent=2, sort_keys=True, ensure_ascii=True))
    click.echo("what the log says:")
    rest = {key: document["entry"][key] for key in ("body", "state", "log", "ts")}
    click.echo(json.dumps(rest, indent=2, sort_keys=True, ensure_ascii=True))


def _time(entry: Entry) -> str:
    from casstore.wire import format_time

    return format_time(entry.ts)


def _signers(entry: Entry) -> str:
    """Key ids, shortened: whose they are the policy says."""
    from casstore.formats.entry import TokenAuth

    if entry.auth is None:
        return "server"
    if isinstance(entry.auth, TokenAuth):
        return f"{entry.auth.principal} (token)"
    return " ".join(signature.keyid[:8] for signature in entry.auth.signatures)


def _what(entry: Entry) -> str:
    from casstore.formats.acts import FlipArgs, HoldArgs, MarkArgs, PolicyArgs, ReleaseArgs, SnapshotArgs
    from casstore.formats.entry import gc_of

    if entry.type == "gc":
        body = gc_of(entry)
        return f"{body.counts.objects:,} objects dropped, {body.reason}"
    args = entry.intent()[1]
    if isinstance(args, FlipArgs):
        moves = (f"{m.pointer} -> {m.to.short if m.to is not None else 'nothing'}" for m in args.members)
        return f"{args.kind} {', '.join(moves)}"
    if isinstance(args, SnapshotArgs):
        return args.digest.short
    if isinstance(args, MarkArgs):
        return f"{args.snapshot.short} {args.verdict} on {args.pointer}"
    if isinstance(args, HoldArgs | ReleaseArgs):
        return args.pointer
    return f"version {args.version}" if isinstance(args, PolicyArgs) else "the first policy"


@log.command()
@click.argument("index", type=click.IntRange(min=0))
@click.option("--output", "-o", "file", type=click.Path(path_type=Path), help="Write it there, not to stdout.")
@connecting
@speaking
def prove(index: int, file: Path | None, settings: Settings, out: Output) -> None:
    """Give a proof file (.tlog-proof) for the entry INDEX, verified; other people's programs read it.

    It proves that the entry's bytes (`casstore log show INDEX --json`, entry_b64) are in the log that the checkpoint in it signs.
    """
    from casstore.merkle import leaf_hash

    with open_client(settings) as client:
        proof = client.inclusion_proof(index)
        leaf = leaf_hash(client.entry(index).data)
    if file is not None:
        try:
            file.write_bytes(proof)
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be written: {error.strerror}") from error
    document = {
        "idx": index,
        "leaf_hash": leaf.hex(),
        "file": None if file is None else str(file),
        "proof": proof.decode(),
    }

    def people() -> None:
        if file is None:
            click.echo(proof.decode(), nl=False)
        else:
            click.echo(f"{file}: the proof of entry {index}, verified")

    out.emit(document, people)
