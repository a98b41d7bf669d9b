"""The judge of a store's content: is everything there, is it what it says, does everything lead to something?

Owns the checks of content, from the packs up: packs and index agree (:mod:`casstore.engine.fsck_packs`), every layout
fits its page or blob and leads to chunks, every tree has its pages, every artifact and published snapshot its
content.  With ``full``, every byte is hashed and every file is put together.  The log has a judge of its own.

It changes nothing, and runs while a server serves: what is not finished yet, such as the root of a push under way, is a
notice at most.  It reads past every cache: what counts is what lies on the disk.

Memory: a batch of rows and pages, one footer, and the findings (at most ``FINDINGS_MAX``).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final

from casstore.engine.artifacts import ArtifactService, decode_row
from casstore.engine.findings import Findings
from casstore.engine.fsck_packs import check_locations, check_packs, check_quarantine
from casstore.engine.needed import NeededSnapshots
from casstore.engine.packs import PackService, format_object
from casstore.engine.proving import (
    check_chunk_lengths,
    page_proof_key,
    plan_units,
    prove_unit,
    run_units,
    tree_proof_key,
)
from casstore.errors import CasstoreError, DamagedObject
from casstore.formats.layout import decode_layout, verify_layout_fits
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import decode_snapshot
from casstore.formats.tree import EntryType, TreeEntry, TreeVerifier, decode_page, decode_root
from casstore.ids import BlobDigest, SnapshotDigest, TreeDigest
from casstore.storage.roles import Ledger, Location, Table

_BATCH: Final = 256
_PUSH_AGAIN: Final = "push it again, or `casstore repair --from` a copy"


def fsck_content(
    packs: PackService,
    artifacts: ArtifactService,
    ledger: Ledger,
    findings: Findings,
    *,
    full: bool = False,
    pool: Executor | None = None,
    width: int = 1,
) -> None:
    """Check all content.

    Args:
        packs: the store's objects.
        artifacts: what was pushed.
        ledger: says which snapshots are published.
        findings: takes what is found; :meth:`Findings.report` makes the answer.
        full: hash every object and put every file together.
        pool: threads that help with ``full``.
        width: how many threads work at most.
    """
    try:
        _check_content(packs, artifacts, ledger, findings, full=full, pool=pool, width=width)
    except DamagedObject as error:
        # A row that cannot be read: what lies behind it was not looked at.
        findings.damage(error, object="index", where="index")


def _check_content(
    packs: PackService,
    artifacts: ArtifactService,
    ledger: Ledger,
    findings: Findings,
    *,
    full: bool,
    pool: Executor | None,
    width: int,
) -> None:
    check_packs(packs, findings, full=full)
    check_locations(packs, findings)
    check_quarantine(packs, findings)
    judge = _Judge(packs, findings, full=full, pool=pool, width=width)
    judge.check_layouts()
    judge.check_roots()
    judge.check_artifacts(artifacts)
    judge.check_documents(ledger)
    judge.check_published(ledger)


class _Judge:
    """The checks above the packs."""

    def __init__(
        self, packs: PackService, findings: Findings, *, full: bool, pool: Executor | None, width: int
    ) -> None:
        self._packs = packs
        self._index = packs.index
        self._findings = findings
        self._full = full
        self._pool = pool
        self._width = width
        self._needed = NeededSnapshots()

    # --- layouts: what pages and blobs consist of --------------------------------------------------------------------

    def check_layouts(self) -> None:
        """Every layout fits its page or blob, is proven, and leads to chunks that are there."""
        after = b""
        while rows := self._index.objects(ObjectKind.LAYOUT, after=after, limit=_BATCH):
            after = rows[-1][0]
            pages = self._index.locate(ObjectKind.PAGE, [id for id, _ in rows])
            for (id, location), page in zip(rows, pages, strict=True):
                kind = "page" if page is not None else "blob"
                try:
                    self._check_layout(id, location, page)
                except CasstoreError as error:
                    if not self._is_live(ObjectKind.LAYOUT, id):
                        continue
                    self._findings.damage(error, object=f"{kind} blake3:{id.hex()}", where=f"layout blake3:{id.hex()}")

    def _check_layout(self, id: bytes, location: Location, page: Location | None) -> None:
        name = format_object(ObjectKind.LAYOUT, id)
        data = self._read(ObjectKind.LAYOUT, id, location)
        layout = decode_layout(data)
        if page is not None:
            self._findings.count("pages")
            entries: Sequence[TreeEntry] = decode_page(self._read(ObjectKind.PAGE, id, page))
        else:
            self._findings.count("blobs")
            size = sum(extent.length for extent in layout.files[0]) if layout.files else 0
            entries = [TreeEntry(b"", EntryType.FILE, 0, size, BlobDigest(id))]
        verify_layout_fits(layout, entries)
        if not self._index.memo_has([page_proof_key(id, data)])[0] and self._is_live(ObjectKind.LAYOUT, id):
            self._findings.error(
                "unproven-layout",
                name,
                where=f"pack {location.pack} offset {location.offset}",
                expected="a layout that was proven",
                found="no proof on record",
                hint="fsck --full shows whether its files are right",
            )
        ids = [chunk for chunk, _ in layout.chunks]
        found = self._index.locate(ObjectKind.CHUNK, ids)
        missing = [chunk for chunk, at in zip(ids, found, strict=True) if at is None]
        for chunk in missing if self._is_live(ObjectKind.LAYOUT, id) else ():
            self._findings.error(
                "missing-chunk",
                format_object(ObjectKind.CHUNK, chunk),
                where=name,
                expected="a chunk that the index knows",
                found=self._absence(ObjectKind.CHUNK, chunk),
                hint=_PUSH_AGAIN,
            )
        if missing:
            return
        locations = [at for at in found if at is not None]
        check_chunk_lengths(layout, locations)
        if self._full:
            units = plan_units(entries, layout, locations)
            run_units(units, lambda unit: prove_unit(self._packs, unit), pool=self._pool, width=self._width)
            self._findings.count("files", sum(entry.type == EntryType.FILE for entry in entries))

    # --- roots: what trees consist of --------------------------------------------------------------------------------

    def check_roots(self) -> None:
        """Every tree has its pages.  One that was never committed may lack some: a push may be under way."""
        after = b""
        while rows := self._index.objects(ObjectKind.ROOT, after=after, limit=_BATCH):
            after = rows[-1][0]
            proven = self._index.memo_has([tree_proof_key(TreeDigest(id)) for id, _ in rows])
            for (id, location), committed in zip(rows, proven, strict=True):
                self._check_root(TreeDigest(id), location, committed=committed)

    def _check_root(self, tree: TreeDigest, location: Location, *, committed: bool) -> None:
        name = format_object(ObjectKind.ROOT, tree)
        report = self._findings.error if committed else self._findings.notice
        self._findings.count("trees")
        try:
            root = self._read(ObjectKind.ROOT, tree, location)
        except CasstoreError as error:
            if not self._packs.available(ObjectKind.ROOT, [tree])[0]:
                return  # dropped since its row was read
            self._findings.damage(error, object=name)
            return
        try:
            pages = [ref.digest for ref in decode_root(root)]
            for kind in (ObjectKind.PAGE, ObjectKind.LAYOUT):
                for page, there in zip(pages, self._packs.available(kind, pages), strict=True):
                    if not there and self._is_live(ObjectKind.ROOT, tree):
                        report(
                            "missing-page" if committed else "unfinished-push",
                            format_object(kind, page),
                            where=name,
                            expected="a page with a proven layout",
                            found=self._absence(kind, page),
                            hint=_PUSH_AGAIN,
                        )
            if self._full and committed:
                self._verify_tree(tree, root)
        except CasstoreError as error:
            report(error.code, name, where=name, expected="a tree", found=error.detail)

    def _verify_tree(self, tree: TreeDigest, root: bytes) -> None:
        verifier = TreeVerifier(root, tree)
        for ref in verifier.pages:
            location = self._index.locate(ObjectKind.PAGE, [ref.digest])[0]
            if location is None:
                return  # reported above
            try:
                data = self._read(ObjectKind.PAGE, ref.digest, location)
            except CasstoreError as error:
                self._findings.damage(error, object=format_object(ObjectKind.PAGE, ref.digest))
                return
            verifier.add_page(data)
        verifier.finish()

    # --- what leads to trees and blobs -------------------------------------------------------------------------------

    def check_artifacts(self, artifacts: ArtifactService) -> None:
        """Every artifact's tree or blob is there."""
        number = 0
        while rows := artifacts.rows(after=number, limit=_BATCH):
            number = rows[-1][0]
            for number, value in rows:
                name = f"artifact {number}"
                self._findings.count("artifacts")
                try:
                    row = decode_row(value)
                    self._check_reference(row.kind, BlobDigest.parse(row.digest), name)
                except CasstoreError as error:
                    self._findings.damage(error, object=name, where="artifacts")

    def check_documents(self, ledger: Ledger) -> None:
        """Every snapshot document can be read; what a published one names is there."""
        after = b""
        while rows := self._index.objects(ObjectKind.DOCUMENT, after=after, limit=_BATCH):
            after = rows[-1][0]
            with ledger.read() as view:
                published = [self._needed.has(view, id) for id, _ in rows]
            for (id, location), known in zip(rows, published, strict=True):
                name = f"snapshot {SnapshotDigest(id)}"
                self._findings.count("snapshots")
                try:
                    snapshot = decode_snapshot(self._read(ObjectKind.DOCUMENT, id, location))
                except CasstoreError as error:
                    if self._is_live(ObjectKind.DOCUMENT, id):
                        self._findings.damage(error, object=name)
                    continue
                if known:
                    for component in snapshot.components:
                        self._check_reference(component.kind, BlobDigest(component.digest), f"{name} {component.name}")

    def check_published(self, ledger: Ledger) -> None:
        """Every published snapshot has its document."""
        after: bytes | None = None
        while True:
            with ledger.read() as view:
                rows = view.scan(Table.SNAPSHOTS, after=after, limit=_BATCH)
            if not rows:
                return
            after = rows[-1][0]
            with ledger.read() as view:
                digests = [key for key, _ in rows if self._needed.has(view, key)]
            self._findings.count("collected snapshots", len(rows) - len(digests))
            for digest, there in zip(digests, self._packs.available(ObjectKind.DOCUMENT, digests), strict=True):
                if not there:
                    self._findings.error(
                        "missing-document",
                        f"snapshot blake3:{digest.hex()}",
                        where="the ledger's snapshots",
                        expected="a document that the index knows",
                        found=self._absence(ObjectKind.DOCUMENT, digest),
                        hint="publish the same document again",
                    )

    def _check_reference(self, kind: str, digest: BlobDigest, who: str) -> None:
        """A tree must have been committed (its pages are held against the same rule above), a blob have a layout."""
        if kind == "tree":
            location = self._index.locate(ObjectKind.ROOT, [digest])[0]
            tree = TreeDigest(digest)
            if location is not None:
                if not self._index.memo_has([tree_proof_key(tree)])[0]:
                    self._check_root(tree, location, committed=True)
                return
        else:
            layout, page = (self._packs.available(of, [digest])[0] for of in (ObjectKind.LAYOUT, ObjectKind.PAGE))
            if layout and not page:
                return
        self._findings.error(
            f"missing-{kind}",
            f"{kind} {digest}",
            where=who,
            expected=f"a {kind} that the index knows",
            found=self._absence(ObjectKind.ROOT if kind == "tree" else ObjectKind.LAYOUT, digest),
            hint=_PUSH_AGAIN,
        )

    def _absence(self, kind: ObjectKind, id: bytes) -> str:
        return "none" if self._packs.find_quarantined(kind, id) is None else "none: it is in quarantine"

    def _is_live(self, kind: ObjectKind, id: bytes) -> bool:
        """Whether it is live still: what a collection took away meanwhile is nobody's fault."""
        return self._index.has(kind, [id])[0]

    def _read(self, kind: ObjectKind, id: bytes, location: Location) -> bytes:
        """Past the cache."""
        return next(self._packs.read_located(kind, [(id, location)]))
