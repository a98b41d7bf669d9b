"""The proof of one layout that lies before us: a page's, or a blob's, from a pack or from another holder.

Owns the rules under which a layout may enter the index when no push is committing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

from casstore.engine.packs import PackService, format_object
from casstore.engine.proving import (
    check_chunk_lengths,
    hashed_bytes,
    page_proof_key,
    plan_units,
    prove_unit,
    run_units,
)
from casstore.errors import SnapshotIncomplete, TooLarge
from casstore.formats.layout import decode_layout, verify_layout_fits
from casstore.formats.pack import ObjectKind
from casstore.formats.tree import EntryType, TreeEntry, decode_page
from casstore.ids import BlobDigest
from casstore.limits import PROOF_REPEATED_MAX_BYTES


def prove_layout(
    packs: PackService, id: bytes, data: bytes, *, is_page: bool, pool: Executor | None = None, width: int = 1
) -> bytes:
    """Put every file of a page, or a blob, together by a layout, and hash it.

    Args:
        packs: where page and chunks are read.
        id: of the page or blob.
        data: the layout.
        is_page: which of the two it is.
        pool: threads that help.
        width: how many threads work at most.

    Returns:
        The memo key that says so.

    Raises:
        SnapshotIncomplete: a chunk is missing.
        DigestMismatch, MalformedDocument, TooLarge: it is not that page's or blob's layout.
        NotFound, DamagedObject: page or chunk cannot be read.
        Overloaded: other large layouts are being taken apart.
    """
    with packs.rooms.hold(ObjectKind.LAYOUT, len(data)):
        layout = decode_layout(data)
        entries: Sequence[TreeEntry]
        if is_page:
            entries = decode_page(packs.read_object(ObjectKind.PAGE, id))
        else:
            size = sum(extent.length for extent in layout.files[0]) if layout.files else 0
            entries = [TreeEntry(b"", EntryType.FILE, 0, size, BlobDigest(id))]
        verify_layout_fits(layout, entries)
        found = packs.index.locate(ObjectKind.CHUNK, [chunk for chunk, _ in layout.chunks])
        locations = [location for location in found if location is not None]
        if len(locations) != len(found):
            raise SnapshotIncomplete(f"a chunk of {format_object(ObjectKind.LAYOUT, id)} is missing")
        check_chunk_lengths(layout, locations)
        units = list(plan_units(entries, layout, locations))
        # LIMIT: as at a commit: a few kilobytes can ask for terabytes of hashing.
        allowed = PROOF_REPEATED_MAX_BYTES + sum(length for _, length in layout.chunks)
        if sum(map(hashed_bytes, units)) > allowed:
            raise TooLarge("the files repeat their chunks too often", limit=allowed)
        run_units(iter(units), lambda unit: prove_unit(packs, unit), pool=pool, width=width)
    return page_proof_key(id, data)
