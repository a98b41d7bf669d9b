"""Files hashed while their chunks come in, so that a commit need not read them again.

Owns what a push has proven that way: *facts*, each of them true whoever says what: "these bytes of this chunk hash to that", and
"these chunks, one behind the other, hash to that".  A commit looks its files up here and reads only what it does not find.

Nothing here is needed for a proof: whatever does not fit, comes in another order than hoped, or is lost with the push's lease, is
read at commit.

TRUST: a client says which bytes are files; what they hash to is computed here, from plain bytes that hashed to the chunk's id.

Memory, all pushes together: ``FACTS_MAX_BYTES`` of facts and ``STASH_MAX_BYTES`` of plain bytes that came too early.

Threads: any; the chunks of one large file are hashed one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from casstore.engine.proving import RECORD_BYTES, LargeFile, Slice, Unit, slice_records
from casstore.errors import MalformedDocument
from casstore.hashing import Blake3Hasher, blake3_256
from casstore.limits import KIB, MIB, PACK_PLAIN_MAX_BYTES
from casstore.wire import Runs

FACTS_MAX_BYTES: Final = (
    64 * MIB
)  # LIMIT: 40 bytes a small file: of 1.6 million files in pushes that did not commit yet
FACTS_EACH_MAX_BYTES: Final = 32 * MIB  # LIMIT: of one push
STASH_MAX_BYTES: Final = 48 * MIB  # LIMIT: packs of a push come in side by side, and a file may lie in two of them
STASH_EACH_MAX_BYTES: Final = 24 * MIB
GROWING_MAX: Final = 1024  # LIMIT: large files of one push that are hashed in part; each holds a hasher of 2 KiB
_ROW_BYTES: Final = 200  # of a dictionary's row and its key, about
# LIMIT: processor time of one pack, as much again as its chunks may take: runs of half a MiB could ask for hours.
_HASHED_MAX_BYTES: Final = PACK_PLAIN_MAX_BYTES
_STEP_BYTES: Final = 4 * KIB  # what a chunk of one byte costs, in bytes of a large one


class RunsRoom:
    """The bytes that all pushes together may hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts = FACTS_MAX_BYTES
        self._stash = STASH_MAX_BYTES

    def take_facts(self, count: int) -> bool:
        """Claim ``count`` bytes for facts; False if there is no room."""
        with self._lock:
            fits = count <= self._facts
            self._facts -= count * fits
            return fits

    def take_stash(self, count: int) -> bool:
        """Claim ``count`` bytes for what came too early; False if there is no room."""
        with self._lock:
            fits = count <= self._stash
            self._stash -= count * fits
            return fits

    def give_back(self, *, facts: int = 0, stash: int = 0) -> None:
        """Undo claims."""
        with self._lock:
            self._facts += facts
            self._stash += stash


class _Growing:
    """A large file of which some chunks have been hashed."""

    __slots__ = ("early", "hasher", "ids", "lock", "lost", "next")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.hasher = Blake3Hasher()
        self.ids = Blake3Hasher()
        self.next = 0
        self.early: dict[int, tuple[bytes, bytes, bool]] = {}
        self.lost = False


class PushRuns:
    """What one push has proven so far.

    Args:
        room: shared with all other pushes.
    """

    def __init__(self, room: RunsRoom) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._slices: dict[bytes, bytes] = {}
        self._files: dict[bytes, bytes] = {}
        self._growing: dict[int, _Growing] = {}
        self._facts_bytes = 0
        self._stash_bytes = 0
        self._closed = False

    # --- while packs come in -----------------------------------------------------------------------------------------

    def take_bundle(self, chunk: bytes, lengths: Sequence[int], plain: bytes) -> None:
        """Hash the files that lie in a chunk.

        Raises:
            MalformedDocument: the lengths do not add up to the chunk.
        """
        if sum(lengths) != len(plain):
            raise MalformedDocument(
                f"the file runs fill {sum(lengths)} bytes of chunk {chunk.hex()}, which has {len(plain)}"
            )
        if not self._claim_facts(len(lengths) * RECORD_BYTES + _ROW_BYTES):
            return
        view = memoryview(plain)
        records: list[Slice] = []
        offset = 0
        for length in lengths:
            end = offset + length
            records.append(Slice(offset, length, blake3_256(view[offset:end]), b""))
            offset = end
        with self._lock:
            if not self._closed:
                self._slices[chunk] = slice_records(records)

    def take_file(self, file: int, ordinal: int, last: bool, chunk: bytes, plain: bytes) -> None:
        """Hash the next chunk of a large file; one that comes too early waits, if there is room."""
        with self._lock:
            growing = self._growing.get(file)
            if growing is None:
                if self._closed or len(self._growing) >= GROWING_MAX:
                    return
                growing = self._growing[file] = _Growing()
        with growing.lock:
            if growing.lost or ordinal < growing.next:
                return
            if ordinal > growing.next:
                self._stash(growing, ordinal, chunk, plain, last)
                return
            ended = self._hash(growing, chunk, plain, last)
            while not ended and (early := growing.early.pop(growing.next, None)) is not None:
                self._unstash(len(early[1]))
                ended = self._hash(growing, *early)
            if ended:
                self._learn(file, growing)

    def _hash(self, growing: _Growing, chunk: bytes, plain: bytes, last: bool) -> bool:
        growing.hasher.update(plain)
        growing.ids.update(chunk)
        growing.next += 1
        return last

    def _learn(self, file: int, growing: _Growing) -> None:
        # Another thread may wait at the lock with a chunk behind the last one: it must not stash what nobody gives back.
        growing.lost = True
        self._forget_early(growing)
        if self._claim_facts(64 + _ROW_BYTES):
            with self._lock:
                if not self._closed:
                    self._files[growing.ids.digest()] = growing.hasher.digest()
        with self._lock:
            self._growing.pop(file, None)

    def _stash(self, growing: _Growing, ordinal: int, chunk: bytes, plain: bytes, last: bool) -> None:
        if ordinal in growing.early:
            return
        size = len(plain)
        with self._lock:
            fits = not self._closed and self._stash_bytes + size <= STASH_EACH_MAX_BYTES and self._room.take_stash(size)
            self._stash_bytes += size * fits
        if fits:
            growing.early[ordinal] = (chunk, plain, last)
        else:
            # One chunk that is not kept makes all that came early useless: the file is read at commit.
            growing.lost = True
            self._forget_early(growing)

    def _forget_early(self, growing: _Growing) -> None:
        self._unstash(sum(len(plain) for _, plain, _ in growing.early.values()))
        growing.early.clear()

    def _unstash(self, size: int) -> None:
        with self._lock:
            self._stash_bytes -= size
            self._room.give_back(stash=size)

    def _claim_facts(self, size: int) -> bool:
        with self._lock:
            if self._closed or self._facts_bytes + size > FACTS_EACH_MAX_BYTES or not self._room.take_facts(size):
                return False
            self._facts_bytes += size
            return True

    # --- at commit ---------------------------------------------------------------------------------------------------

    def has(self, part: Unit) -> bool:
        """Whether a part (:func:`casstore.engine.proving.split_unit`) was proven on the way in."""
        if isinstance(part, LargeFile):
            chunks = part.layout.chunks
            key = blake3_256(b"".join([chunks[extent.chunk][0] for extent in part.extents]))
            return self._files.get(key) == part.digest
        ((chunk, _),) = part.chunks
        records = self._slices.get(bytes(chunk))
        if records is None:
            return False
        # The files of a page lie in a chunk side by side, in the order of their offsets.
        at = records.find(slice_records(part.slices[0]))
        return at >= 0 and at % RECORD_BYTES == 0

    def close(self) -> None:
        """Forget everything, and take no more; idempotent."""
        with self._lock:
            self._closed = True
            growing = list(self._growing.values())
            self._growing.clear()
            self._slices.clear()
            self._files.clear()
            facts, self._facts_bytes = self._facts_bytes, 0
            self._room.give_back(facts=facts)
        for file in growing:
            with file.lock:
                file.lost = True
                self._forget_early(file)


class PackRuns:
    """The runs of one pack that is coming in: what to do with which chunk.

    Args:
        proven: takes what they prove.
        runs: as they stood in front of the pack.
    """

    def __init__(self, proven: PushRuns, runs: Runs) -> None:
        self._proven = proven
        self._left_bytes = _HASHED_MAX_BYTES
        self._bundles = {run.chunk: run.lengths for run in runs.bundles}
        self._files: dict[bytes, list[tuple[int, int, bool]]] = {}
        for run in runs.files:
            end = len(run.chunks) - 1
            for number, chunk in enumerate(run.chunks):
                place = (run.file, run.ordinal + number, run.last and number == end)
                self._files.setdefault(chunk, []).append(place)

    def take(self, chunk: bytes, plain: bytes) -> None:
        """Use the plain bytes of a chunk that came in and was verified.

        Raises:
            MalformedDocument: the runs do not fit it.
        """
        # LIMIT: a chunk that comes twice in a pack is used once.
        lengths = self._bundles.pop(chunk, None)
        if lengths is not None:
            self._proven.take_bundle(chunk, lengths, plain)
        for file, ordinal, last in self._files.pop(chunk, ()):
            self._left_bytes -= len(plain) + _STEP_BYTES
            if self._left_bytes < 0:
                return  # the rest is read at commit
            self._proven.take_file(file, ordinal, last, chunk, plain)
