"""The commands ``repair`` and ``affected``.

Plugged into the ``casstore`` command by name.  Each asks the configured server, or works on a directory that no server has open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import click

from casstore.errors import ConfigurationError, InvalidInput, Unauthenticated
from casstore_client.cli.commands import speaking
from casstore_client.cli.exit_codes import VERIFICATION_FAILED
from casstore_client.cli.output import Output, print_table, short, tell
from casstore_client.cli.session import connecting, open_client
from casstore_server.health_commands import STORE_HELP

if TYPE_CHECKING:
    from casstore.formats.pack import ObjectKind
    from casstore.ids import PackId
    from casstore.wire import AffectedReport, ObjectName, RepairAnswer, RepairPlan, WantedObject
    from casstore_client.config import Settings
    from casstore_client.holders import Holder

# LIMIT: of one pack of a repair, which is held whole on both sides.
_PACK_BYTES: Final = 8 * 1024 * 1024
_PLAIN_BYTES: Final = 48 * 1024 * 1024
# A page that came back may show chunks that are missing, and so on: a few rounds are all that there can be.
_ROUNDS_MAX: Final = 100


class _Patient(Protocol):
    """The store that is healed."""

    def plan(self) -> RepairPlan: ...

    def send(self, pack: PackId, data: bytes) -> RepairAnswer: ...


class Repair:
    """One repair: what was wanted, what came from where, what stays broken."""

    def __init__(self, patient: _Patient, holders: Sequence[Holder], *, dry_run: bool) -> None:
        self._patient = patient
        self._holders = holders
        self._dry_run = dry_run
        self.healed: dict[tuple[str, str], str] = {}
        """Kind and digest → the holder that had it."""
        self.left: list[WantedObject] = []

    def run(self) -> None:
        """Plan, fetch, hand in, until nothing more comes, and nothing more is asked for: a layout that came names its chunks."""
        asked: set[tuple[str, str]] = set()
        before = -1
        for _ in range(_ROUNDS_MAX):
            plan = self._patient.plan()
            self.left = [one for one in plan.wanted if (one.kind, one.id) not in self.healed]
            named = {(one.kind, one.id) for one in self.left}
            if len(self.healed) == before and named <= asked:
                break
            asked |= named
            before = len(self.healed)
            # ORDER: what layouts are proven by comes before them.
            self._fetch([one for one in self.left if one.kind != "layout"])
            self._fetch([one for one in self.left if one.kind == "layout"])
            if self._dry_run:
                break
        self.left = [one for one in self.left if (one.kind, one.id) not in self.healed]

    def _fetch(self, wanted: Sequence[WantedObject]) -> None:
        for holder in self._holders:
            left = [one for one in wanted if (one.kind, one.id) not in self.healed]
            if not left:
                return
            batch: list[tuple[ObjectKind, bytes, bytes]] = []
            size = 0
            for item in _objects_of(holder, left):
                batch.append(item)
                size += len(item[2])
                if size >= _PLAIN_BYTES - (8 << 20):
                    self._send(batch, holder)
                    batch, size = [], 0
            self._send(batch, holder)

    def _send(self, objects: Sequence[tuple[ObjectKind, bytes, bytes]], holder: Holder) -> None:
        from casstore.formats.pack import PackEncoder, seal_frame
        from casstore.ids import PackId

        if self._dry_run:
            for kind, id, _ in objects:
                self.healed[kind.name.lower(), f"blake3:{id.hex()}"] = holder.name
            return
        at = 0
        while at < len(objects):
            encoder = PackEncoder(PackId(os.urandom(PackId.SIZE)))
            parts = [encoder.header()]
            while at < len(objects) and (not encoder.frames or encoder.size < _PACK_BYTES):
                kind, id, plain = objects[at]
                parts.append(encoder.add(kind, id, *seal_frame(kind, id, plain), len(plain)))
                at += 1
            answer = self._patient.send(encoder.pack, b"".join((*parts, encoder.finish())))
            for one in answer.healed:
                assert one.kind is not None, "a store says what it healed"
                self.healed[one.kind, one.id] = holder.name


def _objects_of(holder: Holder, wanted: Sequence[WantedObject]) -> Iterator[tuple[ObjectKind, bytes, bytes]]:
    try:
        yield from holder.get(wanted)
    except Unauthenticated as error:
        # The hints of a refusal are for the store that is healed, whose token is another.
        raise Unauthenticated(
            f"{holder.name}: {error.detail}", hint="its token is given with --from-token-file"
        ) from error


class _Directory:
    """A store that no server has open."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        from casstore.store import Store

        self._store = stack.enter_context(Store.open(directory))
        self._width = os.cpu_count() or 1
        self._pool = stack.enter_context(ThreadPoolExecutor(self._width))

    def plan(self) -> RepairPlan:
        return self._store.repairs.plan()

    def send(self, pack: PackId, data: bytes) -> RepairAnswer:
        return self._store.repairs.heal(pack, data, pool=self._pool, width=self._width)


class _Server:
    """A store that is served."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self._client = stack.enter_context(open_client(settings, content=True))

    def plan(self) -> RepairPlan:
        return self._client.repair_plan()

    def send(self, pack: PackId, data: bytes) -> RepairAnswer:
        return self._client.repair_send(pack, data)


@contextmanager
def _open_sources(sources: Sequence[str], token_file: str | None, settings: Settings) -> Iterator[list[Holder]]:
    from casstore_client.blocking import Client
    from casstore_client.holders import open_holders

    with ExitStack() as stack:
        holders: list[Holder] = []
        for source in sources:
            client = None
            if source.startswith(("http://", "https://")):
                ca = str(settings.ca_file) if settings.ca_file else None
                token = None if token_file is None else _read_token(token_file)
                client = stack.enter_context(Client(source, token=token, ca=ca))
            holders += open_holders(source, client)
        yield holders


def _read_token(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"the token file {path} cannot be read: {error.strerror}") from error


@click.command()
@click.option(
    "--from", "sources", multiple=True, metavar="PATH|URL", help="Who may have it; several times for several."
)
@click.option("--from-token-file", metavar="FILE", help="Bearer token for the servers among them.")
@click.option("--dry-run", is_flag=True, help="Say what is wanted and who has it; change nothing.")
@click.option("--store", "directory", type=click.Path(path_type=Path), help=STORE_HELP)
@connecting
@speaking
def repair(
    *,
    sources: tuple[str, ...],
    from_token_file: str | None,
    dry_run: bool,
    directory: Path | None,
    settings: Settings,
    out: Output,
) -> None:
    """Get back what the store needs and cannot read, from anyone who has it.

    A source is a directory as it was pushed (or the file of a blob), a store's or backup's directory, a single pack, or the URL of
    another casstore server. Everything is held against its hash. Ends with exit code 6 if something stays broken.
    """
    with ExitStack() as stack:
        holders = stack.enter_context(_open_sources(sources, from_token_file, settings))
        patient: _Patient = _Server(settings, stack) if directory is None else _Directory(directory, stack)
        job = Repair(patient, holders, dry_run=dry_run)
        job.run()
    document = {
        "dry_run": dry_run,
        "healed": [{"kind": kind, "id": id, "from": name} for (kind, id), name in job.healed.items()],
        "left": [{"kind": one.kind, "id": one.id, "why": one.why} for one in job.left],
    }
    out.emit(document, lambda: _show_repair(job, dry_run=dry_run))
    if job.left:
        raise click.exceptions.Exit(VERIFICATION_FAILED)


def _show_repair(job: Repair, *, dry_run: bool) -> None:
    if not job.healed and not job.left:
        click.echo("Nothing is missing.")
        return
    verb = "would be healed" if dry_run else "healed"
    for (kind, id), name in job.healed.items():
        tell(f"{verb}: {kind} {id} from {name}")
    for one in job.left:
        tell(f"still missing: {one.kind} {one.id}: {one.why}")
    click.echo(f"{len(job.healed)} {verb}, {len(job.left)} still missing.")
    if job.left:
        click.echo("Push what needs it again, or name another source; casstore affected says what needs it.")


# --- affected ------------------------------------------------------------------------------------------------------------

_KindName = Literal["chunk", "page", "root", "layout", "document"]
_KINDS: Final[dict[str, _KindName]] = {
    "chunk": "chunk",
    "page": "page",
    "root": "root",
    "layout": "layout",
    "document": "document",
}


def parse_named(text: str) -> ObjectName:
    """``chunk blake3:…``, ``chunk:blake3:…`` or the digest alone.

    Raises:
        InvalidInput: none of them.
    """
    from casstore.ids import BlobDigest
    from casstore.wire import ObjectName

    word, _, digest = text.strip().replace(" ", ":", 1).rpartition("blake3:")
    kind = word.rstrip(":")
    if kind and kind not in _KINDS:
        raise InvalidInput(f"{kind[:40]!r} is no kind of object: {', '.join(_KINDS)}")
    return ObjectName(id=str(BlobDigest.parse("blake3:" + digest)), kind=_KINDS[kind] if kind else None)


@click.command()
@click.argument("objects", nargs=-1, metavar="OBJECT…")
@click.option("--quarantined", is_flag=True, help="And everything that is in quarantine.")
@click.option("--store", "directory", type=click.Path(path_type=Path), help=STORE_HELP)
@connecting
@speaking
def affected(
    *, objects: tuple[str, ...], quarantined: bool, directory: Path | None, settings: Settings, out: Output
) -> None:
    """Say what needs an OBJECT: files, trees, artifacts, snapshots, and the pointers that name them or did.

    OBJECT is a digest as messages name it, with its kind ('chunk blake3:…') or without. Goes through the whole store.
    """
    if not objects and not quarantined:
        raise click.UsageError("name an OBJECT, or --quarantined")
    named = [parse_named(text) for text in objects]
    if directory is None:
        with open_client(settings, content=True) as client:
            found = client.affected(named, quarantined=quarantined)
    else:
        found = _affected_in(directory, named, quarantined=quarantined, out=out)
    out.emit(found, lambda: _show_affected(found))


def _affected_in(directory: Path, named: Sequence[ObjectName], *, quarantined: bool, out: Output) -> AffectedReport:
    from casstore.engine.quarantine import quarantined_rows
    from casstore.store import Store
    from casstore_server.lookup import parse_object_name

    def tell_progress(what: str, count: int) -> None:
        if out.shows_progress:
            click.echo(f"\r{what}: {count} \x1b[K", err=True, nl=False)

    with Store.open(directory) as store:
        objects = [parse_object_name(name) for name in named]
        if quarantined:
            objects += [(row.kind, row.id) for row in quarantined_rows(store.packs)]
        return store.affected(objects, progress=tell_progress)


def _show_affected(found: AffectedReport) -> None:
    if not found.objects:
        click.echo("Nothing is in quarantine.")
        return
    click.echo(f"{found.pages} pages, {len(found.trees)} trees and {len(found.blobs)} blobs need it.")
    if found.files:
        click.echo("Files, for example:")
        for file in found.files[:20]:
            tell(f"  {file.path}")
    if found.artifacts:
        print_table(
            ["artifact", "name", "kind", "digest"],
            [[one.number, one.name or "-", one.kind, short(one.digest)] for one in found.artifacts],
            right=(0,),
        )
    if found.snapshots:
        rows = [[short(one.digest), " ".join(one.components) or "the document itself"] for one in found.snapshots]
        print_table(["snapshot", "components"], rows)
    if found.pointers:
        rows = [[p.pointer, short(p.now), str(p.flips), p.last_flip or "-"] for p in found.pointers]
        print_table(["pointer", "names it now", "flips to it", "last"], rows, right=(2,))
    elif found.snapshots:
        click.echo("No pointer names it, or ever did.")
    if found.unreadable:
        click.echo(f"{found.unreadable} layouts or roots could not be read: what they lead to is not known.")
    if found.truncated:
        click.echo("There is more; the lists were cut.")
