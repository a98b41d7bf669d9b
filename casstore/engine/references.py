"""What an artifact consists of, as the index knows it: every object that must be there for it to be read.

Owns the walk from a tree, blob or snapshot down to its chunks, by look-ups and by reading roots and layouts; no content is read.
A commit revives what it walks; a collection marks it; nothing else may decide what a tree needs.

Memory: one root, and the layouts of a batch of pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeAlias

from casstore.engine.packs import PackService
from casstore.formats.layout import decode_layout
from casstore.formats.pack import ObjectKind
from casstore.formats.tree import decode_root
from casstore.ids import BlobDigest, PageDigest, TreeDigest

References: TypeAlias = tuple[ObjectKind, Sequence[bytes]]
"""Objects of one kind, by id."""

# LIMIT: pages whose layouts are read side by side.
_BATCH: Final = 16


def references_of(
    packs: PackService, kind: Literal["tree", "blob"], digest: TreeDigest | BlobDigest
) -> Iterator[References]:
    """Everything that a tree or blob needs, itself included.

    Raises:
        NotFound: a root or layout on the way is neither live nor condemned.
        DamagedObject: a root or layout cannot be read.
    """
    if kind == "blob":
        yield from layout_references(packs, [digest])
        return
    yield ObjectKind.ROOT, [digest]
    pages = tree_pages(packs, TreeDigest(digest))
    for start in range(0, len(pages), _BATCH):
        yield from page_references(packs, pages[start : start + _BATCH])


def tree_pages(packs: PackService, digest: TreeDigest) -> list[PageDigest]:
    """The pages of a tree.

    Raises:
        NotFound, DamagedObject: as :func:`references_of`.
    """
    root = packs.read_object(ObjectKind.ROOT, digest)
    with packs.rooms.hold(ObjectKind.ROOT, len(root)):
        return [ref.digest for ref in decode_root(root)]


def page_references(packs: PackService, pages: Sequence[PageDigest]) -> Iterator[References]:
    """Everything that pages need, themselves included.

    Raises:
        NotFound, DamagedObject: as :func:`references_of`.
    """
    yield ObjectKind.PAGE, pages
    yield from layout_references(packs, pages)


def layout_references(packs: PackService, digests: Sequence[bytes]) -> Iterator[References]:
    """The layouts of pages or blobs, and their chunks.

    Raises:
        NotFound, DamagedObject: as :func:`references_of`.
    """
    yield ObjectKind.LAYOUT, digests
    for data in packs.read_each(ObjectKind.LAYOUT, digests):
        with packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
            chunks = [id for id, _ in decode_layout(data).chunks]
        yield ObjectKind.CHUNK, chunks
