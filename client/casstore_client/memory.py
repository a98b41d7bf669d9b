"""What a push of a directory remembers of the one before, and what it leaves to the next.

Owns the meeting of walk, stat cache and excludes: the fingerprint of the walk, which of its files are known, and the new cache.

# ORDER: the clock is read before the walk looks at anything: see :mod:`casstore_client.stat_cache`.  The new cache is put in
place after the commit.

Threads: one at a time.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from casstore.chunking import Parameters
from casstore.errors import CasstoreError
from casstore.formats.tree import decode_root, tree_digest
from casstore.ids import PageDigest, TreeDigest
from casstore_client.assemble import Totals
from casstore_client.beneath import Beneath
from casstore_client.excludes import Patterns, read_excludes
from casstore_client.listing import RECORDS, Fingerprint, list_directory, look_again
from casstore_client.scan import Scanned, walk
from casstore_client.source import Found, Known
from casstore_client.stat_cache import CachePlace, CacheWriter, StatCache, Summary, locate_cache


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
        path: its path.
        parameters: how content is cut.
        exclude: patterns of what is left out, beside those in the directory's own file.
        cached: whether the stat cache is used and written.
    """

    def __init__(
        self, root_fd: int, path: bytes, parameters: Parameters, *, exclude: Sequence[str], cached: bool
    ) -> None:
        self.cache: StatCache | None = None
        self.writer: CacheWriter | None = None
        self.last: LastTree | None = None
        """The tree of the push before, if a look at the directory can show that it is still that."""
        self._root_fd = root_fd
        self._path = path
        self._parameters = parameters
        self._exclude = exclude
        self._cached = cached
        self._place: CachePlace | None = None
        self._patterns: Patterns | None = None
        self._fingerprint: Fingerprint | None = None

    def open(self) -> None:
        """Read the patterns, and open the cache if there is one.

        Raises:
            InvalidInput: a pattern can match nothing, or the file with them cannot be read.
        """
        self._patterns = read_excludes(self._root_fd, self._exclude)
        if self._cached:
            self._place = locate_cache(self._path, self._parameters)
        if self._place is not None:
            self.cache = StatCache.open(self._place)
        if self.cache is None or not self.cache.summary.marks:
            return
        summary = self.cache.summary
        totals = Totals()
        totals.files, totals.directories, totals.links = summary.files, summary.directories, summary.links
        totals.bytes, totals.chunks, totals.chunk_bytes = summary.size_bytes, summary.chunks, summary.chunk_bytes
        with suppress(CasstoreError):  # no root of this version; its hash was right, so another version wrote it
            pages = [page.digest for page in decode_root(summary.root)]
            self.last = LastTree(tree_digest(summary.root), summary.root, pages, totals)

    def count(self) -> tuple[int, int]:
        """How many files there are, and their bytes.

        Raises:
            SourceChanged, InvalidInput: as a walk.
        """
        files = size = 0
        with Beneath(self._root_fd) as below:
            stack = [b""]
            while stack:
                listing = list_directory(below, stack.pop(), self._patterns)
                stack += listing.directories
                for _, _, length, _, _, mode in RECORDS.iter_unpack(listing.records):
                    if stat.S_ISREG(mode):
                        files += 1
                        size += length
        return files, size

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
