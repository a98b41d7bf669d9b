"""Trees, read back: roots, pages with what a pull needs of them, entries, single paths.

Owns the way from a tree's digest to its parts.  Everything read is verified by its hash; that the pages of a tree fit
together was proven when it was committed, and whoever receives a tree from outside holds it against
:class:`casstore.formats.tree.TreeVerifier` anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from casstore.engine.packs import PackService
from casstore.engine.presence import Gaps, Presence
from casstore.errors import InvalidInput, PathNotFound, TooLarge
from casstore.formats.layout import decode_layout
from casstore.formats.pack import ObjectKind
from casstore.formats.tree import PageRef, TreeEntry, TreeVerifier, decode_page, decode_root, split_root_for_path
from casstore.ids import BlobDigest, PageDigest, TreeDigest
from casstore.limits import KIB, PAGES_REQUEST_MAX
from casstore.wire import ChunkAt, PageRecord

# LIMIT: pages that are looked up side by side.
_BATCH: Final = 16
# LIMIT: pages, and layouts, that are held while a slow reader takes them.
_RUN_BYTES: Final = 512 * KIB


class TreeService:
    """Trees by digest.

    Args:
        packs: where objects are read.
        presence: what is there.
    """

    def __init__(self, packs: PackService, presence: Presence) -> None:
        self._packs = packs
        self._presence = presence

    def root(self, digest: TreeDigest) -> bytes:
        """The root's bytes.

        Raises:
            TreeNotFound: the store has no such tree.
            DamagedObject: it cannot be read.
        """
        return self._packs.read_object(ObjectKind.ROOT, digest)

    def pages(self, digest: TreeDigest) -> list[PageRef]:
        """What the root says about each page.

        Raises:
            TreeNotFound: the store has no such tree.
            MalformedDocument: the root was pushed but is none (it was never committed).
        """
        return decode_root(self.root(digest))

    def select_pages(self, tree: TreeDigest, digests: bytes) -> list[PageDigest]:
        """The pages that a pull asks for.

        Args:
            tree: the tree that they belong to.
            digests: 32 bytes each, in root order, at most ``PAGES_REQUEST_MAX``.

        Raises:
            TreeNotFound: the store has no such tree.
            InvalidInput: not whole digests, pages of another tree, or not in root order.
            TooLarge: too many.
        """
        if len(digests) % PageDigest.SIZE:
            raise InvalidInput(
                f"page digests are {PageDigest.SIZE} bytes each; {len(digests)} bytes are not whole ones"
            )
        if len(digests) > PAGES_REQUEST_MAX * PageDigest.SIZE:
            raise TooLarge(f"a request asks for at most {PAGES_REQUEST_MAX} pages", limit=PAGES_REQUEST_MAX)
        root = self.root(tree)
        with self._packs.rooms.hold(ObjectKind.ROOT, len(root)):
            order = {ref.digest: number for number, ref in enumerate(decode_root(root))}
        wanted = [PageDigest(digests[at : at + 32]) for at in range(0, len(digests), PageDigest.SIZE)]
        numbers = [order.get(page, -1) for page in wanted]
        if -1 in numbers:
            raise InvalidInput(f"{wanted[numbers.index(-1)]} is not a page of tree {tree}")
        if any(a >= b for a, b in pairwise(numbers)):
            raise InvalidInput("pages are asked for in the order of the root, each once")
        return wanted

    def page_records(self, pages: Sequence[PageDigest]) -> Iterator[PageRecord]:
        """Pages as a pull receives them: page, layout, and where each chunk lies.

        Memory: ``_RUN_BYTES`` of pages and as much of layouts, or one of each.

        Raises:
            SnapshotIncomplete: a page was never proven, or a chunk of it is missing.
            DamagedObject: an object cannot be read.
        """
        for start in range(0, len(pages), _BATCH):
            batch = pages[start : start + _BATCH]
            gaps = Gaps()
            for digest, layout, page in zip(
                batch,
                self._packs.available(ObjectKind.LAYOUT, batch),
                self._packs.available(ObjectKind.PAGE, batch),
                strict=True,
            ):
                if not (layout and page):
                    gaps.add(digest)
            if gaps.count:
                for kind in (ObjectKind.PAGE, ObjectKind.LAYOUT):
                    self._packs.refuse_quarantined(kind, batch)
                raise gaps.error("the tree")
            data = self._packs.read_each(ObjectKind.PAGE, batch, run_bytes=_RUN_BYTES)
            layouts = self._packs.read_each(ObjectKind.LAYOUT, batch, run_bytes=_RUN_BYTES)
            for page_data, layout_data in zip(data, layouts, strict=True):
                yield PageRecord(page_data, layout_data, chunk_places(self._packs, layout_data))

    def page_record(self, page: PageDigest) -> PageRecord:
        """One page as a pull receives it.

        Raises:
            SnapshotIncomplete, DamagedObject: as :meth:`page_records`.
        """
        return next(self.page_records([page]))

    def entries(self, digest: TreeDigest, *, first: bytes = b"") -> Iterator[TreeEntry]:
        """The tree's entries in path order, beginning with the path ``first`` or behind it.

        Memory: a page.

        Raises:
            TreeNotFound: the store has no such tree, or lacks a page of it.
            DamagedObject: a page cannot be read.
        """
        pages = self.pages(digest)
        start = split_root_for_path(pages, first) or 0
        for ref in pages[start:]:
            for entry in decode_page(self._packs.read_object(ObjectKind.PAGE, ref.digest)):
                if entry.path >= first:
                    yield entry

    def entry(self, digest: TreeDigest, path: bytes) -> TreeEntry:
        """The entry of one path; the empty path is the tree's own directory.

        Raises:
            TreeNotFound: the store has no such tree.
            PathNotFound: the tree has no such path.
            DamagedObject: a page cannot be read.
        """
        pages = self.pages(digest)
        number = split_root_for_path(pages, path)
        if number is not None:
            entries = decode_page(self._packs.read_object(ObjectKind.PAGE, pages[number].digest))
            at = bisect_left(entries, path, key=lambda entry: entry.path)
            if at < len(entries) and entries[at].path == path:
                return entries[at]
        raise PathNotFound(f"tree {digest} has no path {path.decode('utf-8', 'backslashreplace')!r}")

    def verify(self, digest: TreeDigest) -> None:
        """Hold root and pages together against every rule of the format, reading all of them.

        Raises:
            TreeNotFound: the store has no such tree, or lacks a page of it.
            HostileTree, MalformedDocument: it is no tree.
            DamagedObject: a page cannot be read.
        """
        root = self.root(digest)
        with self._packs.rooms.hold(ObjectKind.ROOT, len(root)):
            verifier = TreeVerifier(root, digest)
            for ref in verifier.pages:
                verifier.add_page(self._packs.read_object(ObjectKind.PAGE, ref.digest))
            verifier.finish()

    def gaps(self, digest: TreeDigest, gaps: Gaps) -> None:
        """Add what a tree lacks to ``gaps``: its root, pages, layouts or chunks.  What is condemned is there.

        Raises:
            DamagedObject: a root or layout cannot be read.
        """
        # One in quarantine is a gap too: a push brings it.
        if not self._packs.available(ObjectKind.ROOT, [digest])[0]:
            gaps.add(digest)
            return
        root = self.root(digest)
        with self._packs.rooms.hold(ObjectKind.ROOT, len(root)):
            self._presence.pages([ref.digest for ref in decode_root(root)], gaps, live=False)

    def size(self, digest: TreeDigest) -> int:
        """Content bytes of the tree, as its root says.

        Raises:
            TreeNotFound: the store has no such tree.
            MalformedDocument: the root was pushed but is none.
        """
        root = self.root(digest)
        with self._packs.rooms.hold(ObjectKind.ROOT, len(root)):
            return sum(page.content_bytes for page in decode_root(root))

    def resolve(self, prefix: str, *, limit: int = 20) -> list[TreeDigest]:
        """Trees whose digest begins with ``prefix`` (hex digits, with or without ``blake3:``), at most ``limit``.

        Raises:
            InvalidInput: not hex digits.
        """
        return [TreeDigest(id) for id in resolve_prefix(self._packs, ObjectKind.ROOT, prefix, limit=limit)]


def chunk_places(packs: PackService, layout: bytes) -> list[ChunkAt]:
    """Where each chunk of a layout's table lies, in its order.

    Raises:
        SnapshotIncomplete: a chunk is missing.
        DamagedObject: a chunk is in quarantine.
    """
    with packs.rooms.hold(ObjectKind.LAYOUT, len(layout)):
        ids = [id for id, _ in decode_layout(layout).chunks]
        locations = packs.index.locate(ObjectKind.CHUNK, ids)
        if None in locations:
            absent = [id for id, location in zip(ids, locations, strict=True) if location is None]
            packs.refuse_quarantined(ObjectKind.CHUNK, absent)
            gaps = Gaps()
            for id in absent:
                gaps.add(id)
            raise gaps.error("the content")
        return [ChunkAt(at.pack, at.offset, at.stored_length) for at in locations if at is not None]


def resolve_prefix(packs: PackService, kind: ObjectKind, prefix: str, *, limit: int) -> list[bytes]:
    """Ids of a kind that begin with ``prefix`` (hex digits, with or without ``blake3:``), ascending, at most ``limit``.

    Raises:
        InvalidInput: not hex digits.
    """
    digits = prefix.removeprefix(BlobDigest.PREFIX)
    if not digits or len(digits) > 64 or not set(digits) <= set("0123456789abcdef"):
        raise InvalidInput(f"{prefix[:80]!r} is not the beginning of a digest")
    first = bytes.fromhex(digits.ljust(64, "0"))
    found = [first] if packs.available(kind, [first])[0] else []
    # Those that a collection has condemned can still be read, and named.
    condemned = packs.index.condemned(after=(kind, first), limit=limit)
    sleeping = [row.id for row in condemned if row.kind is kind]
    for id in sorted({id for id, _ in packs.index.objects(kind, after=first, limit=limit)}.union(sleeping)):
        if not id.hex().startswith(digits):
            break
        found.append(id)
    return found[:limit]
