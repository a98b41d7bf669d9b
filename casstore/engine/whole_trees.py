"""Trees that were whole a moment ago: an unchanged push is committed without taking its pages apart once more.

Owns a memory of trees whose every object was live after their commit, together with the index's count of losses at that moment.
While the count stays the same nothing has left the index, so they are whole still; the index writer compares it once more before
the ledger learns of anything.

Memory: ``WHOLE_MAX`` rows of some 200 bytes.

Threads: any.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

from casstore.ids import TreeDigest

WHOLE_MAX: Final = 4096  # LIMIT: trees that are pushed again and again; of others a commit looks at the pages


class WholeTree(NamedTuple):
    """What a commit of the tree would find out again."""

    losses: int
    size_bytes: int
    files: int


class WholeTrees:
    """The trees that were committed last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trees: OrderedDict[bytes, WholeTree] = OrderedDict()

    def note(self, digest: TreeDigest, tree: WholeTree) -> None:
        """Remember a tree of which everything is live."""
        with self._lock:
            self._trees[digest] = tree
            self._trees.move_to_end(digest)
            if len(self._trees) > WHOLE_MAX:
                self._trees.popitem(last=False)

    def find(self, digest: TreeDigest, losses: int) -> WholeTree | None:
        """The tree, if nothing has left the index since it was noted."""
        with self._lock:
            tree = self._trees.get(digest)
            if tree is None or tree.losses != losses:
                return None
            self._trees.move_to_end(digest)
            return tree
