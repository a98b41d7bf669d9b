"""Which objects a mark has met, in little memory.

Owns two compact sets.  Both err in one direction only: an object may count as reached that is not, and is then kept; never the
other way round.

* Chunks, of which there are millions: a Bloom filter of at least twelve bits a chunk.  One in about 200 unreached chunks is kept
  by mistake.  Each mark draws its own salt, so it is another one each time, and after two or three marks all are gone.
* Everything above them (documents, roots, pages, layouts), about a hundredth of that: 64-bit fingerprints in a hash table.  It must
  be exact for practical purposes, because an object that is taken for walked by mistake leads to chunks that are then not met.
  TRUST: the fingerprints are salted, too, anew for each mark.  Two ids that agree in their first 64 bits can be made in minutes, and
  whoever may push could have content acknowledged, wait until others rely on it, and have the marks lose its chunks.  With a salt that
  nobody knows two of 10^6 objects agree once in 10^7 marks, whoever made them; and what one mark condemns so, the next one revives.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from casstore.formats.pack import ObjectKind

_BITS_PER_CHUNK: Final = 12
_PROBES: Final = 5
_BITS_MIN: Final = 16  # 2^16 bits
_BITS_MAX: Final = 31  # LIMIT: 256 MiB; reached at some 180 million chunks, beyond which more garbage is kept
_TABLE_MIN: Final = 1024
_ALL: Final = (1 << 256) - 1


class _Bloom:
    def __init__(self, expected: int, salt: int) -> None:
        self._width = min(max((expected * _BITS_PER_CHUNK).bit_length(), _BITS_MIN), _BITS_MAX)
        self._bits = bytearray(1 << (self._width - 3))
        self._salt = salt | 1
        self._mask = (1 << self._width) - 1

    def add(self, ids: Sequence[bytes]) -> None:
        bits, salt, mask, width = self._bits, self._salt, self._mask, self._width
        for id in ids:
            # Ids are hashes; multiplied by an odd number and cut in slices, they are as good as five other hashes.
            mixed = (int.from_bytes(id, "big") * salt & _ALL) >> 64
            for _ in range(_PROBES):
                at = mixed & mask
                bits[at >> 3] |= 1 << (at & 7)
                mixed >>= width

    def has(self, id: bytes) -> bool:
        mask, width = self._mask, self._width
        mixed = (int.from_bytes(id, "big") * self._salt & _ALL) >> 64
        for _ in range(_PROBES):
            at = mixed & mask
            if not self._bits[at >> 3] & 1 << (at & 7):
                return False
            mixed >>= width
        return True


class _Fingerprints:
    """Open addressing, at most three fifths full; 0 marks a free place."""

    def __init__(self, salt: int) -> None:
        self._table = array("Q", bytes(8 * _TABLE_MIN))
        self._used = 0
        self._salt = salt | 1

    def _fingerprint(self, id: bytes) -> int:
        # The upper bits of a product with a random odd number: two ids agree in 64 of them once in 2^63 salts.
        return (int.from_bytes(id, "big") * self._salt & _ALL) >> 192 or 1

    def add(self, id: bytes) -> None:
        mark = self._fingerprint(id)
        if not self._insert(self._table, mark):
            return
        self._used += 1
        if 5 * self._used > 3 * len(self._table):
            grown = array("Q", bytes(16 * len(self._table)))
            for old in self._table:
                if old:
                    self._insert(grown, old)
            self._table = grown

    @staticmethod
    def _insert(table: array[int], mark: int) -> bool:
        mask = len(table) - 1
        at = mark & mask
        while table[at]:
            if table[at] == mark:
                return False
            at = (at + 1) & mask
        table[at] = mark
        return True

    def has(self, id: bytes) -> bool:
        mark = self._fingerprint(id)
        table = self._table
        mask = len(table) - 1
        at = mark & mask
        while table[at]:
            if table[at] == mark:
                return True
            at = (at + 1) & mask
        return False


class Reached:
    """What one mark has met.

    Two things are told apart above the chunks: what was *walked*, with all that it leads to, and what is only to be *kept*, such as
    the pages that a push under way has brought.  Only the first need not be walked again.

    Args:
        chunks: about how many chunks there are.
        salt: 32 random bytes, others for each mark.

    Threads: one at a time.
    """

    def __init__(self, chunks: int, salt: bytes) -> None:
        above = [kind for kind in ObjectKind if kind is not ObjectKind.CHUNK]
        number = int.from_bytes(salt, "big")
        self._chunks = _Bloom(chunks, number)
        self._walked: dict[ObjectKind, _Fingerprints] = {kind: _Fingerprints(number) for kind in above}
        self._kept: dict[ObjectKind, _Fingerprints] = {kind: _Fingerprints(number) for kind in above}

    def add_chunks(self, ids: Sequence[bytes]) -> None:
        """Chunks were met."""
        self._chunks.add(ids)

    def walk(self, kind: ObjectKind, id: bytes) -> None:
        """An object above chunks was met, and before it all that it leads to."""
        self._walked[kind].add(id)

    def is_walked(self, kind: ObjectKind, id: bytes) -> bool:
        """Whether nothing is to be learned from walking an object again."""
        return self._walked[kind].has(id)

    def keep(self, kind: ObjectKind, id: bytes) -> None:
        """An object above chunks is needed, whatever it leads to."""
        self._kept[kind].add(id)

    def has(self, kind: ObjectKind, id: bytes) -> bool:
        """Whether an object is needed; of chunks, perhaps."""
        if kind is ObjectKind.CHUNK:
            return self._chunks.has(id)
        return self._walked[kind].has(id) or self._kept[kind].has(id)
