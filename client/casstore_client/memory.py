"""What a push of a directory remembers of the one before, and what it leaves to the next.

Owns the meeting of walk, stat cache and excludes: the fingerprint of the walk, which of its files are known, and the new cache.

# ORDER: the clock is read before the walk looks at anything: see :mod:`casstore_client.stat_cache`.  The new cache is put in
place after the commit.

Threads: one at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from casstore.errors import CasstoreError
from casstore.formats.tree import decode_root, tree_digest
from casstore.ids import PageDigest, TreeDigest
from casstore_client.assemble import Totals
from casstore_client.excludes import Patterns
from casstore_client.listing import Fingerprint, look_again
from casstore_client.scan import Scanned, walk
from casstore_client.source import Found, Known
from casstore_client.stat_cache import CachePlace, CacheWriter, StatCache, Summary


class LastTree(NamedTuple):
    """The tree that the push before gave."""

    digest: TreeDigest
    root: bytes
    pages: list[PageDigest]
    totals: Totals


class Memory:
    """Beside one push of one directory.

    Args:
        root_fd: the directory; stays the caller's.
        place: where its cache is; None for none.
        patterns: what is left out.
    """

    def __init__(self, root_fd: int, place: CachePlace | None, patterns: Patterns | None) -> None:
        self.cache = None if place is None else StatCache.open(place)
        self.writer: CacheWriter | None = None
        self._root_fd = root_fd
        self._place = place
        self._patterns = patterns
        self._fingerprint: Fingerprint | None = None

    @cached_property
    def summary(self) -> LastTree | None:
        """The tree of the push before, if a look at the directory can show that it is still that."""
        if self.cache is None or not self.cache.summary.marks:
            return None
        summary = self.cache.summary
        totals = Totals()
        totals.files, totals.directories, totals.links = summary.files, summary.directories, summary.links
        totals.bytes, totals.chunks, totals.chunk_bytes = summary.size_bytes, summary.chunks, summary.chunk_bytes
        try:
            pages = [page.digest for page in decode_root(summary.root)]
        except CasstoreError:  # no root of this version; its hash was right, so another version wrote it
            return None
        return LastTree(tree_digest(summary.root), summary.root, pages, totals)

    def is_unchanged(self) -> bool:
        """Look at everything in the directory.

        Raises:
            SourceChanged, InvalidInput: as a walk.
        """
        assert self.cache is not None
        return look_again(self._root_fd, self._seed(), self.cache.summary.marks, self._patterns)

    def walk(self) -> Iterator[Found]:
        """Begin to walk the directory; what comes is known where its stamp is."""
        if self._place is None:
            return walk(self._root_fd, self._patterns)
        self._fingerprint = Fingerprint(self._seed())
        self.writer = CacheWriter(self._place, time.time_ns())
        found = walk(self._root_fd, self._patterns, self._fingerprint.add)
        return found if self.cache is None else _recognise(found, self.cache)

    def keep(self, root: bytes, totals: Totals) -> None:
        """The push was committed: leave what it learned to the next."""
        if self.writer is None or self._place is None or self._fingerprint is None:
            return
        marks = b"" if self.writer.young else self._fingerprint.finish()
        self.writer.commit(
            Summary(
                self._place.directory,
                tuple(self._place.parameters),
                marks,
                root,
                totals.files,
                totals.directories,
                totals.links,
                totals.bytes,
                totals.chunks,
                totals.chunk_bytes,
            )
        )

    def close(self) -> None:
        """Close the cache, and remove a new one that was not kept."""
        if self.cache is not None:
            self.cache.close()
        if self.writer is not None:
            self.writer.discard()

    def _seed(self) -> bytes:
        mode = os.fstat(self._root_fd).st_mode
        return b"\0".join((b"%o" % mode, self._patterns.text if self._patterns else b""))


def _recognise(found: Iterator[Scanned], cache: StatCache) -> Iterator[Found]:
    find = cache.find_file
    for scanned in found:
        stamp = scanned[5]
        if stamp is not None and scanned[3] and (known := find(scanned[0], stamp)) is not None:
            yield Known(scanned, *known)
        else:
            yield scanned
