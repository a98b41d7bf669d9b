"""The signed log's reader: entries, proofs and tiles of what is published.

Owns every answer about the log that needs no meaning of entries.  Must not know pointers.

Invariant: everything in one answer is of one and the same size, that of a checkpoint that was signed; nothing that is
committed but not yet published is shown.

Source: https://c2sp.org/tlog-tiles, https://c2sp.org/tlog-proof, RFC 9162 §2.1.3–2.1.4
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from casstore.engine.log import LogService, Published
from casstore.engine.nodes import (
    NodeReader,
    decode_index,
    encode_index,
    node_reader,
    read_entries,
    read_entry,
    read_node_run,
)
from casstore.errors import EntryNotFound, InvalidInput
from casstore.formats.canonical import encode_b64
from casstore.formats.proof import Proof, encode_proof
from casstore.limits import LIST_LIMIT_MAX, TILE_WIDTH
from casstore.merkle import consistency_proof, inclusion_proof
from casstore.storage.roles import Ledger, LedgerView, Table
from casstore.tiles import encode_entries_tile, encode_hash_tile, is_published, parse_tile_path
from casstore.wire import ConsistencyAnswer, EntryList, EntryProof, ProofBundle, StateProof

ENTRY_LIST_MAX_BYTES = 8 * 1024 * 1024  # LIMIT: entries are up to 60 KiB, and an answer is built in memory


class Tile(NamedTuple):
    """A tile's bytes.  A full one never changes; a partial one is a slice of what will be."""

    data: bytes
    full: bool


class LogReader:
    """Answers from the published log.

    Args:
        ledger: where entries and nodes lie.
        log: whose checkpoint the answers end in.

    Threads: any.
    """

    def __init__(self, ledger: Ledger, log: LogService) -> None:
        self._ledger = ledger
        self._log = log

    def checkpoint(self) -> bytes:
        """The newest checkpoint, a signed note.

        Raises:
            LogUnavailable: none may be shown.
        """
        return self._log.published().note

    def inclusion(self, index: int, size: int | None = None) -> bytes:
        """A proof file (``.tlog-proof``) that entry ``index`` is in the log of ``size`` entries.

        Args:
            index: of the entry, from 0.
            size: up to the published size, which is what None means.

        Raises:
            EntryNotFound: the log of that size has no such entry.
            InvalidInput: a size that is not published.
            LogUnavailable: nothing is.
        """
        published = self._log.published()
        size = published.size if size is None else size
        if not 0 < size <= published.size:
            raise InvalidInput(f"the published log has {published.size} entries: there is no proof at size {size}")
        if not 0 <= index < size:
            raise EntryNotFound(f"a log of {size} entries has no entry {index}")
        note = published.note if size == published.size else self._log.checkpoint_of(size)
        with self._ledger.read() as view:
            return encode_proof(Proof(index, inclusion_proof(index, size, node_reader(view)), note))

    def consistency(self, from_size: int, to_size: int | None = None) -> ConsistencyAnswer:
        """The proof that the log of ``to_size`` entries begins with the log of ``from_size`` entries.

        Args:
            from_size: 0 gives an empty proof: every log begins with nothing.
            to_size: up to the published size, which is what None means.

        Raises:
            InvalidInput: sizes out of order, or beyond what is published.
            LogUnavailable: nothing is.
        """
        published = self._log.published()
        to_size = published.size if to_size is None else to_size
        if not 0 <= from_size <= to_size <= published.size:
            raise InvalidInput(
                f"there is no proof from size {from_size} to size {to_size}: the published log has {published.size} entries"
            )
        hashes: Sequence[bytes] = []
        if 0 < from_size < to_size:
            with self._ledger.read() as view:
                hashes = consistency_proof(from_size, to_size, node_reader(view))
        return ConsistencyAnswer(from_size=from_size, to_size=to_size, proof=[encode_b64(value) for value in hashes])

    def tile(self, path: str) -> Tile:
        """A tile, hashes or entries.

        Args:
            path: behind the log's prefix: ``tile/0/x001/067``, ``tile/entries/000.p/5``.

        Raises:
            EntryNotFound: no such tile is published.
            InvalidInput: not the one spelling of a tile's path.
            LogUnavailable: nothing is published.
        """
        tile = parse_tile_path(path)
        if not is_published(tile, self._log.published().size):
            raise EntryNotFound(f"the published log has no tile {path[:100]!r}")
        first = tile.n * TILE_WIDTH
        with self._ledger.read() as view:
            if tile.level == "entries":
                data = encode_entries_tile(read_entries(view, first, first + tile.width))
            else:
                # Hash i of level L is the complete subtree of 256^L leaves: level 8 L of the stored tree.
                data = encode_hash_tile(read_node_run(view, 8 * tile.level, first, tile.width))
        return Tile(data, tile.width == TILE_WIDTH)

    def entry(self, index: int) -> EntryList:
        """One entry with its proof and the checkpoint.

        Raises:
            EntryNotFound: it is not published.
            LogUnavailable: nothing is.
        """
        published = self._log.published()
        if not 0 <= index < published.size:
            raise EntryNotFound(f"the published log has no entry {index}")
        return self._list(published, [index])

    def entries(self, first: int, limit: int) -> EntryList:
        """Entries from ``first`` on, with their proofs; empty behind the end.

        Args:
            first: index, from 0.
            limit: 1 to ``LIST_LIMIT_MAX``.  Fewer come where they would outgrow ``ENTRY_LIST_MAX_BYTES``; at least one does.

        Raises:
            InvalidInput: a limit out of range, or a negative index.
            LogUnavailable: nothing is published.
        """
        _check_page(first, limit)
        published = self._log.published()
        return self._list(published, range(first, min(first + limit, published.size)))

    def policies(self, after: int | None = None) -> EntryList:
        """The genesis and the policy entries behind index ``after`` (None: from the genesis on), with their proofs.

        At most ``LIST_LIMIT_MAX``; go on behind the last one's index until none come.

        Raises:
            LogUnavailable: nothing is published.
        """
        published = self._log.published()
        key = None if after is None else encode_index(max(0, after))
        with self._ledger.read() as view:
            rows = view.scan(Table.POLICIES, after=key, before=encode_index(published.size), limit=LIST_LIMIT_MAX)
        return self._list(published, [decode_index(row) for row, _ in rows])

    def raw_entries(self, first: int, limit: int) -> list[bytes]:
        """The stored bytes of published entries from ``first`` on; for a replay on this machine.

        Raises:
            InvalidInput: a limit out of range, or a negative index.
            LogUnavailable: nothing is published.
        """
        _check_page(first, limit)
        end = min(first + limit, self._log.published().size)
        with self._ledger.read() as view:
            return read_entries(view, first, end)

    def _list(self, published: Published, indices: Iterable[int]) -> EntryList:
        proofs: list[EntryProof] = []
        room = ENTRY_LIST_MAX_BYTES
        with self._ledger.read() as view:
            read = node_reader(view)
            for index in indices:
                proof = prove_entry(view, read, index, published.size)
                room -= len(proof.entry) + 48 * len(proof.proof)
                if room < 0 and proofs:
                    break
                proofs.append(proof)
        return EntryList(checkpoint=published.note.decode(), size=published.size, entries=proofs)


def prove_entry(view: LedgerView, read: NodeReader, index: int, size: int) -> EntryProof:
    """An entry with its inclusion proof in the log of ``size`` entries.

    Raises:
        EntryNotFound: the ledger has no such entry.
    """
    hashes = inclusion_proof(index, size, read)
    return EntryProof(
        index=index, entry=encode_b64(read_entry(view, index)), proof=[encode_b64(value) for value in hashes]
    )


class Prover:
    """Builds proof bundles of one checkpoint; what they share (the head, the nodes) is read once.

    Args:
        view: a read view that holds at least the checkpoint's log.
        published: the checkpoint.

    Threads: that of the view.
    """

    def __init__(self, view: LedgerView, published: Published) -> None:
        self._view = view
        self._published = published
        self._read = node_reader(view)
        self._checkpoint = published.note.decode()
        self._entries: dict[int, EntryProof] = {}

    def bundle(self, state: list[StateProof], entries: Iterable[int], since: int | None = None) -> ProofBundle:
        """Facts of this checkpoint.

        Args:
            state: proofs of state leaves against the head's state root, made at the same size.
            entries: indices of the entries to prove, in any order.
            since: a size that the asker has verified; the bundle shows that the log continues it.  A larger one than this
                log's is left unanswered: the asker has to ask, and will learn why.
        """
        size = self._published.size
        if since is not None and since > size:
            since = None
        hashes = consistency_proof(since, size, self._read) if since and since < size else []
        return ProofBundle(
            checkpoint=self._checkpoint,
            size=size,
            head=self._prove(size - 1),
            state=state,
            entries=[self._prove(index) for index in sorted(set(entries))],
            since=since,
            consistency=[encode_b64(value) for value in hashes],
        )

    def _prove(self, index: int) -> EntryProof:
        proof = self._entries.get(index)
        if proof is None:
            proof = self._entries[index] = prove_entry(self._view, self._read, index, self._published.size)
        return proof


def _check_page(first: int, limit: int) -> None:
    if first < 0 or not 1 <= limit <= LIST_LIMIT_MAX:
        raise InvalidInput(
            f"a page begins at 0 or behind it and has 1 to {LIST_LIMIT_MAX} entries, not {first} and {limit}"
        )
