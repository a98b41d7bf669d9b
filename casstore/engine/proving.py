"""Proof that files are what their digests say: every file of a page is put together from its chunks and hashed.

Owns the work behind *acknowledged means proven*.  A page's files are cut into units of a few MiB, so that several
threads share the work of one tree however few pages it has; hashing, decompression and reading release the
interpreter's lock. Knows nothing of pushes: fsck proves with the same code.

Memory: a thread holds one run of frames and one chunk's plain bytes; a file of any size goes through one hasher.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import groupby
from typing import Final, Generic, NamedTuple, TypeVar

from casstore.engine.packs import PackService
from casstore.errors import DigestMismatch, MalformedDocument
from casstore.formats.layout import Extent, Layout
from casstore.formats.pack import ObjectKind
from casstore.formats.tree import EntryType, TreeEntry
from casstore.hashing import Blake3Hasher, blake3_256, derive
from casstore.ids import BlobDigest, TreeDigest
from casstore.limits import MIB
from casstore.storage.roles import FileProof, Location

# LIMIT: plain bytes of bundles in one unit: large against the cost of handing it over, small against a page.
UNIT_BYTES: Final = 4 * MIB

_RECORD: Final = struct.Struct(">II32s")
RECORD_BYTES: Final = _RECORD.size
_EMPTY: Final = blake3_256(b"")
_T = TypeVar("_T")


def page_proof_key(digest: bytes, layout: bytes) -> bytes:
    """The memo key that says "the files of this page, or this blob, reassemble by exactly this layout"."""
    return blake3_256(digest + layout)


def tree_proof_key(tree: TreeDigest) -> bytes:
    """The memo key that says "this root and its pages together are a well-formed tree"."""
    return derive("casstore v1 proven tree", tree)


class Slice(NamedTuple):
    """A small file inside a bundle."""

    offset: int
    length: int
    digest: bytes
    path: bytes


class Bundles(NamedTuple):
    """A unit of work: some chunks, and the files that lie wholly inside one of them."""

    chunks: list[tuple[bytes, Location]]
    slices: list[list[Slice]]


class LargeFile(NamedTuple):
    """A unit of work: one file of several whole chunks."""

    path: bytes
    digest: bytes
    extents: list[Extent]
    layout: Layout
    locations: Sequence[Location]
    """Of each chunk of the layout's table."""


Unit = Bundles | LargeFile


def check_chunk_lengths(layout: Layout, locations: Sequence[Location]) -> None:
    """Hold the lengths that a layout claims against what is stored.

    Raises:
        MalformedDocument: a chunk is not as long as the layout says.
    """
    for (id, length), location in zip(layout.chunks, locations, strict=True):
        if length != location.plain_length:
            raise MalformedDocument(
                f"a layout says that chunk {id} has {length} bytes; it has {location.plain_length} bytes"
            )


def plan_units(entries: Iterable[TreeEntry], layout: Layout, locations: Sequence[Location]) -> Iterator[Unit]:
    """Cut the proof of a page's files into units of work.

    A file that is exactly one whole chunk needs none: its digest is the chunk's id, which was hashed when it came in.

    Args:
        entries: the page's entries (a blob counts as one file); they fit the layout.
        layout: where the files' bytes lie.
        locations: where each chunk of the layout's table lies.

    Raises:
        DigestMismatch: a file's digest is wrong in a way that shows without reading.
    """
    slices: dict[int, list[Slice]] = {}
    rows = iter(layout.files)
    planned: dict[bytes, list[Extent]] = {}
    for entry in entries:
        if entry.type != EntryType.FILE:
            continue
        digest = bytes(entry.digest or b"")
        if entry.size == 0:
            _check(entry.path, digest, _EMPTY)
            continue
        extents = next(rows)
        if len(extents) == 1:
            chunk, offset, length = extents[0]
            id, plain_length = layout.chunks[chunk]
            if length == plain_length:
                _check(entry.path, digest, id)
            else:
                slices.setdefault(chunk, []).append(Slice(offset, length, digest, entry.path))
            continue
        if planned.get(digest) != extents:  # the same file twice on a page is hashed once
            planned[digest] = extents
            yield LargeFile(entry.path, digest, extents, layout, locations)
    yield from _gather(slices, layout, locations)


def _gather(slices: dict[int, list[Slice]], layout: Layout, locations: Sequence[Location]) -> Iterator[Bundles]:
    unit, size = Bundles([], []), 0
    for chunk in sorted(slices, key=lambda chunk: locations[chunk][:2]):
        unit.chunks.append((layout.chunks[chunk][0], locations[chunk]))
        unit.slices.append(slices[chunk])
        size += locations[chunk].plain_length
        if size >= UNIT_BYTES:
            yield unit
            unit, size = Bundles([], []), 0
    if unit.chunks:
        yield unit


def split_unit(unit: Unit) -> list[Unit]:
    """A unit as its smallest parts: a large file, or the files of a page that lie in one chunk."""
    if isinstance(unit, LargeFile):
        return [unit]
    return [Bundles([chunk], [slices]) for chunk, slices in zip(unit.chunks, unit.slices, strict=True)]


def join_parts(parts: Iterable[Unit]) -> Iterator[Unit]:
    """Parts as units of about ``UNIT_BYTES`` again."""
    unit, size = Bundles([], []), 0
    for part in parts:
        if isinstance(part, LargeFile):
            yield part
            continue
        unit.chunks.extend(part.chunks)
        unit.slices.extend(part.slices)
        size += sum(location.plain_length for _, location in part.chunks)
        if size >= UNIT_BYTES:
            yield unit
            unit, size = Bundles([], []), 0
    if unit.chunks:
        yield unit


def slice_records(slices: Iterable[Slice]) -> bytes:
    """The files in a chunk as bytes, 40 for each: where they lie and what they hash to."""
    return b"".join([_RECORD.pack(offset, length, digest) for offset, length, digest, _ in slices])


def file_proof(part: Unit) -> FileProof:
    """What the index remembers once ``part`` (of :func:`split_unit`) is proven."""
    if isinstance(part, LargeFile):
        chunks = [part.layout.chunks[extent.chunk][0] for extent in part.extents]
        return FileProof(chunks[0], derive("casstore v1 proven file", part.digest + b"".join(chunks)))
    ((chunk, _),) = part.chunks
    return FileProof(chunk, derive("casstore v1 proven slices", chunk + slice_records(part.slices[0])))


def hashed_bytes(unit: Unit) -> int:
    """How many bytes of files a unit of work hashes."""
    if isinstance(unit, LargeFile):
        return sum(extent.length for extent in unit.extents)
    return sum(piece.length for slices in unit.slices for piece in slices)


def prove_unit(packs: PackService, unit: Unit) -> int:
    """Read one unit's chunks and hash its files.

    Returns:
        How many plain bytes were read.

    Raises:
        DigestMismatch: a file is not what its digest says; the error names its path.
        DamagedObject: a chunk cannot be read.
    """
    if isinstance(unit, LargeFile):
        return _prove_large(packs, unit)
    total = 0
    for plain, slices in zip(packs.read_located(ObjectKind.CHUNK, unit.chunks), unit.slices, strict=True):
        view = memoryview(plain)
        total += len(plain)
        for offset, length, digest, path in slices:
            found = blake3_256(view[offset : offset + length])
            if found != digest:
                _check(path, digest, found)
    return total


def _prove_large(packs: PackService, file: LargeFile) -> int:
    hasher = Blake3Hasher()
    total = 0
    chunks, locations = file.layout.chunks, file.locations
    # A run of one and the same chunk (the zeros of a sparse file) is read once.
    # KNOWN HOLE: a few kilobytes of layout can ask for ``PROOF_REPEATED_MAX_BYTES`` of hashing.  Only a holder of a push
    # token can do that, and it keeps other proofs waiting, nothing else; sparse files of honest people look the same.
    runs = [(chunk, sum(1 for _ in run)) for chunk, run in groupby(extent.chunk for extent in file.extents)]
    wanted = ((chunks[chunk][0], locations[chunk]) for chunk, _ in runs)
    for plain, (_, times) in zip(packs.read_located(ObjectKind.CHUNK, wanted), runs, strict=True):
        for _ in range(times):
            hasher.update(plain)
        total += len(plain)
    _check(file.path, file.digest, hasher.digest())
    return total


def _check(path: bytes, expected: bytes, found: bytes) -> None:
    if found != expected:
        raise DigestMismatch(
            f"the chunks of {path.decode('utf-8', 'backslashreplace')!r} do not make the file that its digest names",
            expected=str(BlobDigest(expected)),
            found=str(BlobDigest(found)),
        )


def run_units(
    units: Iterator[_T], work: Callable[[_T], object], *, pool: Executor | None = None, width: int = 1
) -> None:
    """Do ``work`` for all units, on this thread and up to ``width - 1`` threads of ``pool``.

    The calling thread works too and never waits for a thread that has not begun, so a pool that is full, or that this
    very call runs on, costs speed and cannot deadlock.  Units are drawn one at a time under a lock: the iterator
    itself need not be thread-safe, and is never ahead of the work.

    Raises:
        CasstoreError: the first error of any unit or of the iterator; what had begun is waited for.
    """
    crew = _Crew(units, work)
    hired: list[Future[None]] = [pool.submit(crew.work) for _ in range(width - 1)] if pool is not None else []
    try:
        crew.work()
    finally:
        crew.stopped = True
        running = [future for future in hired if not future.cancel()]
        errors = [error for future in running if (error := future.exception()) is not None]
    if errors:
        raise errors[0]


class _Crew(Generic[_T]):
    """Threads that draw units from one iterator."""

    def __init__(self, units: Iterator[_T], work: Callable[[_T], object]) -> None:
        self._units = units
        self._work = work
        self._lock = threading.Lock()
        self.stopped = False

    def work(self) -> None:
        """Draw and do units until none are left, or until any thread of the crew failed."""
        finished = False
        try:
            while (unit := self._draw()) is not None:
                self._work(unit)
                del unit  # it may hold a large layout, for which there is room only while someone works on it
            finished = True
        finally:
            # An error in one thread ends the others after the unit that each is at.
            self.stopped = self.stopped or not finished

    def _draw(self) -> _T | None:
        with self._lock:
            return None if self.stopped else next(self._units, None)
