"""The log tree as it lies in the ledger: entries by index, and the hash of every complete subtree.

Owns the keys of the tables ``entries`` and ``nodes``.  Every level is stored, so a proof of any size is a few point reads
and a tile is one range scan; nothing is ever recomputed from leaves but by ``fsck``.

Invariants: an entry is written together with its nodes, in one transaction; neither is ever overwritten.

Source: RFC 6962 §2.1 (the tree), docs/formats/ledger.md (the keys)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from casstore.errors import DamagedObject, EntryNotFound
from casstore.merkle import Frontier, leaf_hash
from casstore.storage.roles import LedgerTransaction, LedgerView, Table

_INDEX = struct.Struct(">Q")
_NODE = struct.Struct(">BQ")

Node = tuple[int, int]
"""Level and position: ``(level, position)`` covers the leaves from ``position · 2^level``."""
NodeReader = Callable[[Sequence[Node]], list[bytes]]

ENTRIES_SCAN_MAX: Final = 256  # an entries tile; at 61,440 bytes an entry that is 15 MiB at most


def encode_index(index: int) -> bytes:
    """Key of an entry: ``u64be``, so that key order is log order."""
    return _INDEX.pack(index)


def decode_index(key: bytes) -> int:
    """Undo :func:`encode_index`.

    Raises:
        DamagedObject: not eight bytes.
    """
    if len(key) != _INDEX.size:
        raise DamagedObject(f"{key!r} is not the key of an entry", object="log entry", where="ledger")
    return int(_INDEX.unpack(key)[0])


def encode_node(level: int, position: int) -> bytes:
    """Key of a node: ``u8 level ‖ u64be position``, so that a tile's hashes lie side by side."""
    return _NODE.pack(level, position)


def read_size(view: LedgerView) -> int:
    """How many entries the log has."""
    last = view.scan(Table.ENTRIES, reverse=True, limit=1)
    return decode_index(last[0][0]) + 1 if last else 0


def read_entry(view: LedgerView, index: int) -> bytes:
    """The stored bytes of one entry.

    Raises:
        EntryNotFound: the log is shorter.
    """
    data = view.get(Table.ENTRIES, encode_index(index)) if 0 <= index < 1 << 63 else None
    if data is None:
        raise EntryNotFound(f"the log has no entry {index}")
    return data


def read_entries(view: LedgerView, first: int, end: int) -> list[bytes]:
    """The stored bytes of the entries ``[first, end)``; at most ``ENTRIES_SCAN_MAX`` of them at a time is wise.

    Raises:
        DamagedObject: one of them is missing.
    """
    if first >= end:
        return []
    after = encode_index(first - 1) if first else None
    rows = view.scan(Table.ENTRIES, after=after, before=encode_index(end), limit=end - first)
    if [key for key, _ in rows] != [encode_index(index) for index in range(first, end)]:
        raise DamagedObject(
            f"the ledger lacks entries between {first} and {end - 1}: {len(rows)} of {end - first} are there",
            object=f"log entries {first} to {end - 1}",
            where="ledger, table entries",
        )
    return [value for _, value in rows]


def node_reader(view: LedgerView) -> NodeReader:
    """Reads nodes from ``view``, each once: proofs of neighbouring entries share most of their nodes."""
    seen: dict[Node, bytes] = {}

    def read(nodes: Sequence[Node]) -> list[bytes]:
        hashes = []
        for node in nodes:
            found = seen.get(node)
            if found is None:
                found = view.get(Table.NODES, _NODE.pack(*node))
                if found is None or len(found) != 32:
                    raise DamagedObject(
                        f"the log tree lacks its node {node[1]} of level {node[0]}",
                        object=f"log node {node[0]}/{node[1]}",
                        where="ledger, table nodes",
                    )
                seen[node] = found
            hashes.append(found)
        return hashes

    return read


def read_node_run(view: LedgerView, level: int, first: int, count: int) -> list[bytes]:
    """``count`` neighbouring nodes of one level, for a tile.

    Raises:
        DamagedObject: one of them is missing.
    """
    after = encode_node(level, first - 1) if first else encode_node(level, 0)[:-1]
    rows = view.scan(Table.NODES, after=after, before=encode_node(level, first + count), limit=count)
    if [key for key, _ in rows] != [encode_node(level, first + step) for step in range(count)]:
        raise DamagedObject(
            f"the log tree lacks nodes of level {level} behind {first}",
            object=f"log nodes {level}/{first} to {level}/{first + count - 1}",
            where="ledger, table nodes",
        )
    return [value for _, value in rows]


def append_entry(tx: LedgerTransaction, frontier: Frontier, entry: bytes) -> None:
    """Write an entry and the nodes that it completes.

    Args:
        tx: the transaction; the entry becomes real when it commits.
        frontier: the edge of the log as the transaction sees it; it grows by one.
        entry: its bytes.
    """
    key = encode_index(frontier.size)
    assert tx.get(Table.ENTRIES, key) is None, "an entry is written once"
    tx.put(Table.ENTRIES, key, entry)
    for (level, position), value in frontier.append(leaf_hash(entry)):
        tx.put(Table.NODES, encode_node(level, position), value)
