"""Who needs an object: from a chunk up to the pointers that named what it is a part of.

Owns the walk against the direction of every reference.  Nothing records who refers to a chunk, so everything is gone through
once: layouts, roots, artifacts, documents, pointers and their history.  What is in quarantine cannot be gone through: a layout or
root that is itself out of use is affected, and what it led to is not known.

It changes nothing and runs beside a server; what is pushed meanwhile may be missed.

Memory: the ids of what is affected, at most ``AFFECTED_MAX`` of each kind; beyond that the answer says that it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from casstore.engine.artifacts import ArtifactService, decode_row
from casstore.engine.packs import PackService
from casstore.engine.records import FlipRecord, PointerRecord, decode_record
from casstore.errors import CasstoreError, DamagedObject
from casstore.formats.layout import decode_layout
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import decode_snapshot
from casstore.formats.tree import EntryType, TreeEntry, decode_page, decode_root
from casstore.ids import BlobDigest, SnapshotDigest
from casstore.storage.roles import Ledger, Location, Table
from casstore.wire import AffectedArtifact, AffectedFile, AffectedPointer, AffectedReport, AffectedSnapshot

AFFECTED_MAX: Final = 100_000
# LIMIT: of each list in an answer.
LISTED_MAX: Final = 1000
_FILES_MAX: Final = 100
_BATCH: Final = 256


class _Some:
    """A set that stops growing, and says so."""

    def __init__(self) -> None:
        self.ids: set[bytes] = set()
        self.cut = False

    def add(self, id: bytes) -> None:
        if len(self.ids) < AFFECTED_MAX:
            self.ids.add(bytes(id))
        elif id not in self.ids:
            self.cut = True

    def __contains__(self, id: bytes) -> bool:
        return id in self.ids

    def __len__(self) -> int:
        return len(self.ids)


class AffectedSearch:
    """One walk.

    Args:
        packs: the store's objects.
        artifacts: what was pushed.
        ledger: snapshots, pointers, history.
        progress: told what is gone through, and how many of it were.
    """

    def __init__(
        self,
        packs: PackService,
        artifacts: ArtifactService,
        ledger: Ledger,
        *,
        progress: Callable[[str, int], None] = lambda what, count: None,
    ) -> None:
        self._packs = packs
        self._artifacts = artifacts
        self._ledger = ledger
        self._progress = progress
        self._wanted: dict[ObjectKind, set[bytes]] = {kind: set() for kind in ObjectKind}
        self._pages, self._blobs, self._trees, self._snapshots = _Some(), _Some(), _Some(), _Some()
        self._files: list[AffectedFile] = []
        self._unread = 0

    def run(self, objects: Sequence[tuple[ObjectKind | None, bytes]]) -> AffectedReport:
        """Find what needs any of ``objects``; one without a kind may be of any."""
        for kind, id in objects:
            for one in ObjectKind if kind is None else [kind]:
                self._wanted[one].add(bytes(id))
        self._go_through_layouts()
        self._go_through_roots()
        artifacts, more_artifacts = self._find_artifacts()
        snapshots, more_snapshots = self._find_snapshots()
        pointers, more_pointers = self._find_pointers()
        sets = (self._pages, self._blobs, self._trees, self._snapshots)
        return AffectedReport(
            objects=len(objects),
            pages=len(self._pages),
            trees=[f"blake3:{id.hex()}" for id in sorted(self._trees.ids)[:LISTED_MAX]],
            blobs=[f"blake3:{id.hex()}" for id in sorted(self._blobs.ids)[:LISTED_MAX]],
            files=self._files,
            artifacts=artifacts,
            snapshots=snapshots,
            pointers=pointers,
            unreadable=self._unread,
            truncated=more_artifacts
            or more_snapshots
            or more_pointers
            or any(found.cut for found in sets)
            or max(len(self._trees), len(self._blobs)) > LISTED_MAX,
        )

    # --- layouts and roots ---------------------------------------------------------------------------------------------

    def _go_through_layouts(self) -> None:
        chunks = self._wanted[ObjectKind.CHUNK]
        for id in self._wanted[ObjectKind.PAGE]:
            if self._known(ObjectKind.PAGE, id):
                self._pages.add(id)
        for id in self._wanted[ObjectKind.LAYOUT]:
            self._add_laid_out(id)
        for id, data in self._read_all(ObjectKind.LAYOUT):
            if data is None:
                self._add_laid_out(id)
                continue
            with self._packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
                layout = decode_layout(data)
                hit = {number for number, (chunk, _) in enumerate(layout.chunks) if chunk in chunks}
                if not hit:
                    continue
                self._add_laid_out(id)
                rows = [
                    number
                    for number, extents in enumerate(layout.files)
                    if any(extent.chunk in hit for extent in extents)
                ]
            self._add_files(id, rows)

    def _add_laid_out(self, id: bytes) -> None:
        # A blob has no page object beside its layout; a page in quarantine has none either, and is a page.
        is_page = self._packs.index.locate(ObjectKind.PAGE, [id])[0] is not None
        if is_page or self._packs.find_quarantined(ObjectKind.PAGE, id) is not None:
            self._pages.add(id)
        elif self._known(ObjectKind.LAYOUT, id):
            self._blobs.add(id)

    def _known(self, kind: ObjectKind, id: bytes) -> bool:
        there = self._packs.index.locate(kind, [id])[0] is not None
        return there or self._packs.find_quarantined(kind, id) is not None

    def _add_files(self, page: bytes, rows: Sequence[int]) -> None:
        """Note the first of the files that need a wanted chunk, for people."""
        if len(self._files) >= _FILES_MAX or page not in self._pages:
            return
        try:
            entries = decode_page(self._packs.read_object(ObjectKind.PAGE, page))
        except CasstoreError:
            return
        files: list[TreeEntry] = [entry for entry in entries if entry.type == EntryType.FILE and entry.size]
        for row in rows[: _FILES_MAX - len(self._files)]:
            if row < len(files):
                path = files[row].path.decode("utf-8", "backslashreplace")
                self._files.append(AffectedFile(page=f"blake3:{page.hex()}", path=path))

    def _go_through_roots(self) -> None:
        for id in self._wanted[ObjectKind.ROOT]:
            if self._known(ObjectKind.ROOT, id):
                self._trees.add(id)
        if not len(self._pages):
            return
        for id, data in self._read_all(ObjectKind.ROOT):
            if data is None:
                self._trees.add(id)
                continue
            with self._packs.rooms.hold(ObjectKind.ROOT, len(data)):
                if any(ref.digest in self._pages for ref in decode_root(data)):
                    self._trees.add(id)

    def _read_all(self, kind: ObjectKind) -> Iterator[tuple[bytes, bytes | None]]:
        """Every object of a kind, in batches in the order of packs; None for one that cannot be read."""
        after = b""
        count = 0
        while rows := self._packs.index.objects(kind, after=after, limit=_BATCH):
            after = rows[-1][0]
            for id, location in sorted(rows, key=lambda row: row[1][:2]):
                yield id, self._read(kind, id, location)
            count += len(rows)
            self._progress(f"{kind.name.lower()}s", count)

    def _read(self, kind: ObjectKind, id: bytes, location: Location) -> bytes | None:
        try:
            return next(self._packs.read_located(kind, [(id, location)]))
        except DamagedObject:
            self._unread += 1
            return None

    # --- what people know ----------------------------------------------------------------------------------------------

    def _find_artifacts(self) -> tuple[list[AffectedArtifact], bool]:
        found: list[AffectedArtifact] = []
        number = 0
        while rows := self._artifacts.rows(after=number, limit=_BATCH):
            number = rows[-1][0]
            for at, value in rows:
                row = decode_row(value)
                ids = self._trees if row.kind == "tree" else self._blobs
                if bytes(BlobDigest.parse(row.digest)) in ids:
                    if len(found) == LISTED_MAX:
                        return found, True
                    found.append(AffectedArtifact(number=at, name=row.name, kind=row.kind, digest=row.digest))
            self._progress("artifacts", number)
        return found, False

    def _find_snapshots(self) -> tuple[list[AffectedSnapshot], bool]:
        found: list[AffectedSnapshot] = []
        more = False
        wanted = self._wanted[ObjectKind.DOCUMENT]
        for id in wanted:
            if self._known(ObjectKind.DOCUMENT, id):
                self._snapshots.add(id)
                found.append(AffectedSnapshot(digest=str(SnapshotDigest(id)), components=[]))
        for id, data in self._read_all(ObjectKind.DOCUMENT):
            if id in wanted or (data is not None and not (hit := self._components(data))):
                continue
            self._snapshots.add(id)
            if len(found) < LISTED_MAX:
                found.append(AffectedSnapshot(digest=str(SnapshotDigest(id)), components=[] if data is None else hit))
            else:
                more = True
        return found, more

    def _components(self, document: bytes) -> list[str]:
        sets = {"tree": self._trees, "blob": self._blobs}
        return [
            str(component.name)
            for component in decode_snapshot(document).components
            if bytes(component.digest) in sets[component.kind]
        ]

    def _find_pointers(self) -> tuple[list[AffectedPointer], bool]:
        """Pointers that name an affected snapshot now, or did."""
        digests = {str(SnapshotDigest(id)) for id in self._snapshots.ids}
        if not digests:
            return [], False
        found: dict[str, AffectedPointer] = {}
        for key, value in self._scan(Table.POINTERS):
            name = key.decode("ascii", "backslashreplace")
            now = decode_record(value, PointerRecord, f"pointer {name}").snapshot
            if now in digests:
                found[name] = AffectedPointer(pointer=name, now=now, flips=0, last_flip=None)
        for key, value in self._scan(Table.HISTORY):
            row = decode_record(value, FlipRecord, "history")
            if row.to not in digests:
                continue
            name = key.partition(b"\0")[0].decode("ascii", "backslashreplace")
            before = found.get(name) or AffectedPointer(pointer=name, now=None, flips=0, last_flip=None)
            found[name] = AffectedPointer(
                pointer=name, now=before.now, flips=before.flips + 1, last_flip=f"f{row.flip}"
            )
        # Those that name it now come first: they are what somebody may deploy in the next minute.
        listed = sorted(found.values(), key=lambda pointer: (pointer.now is None, pointer.pointer))
        return listed[:LISTED_MAX], len(listed) > LISTED_MAX

    def _scan(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        count = 0
        while True:
            with self._ledger.read() as view:
                rows = view.scan(table, after=after, limit=_BATCH)
            if not rows:
                return
            yield from rows
            after = rows[-1][0]
            count += len(rows)
            self._progress(table.value, count)
