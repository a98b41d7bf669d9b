"""Turns what was read, in tree order, into chunks, pages, layouts and at last a root.

Owns the meeting of the two orders: entries go to pages as they come, but where a small file's bytes lie is known only when
its bundle is cut, which may be after its page is.  So a page waits until each of its rows is known.

Files that the stat cache knows come without their bytes.  Where a bundle is cut depends on digests and sizes alone, so it is
found all the same; its chunk is looked up by the digests of its files, and only where that is not known either (a neighbour
changed) are the files read, here and now.

Must not know how anything is sent.

Threads: one at a time.

Source: docs/formats/tree.md, docs/formats/layout.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from casstore.chunking import BundleCutter, Parameters
from casstore.formats.layout import LayoutBuilder
from casstore.formats.tree import BuiltPage, EntryType, PageCutter, PageRef, TreeEntry, encode_root, tree_digest
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId, PageDigest, TreeDigest
from casstore_client.scan import Scanned
from casstore_client.source import CutChunk, Item, Known, ReadFile, Window
from casstore_client.stat_cache import CacheWriter, StatCache, bundle_key
from casstore_client.unread import Unread, UnreadBundle, UnreadRun, read_known

_FILE: Final = EntryType.FILE

_Row: TypeAlias = list[tuple[ChunkId, int, int, int]]
"""A file's extents: (chunk, plain length of the chunk, offset, length); empty until known."""


class FilePlace(NamedTuple):
    """Where in a large file a chunk lies: the server hashes the file while its chunks come in."""

    file: int
    """Its number in this push."""
    ordinal: int
    last: bool


class NewChunk(NamedTuple):
    """A chunk that this push had not met before: its bytes, or how to come by them."""

    id: ChunkId
    data: bytes | Unread
    lengths: Sequence[int] = ()
    """Of a bundle: those of its files, in bytes."""
    place: FilePlace | None = None
    """Of a chunk of a large file, unless an earlier chunk of the file is not sent."""


class SealedPage(NamedTuple):
    """A page with its layout, ready to be stored."""

    digest: PageDigest
    data: bytes
    layout: bytes


class Assembled(NamedTuple):
    """What came out of one step.  ``spent`` bytes of content were read and are not held any longer; it is below zero where
    content had to be read here."""

    chunks: list[NewChunk]
    pages: list[SealedPage]
    spent: int


class Totals:
    """What a push is made of, counted as it goes."""

    def __init__(self) -> None:
        self.files = 0
        self.directories = 0
        self.links = 0
        self.bytes = 0
        self.chunks = 0
        """Distinct chunks."""
        self.chunk_bytes = 0
        """Plain bytes of the distinct chunks."""


class _LargeFiles:
    """Numbers large files, and the chunks of each, as far as all of them are new."""

    def __init__(self) -> None:
        self._file = 0
        self._next: int | None = 0

    def place(self, new: bool, last: bool) -> FilePlace | None:
        """The place of the next chunk of the file at hand."""
        ordinal = self._next
        found = None if ordinal is None or not new else FilePlace(self._file, ordinal, last)
        self._next = None if found is None else found.ordinal + 1
        if last:
            self._file += 1
            self._next = 0
        return found


class _Member(NamedTuple):
    """A small file in the open bundle; ``data`` is None where it was not read."""

    row: _Row
    scanned: Scanned
    digest: BlobDigest
    data: bytes | None


class TreeAssembler:
    """Builds one tree.

    Args:
        parameters: how bundles are cut.
        seen: filled with the id of every chunk that was handed out; readers look into it.
        root_fd: the directory; only used where files come without their bytes.
        cache: knows the chunks of bundles.
        writer: is told what the tree is made of.
    """

    def __init__(
        self,
        parameters: Parameters,
        seen: set[bytes],
        root_fd: int = -1,
        cache: StatCache | None = None,
        writer: CacheWriter | None = None,
    ) -> None:
        self.totals = Totals()
        self._seen = seen
        self._root_fd = root_fd
        self._cache = cache
        self._writer = writer
        self._small_bytes = parameters.small_file_bytes
        self._bundles = BundleCutter(parameters)
        self._bundle: list[_Member] = []
        self._pages = PageCutter()
        self._rows: list[_Row] = []  # of the page that is being filled
        self._large: _Row = []  # of the large file that is being read
        self._places = _LargeFiles()
        self._waiting: list[tuple[BuiltPage, list[_Row]]] = []
        self._refs: list[PageRef] = []
        self._out = Assembled([], [], 0)
        self._spent = 0

    def add_batch(self, items: Sequence[Item]) -> Assembled:
        """Take the next entries.

        Raises:
            MalformedDocument: an entry that no tree can hold.
        """
        for item in items:
            if isinstance(item, ReadFile):
                self._add_file(item)
            elif isinstance(item, Known):
                self._add_known(item)
            else:
                self._add_other(item)
        return self._take()

    def add_window(self, scanned: Scanned, window: Window) -> Assembled:
        """Take the next run of a large file; the entry follows with the last one."""
        self._add_chunks(self._large, window.chunks, window.digest is not None)
        if window.digest is not None:
            self._add_entry(scanned, window.digest, self._large)
            self._large = []
        return self._take()

    def finish(self) -> tuple[Assembled, bytes, TreeDigest]:
        """End the tree: what was left, the root's bytes, the tree's digest."""
        self._close_bundle()
        for page in self._pages.finish():
            self._add_page(page)
        root = encode_root(self._refs)
        return self._take(), root, tree_digest(root)

    def _add_file(self, item: ReadFile) -> None:
        scanned, digest, data, chunks = item
        row: _Row = []
        if chunks:
            self._add_chunks(row, chunks, True)
        elif data:
            self._add_small(_Member(row, scanned, digest, data))
        self._add_entry(scanned, digest, row)

    def _add_known(self, known: Known) -> None:
        scanned, digest, chunks = known
        row: _Row = []
        if not chunks:
            self._add_small(_Member(row, scanned, digest, None))
        offset = 0
        for chunk, length in chunks:
            row.append((chunk, length, 0, length))
            place = self._places.place(chunk not in self._seen, offset + length == scanned.size)
            if chunk not in self._seen:
                self._take_new(chunk, length, UnreadRun(self._root_fd, chunk, length, scanned, offset), place=place)
            offset += length
        self._add_entry(scanned, digest, row)

    def _add_small(self, member: _Member) -> None:
        before, after = self._bundles.add(member.digest, member.scanned.size)
        if before:
            self._close_bundle()
        self._bundle.append(member)
        if after:
            self._close_bundle()

    def _add_other(self, scanned: Scanned) -> None:
        if scanned.type is EntryType.DIRECTORY:
            self.totals.directories += 1
        else:
            self.totals.links += 1
        page = self._pages.add(TreeEntry(scanned.path, scanned.type, scanned.mode, target=scanned.target))
        if page is not None:
            self._add_page(page)

    def _add_entry(self, scanned: Scanned, digest: BlobDigest, row: _Row) -> None:
        size = scanned.size
        self.totals.files += 1
        self.totals.bytes += size
        if size:
            self._rows.append(row)
            if self._writer is not None and scanned.stamp is not None:
                # The row of a small file is filled when its bundle is cut; of another it is what the file is made of.
                whole = [(chunk, length) for chunk, length, _, _ in row] if size >= self._small_bytes else []
                self._writer.add_file(scanned.path, scanned.stamp, digest, whole)
        page = self._pages.add(TreeEntry(scanned.path, _FILE, scanned.mode, size, digest))
        if page is not None:
            self._add_page(page)

    def _add_chunks(self, row: _Row, chunks: Sequence[CutChunk], final: bool) -> None:
        end = len(chunks) - 1
        for number, (chunk, length, data) in enumerate(chunks):
            row.append((chunk, length, 0, length))
            place = self._places.place(chunk not in self._seen, final and number == end)
            self._offer(chunk, length, data, place=place)

    def _offer(
        self,
        chunk: ChunkId,
        length: int,
        data: bytes | None,
        *,
        lengths: Sequence[int] = (),
        place: FilePlace | None = None,
    ) -> None:
        if chunk in self._seen:
            self._spent += length
            return
        # A reader leaves the bytes out only if it found the id in the set, and nothing ever leaves the set.
        assert data is not None, "a new chunk comes with its bytes"
        self._take_new(chunk, length, data, lengths=lengths, place=place)

    def _take_new(
        self,
        chunk: ChunkId,
        length: int,
        data: bytes | Unread,
        *,
        lengths: Sequence[int] = (),
        place: FilePlace | None = None,
    ) -> None:
        self._seen.add(chunk)
        self.totals.chunks += 1
        self.totals.chunk_bytes += length
        self._out.chunks.append(NewChunk(chunk, data, lengths, place))

    def _close_bundle(self) -> None:
        bundle = self._bundle
        if not bundle:
            return
        self._bundle = []
        key = bundle_key([member.digest for member in bundle])
        size = sum([member.scanned.size for member in bundle])
        chunk = self._find_bundle(key, size, bundle)
        if self._writer is not None:
            self._writer.add_bundle(key, chunk)
        offset = 0
        for row, scanned, _, _ in bundle:
            length = scanned.size
            row.append((chunk, size, offset, length))
            offset += length
        waiting, self._waiting = self._waiting, []
        for page, rows in waiting:
            self._seal(page, rows)

    def _find_bundle(self, key: bytes, size: int, bundle: Sequence[_Member]) -> ChunkId:
        """The bundle's chunk, offered."""
        parts = [member.data for member in bundle if member.data is not None]
        members = [(member.scanned, member.digest) for member in bundle]
        lengths = [member.scanned.size for member in bundle]
        chunk = self._cache.find_bundle(key) if self._cache is not None and len(parts) < len(bundle) else None
        if chunk is not None:
            self._spent += sum(map(len, parts))
            if chunk not in self._seen:
                self._take_new(chunk, size, UnreadBundle(self._root_fd, chunk, size, members), lengths=lengths)
            return chunk
        if len(parts) < len(bundle):
            unread = [(member.scanned, member.digest) for member in bundle if member.data is None]
            self._spent -= sum([scanned.size for scanned, _ in unread])
            more = iter(read_known(self._root_fd, unread))
            parts = [next(more) if member.data is None else member.data for member in bundle]
        data = b"".join(parts)
        chunk = ChunkId(blake3_256(data))
        self._offer(chunk, size, data, lengths=lengths)
        return chunk

    def _add_page(self, page: BuiltPage) -> None:
        self._refs.append(page.ref)
        rows, self._rows = self._rows, []
        # Only rows in the open bundle are not known yet.
        if all(rows):
            self._seal(page, rows)
        else:
            self._waiting.append((page, rows))

    def _seal(self, page: BuiltPage, rows: Sequence[_Row]) -> None:
        layout = LayoutBuilder()
        for row in rows:
            layout.add_file(row)
        self._out.pages.append(SealedPage(page.ref.digest, page.data, layout.encode()))

    def _take(self) -> Assembled:
        out, spent = self._out, self._spent
        self._out, self._spent = Assembled([], [], 0), 0
        return out._replace(spent=spent)


class BlobAssembler:
    """Builds one blob: its chunks and, at the end, its layout.

    Args:
        seen: filled with the id of every chunk that was handed out.
    """

    def __init__(self, seen: set[bytes]) -> None:
        self.totals = Totals()
        self._seen = seen
        self._row: _Row = []
        self._places = _LargeFiles()

    def add_window(self, window: Window) -> Assembled:
        """Take the next run of the content."""
        new: list[NewChunk] = []
        spent = 0
        end = len(window.chunks) - 1
        for number, (chunk, length, data) in enumerate(window.chunks):
            self._row.append((chunk, length, 0, length))
            last = window.digest is not None and number == end
            place = self._places.place(chunk not in self._seen, last)
            if chunk in self._seen:
                spent += length
                continue
            assert data is not None, "a new chunk comes with its bytes"
            self._seen.add(chunk)
            self.totals.chunks += 1
            self.totals.chunk_bytes += length
            new.append(NewChunk(chunk, data, (), place))
        self.totals.bytes += window.bytes
        return Assembled(new, [], spent)

    def finish(self) -> bytes:
        """The layout's bytes."""
        self.totals.files = 1
        layout = LayoutBuilder()
        if self._row:
            layout.add_file(self._row)
        return layout.encode()
