"""What was dropped, by name: the lists whose digests stand in the log.

Owns some rows of the table ``meta``: ``gc-entry`` → u64be log index of the newest ``gc`` entry, and ``gc-list/`` ‖ 32-byte digest →
u64be ms ‖ u32be bytes ‖ zstd of the list.  They are kept for people, as long
as there is room; the log holds the digest for ever, so whoever kept a list can prove it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from casstore.compression import zstd_compress, zstd_decompress
from casstore.engine.nodes import decode_index, read_entry
from casstore.errors import DamagedObject, InvalidInput, NotFound
from casstore.formats.entry import decode_entry
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest
from casstore.limits import MIB
from casstore.storage.roles import Ledger, LedgerView, Table

LISTS_MAX: Final = 200  # LIMIT: some 35 KiB each; the oldest leave first
_PREFIX: Final = b"gc-list/"
NEWEST: Final = b"gc-entry"
"""Key in ``meta`` of the index of the newest entry about a collection."""
_TIME: Final = struct.Struct(">QI")


def newest_collection(view: LedgerView) -> int | None:
    """The newest entry by which the log says that content was dropped; None if there is none."""
    row = view.get(Table.META, NEWEST)
    if row is None or len(row) != 8:
        return None
    index = decode_index(row)
    try:
        # What the row says is believed for the entry alone.
        return index if decode_entry(read_entry(view, index)).type == "gc" else None
    except (NotFound, InvalidInput):
        return None


def keep_list(ledger: Ledger, heads: Sequence[str], now_ms: int) -> BlobDigest:
    """Keep a list; returns its digest.

    Durability: durable when this returns.
    Threads: ledger writer.
    """
    text = "".join(f"{line}\n" for line in heads).encode()
    digest = BlobDigest(blake3_256(text))
    with ledger.write() as transaction:
        transaction.put(Table.META, _PREFIX + digest, _TIME.pack(now_ms, len(text)) + zstd_compress(text))
        rows = transaction.scan(Table.META, prefix=_PREFIX, limit=2 * LISTS_MAX)
        oldest = sorted(rows, key=lambda row: _TIME.unpack_from(row[1])[0])
        for key, _ in oldest[: max(0, len(rows) - LISTS_MAX)]:
            transaction.delete(Table.META, key)
    return digest


def read_list(ledger: Ledger, digest: BlobDigest) -> list[str]:
    """The lines of a list.

    Raises:
        NotFound: it is not kept (any more).
        DamagedObject: it cannot be read.
    """
    with ledger.read() as view:
        row = view.get(Table.META, _PREFIX + digest)
    if row is None:
        raise NotFound(f"the list {digest} is not kept; the newest {LISTS_MAX} are")
    size = _TIME.unpack_from(row)[1]
    text = zstd_decompress(row[_TIME.size :], min(size, MIB)) if size else b""
    if blake3_256(text) != digest:
        raise DamagedObject(
            f"the list {digest} is not what it was", object=f"list {digest}", where="ledger, table meta"
        )
    return text.decode().splitlines()
