"""Reads what is pushed: files in batches, large files and streams in windows; cuts and hashes on the way.

Owns the promise that what is pushed is what the file held at one time: the stamp (device, inode, size, mtime, ctime) that
the walk took is compared once a file is read (of a large one also before).  KNOWN HOLE: a writer who changes a file twice within one
tick of the kernel's clock, without changing its size, is not seen; no program that reads files can see it.

Threads: everything here runs on worker threads; a :class:`StreamReader` on one at a time.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Set
from contextlib import suppress
from typing import Final, NamedTuple, TypeAlias

from casstore.chunking import FileChunker, Parameters, StreamCutter
from casstore.errors import InvalidInput
from casstore.formats.tree import EMPTY_DIGEST, EntryType
from casstore.hashing import Blake3Hasher, blake3_256
from casstore.ids import BlobDigest, ChunkId
from casstore.limits import KIB, MIB
from casstore_client.beneath import Beneath
from casstore_client.errors import local_fault
from casstore_client.scan import Scanned, changed, source_fault, stamp_of

BATCH_FILES: Final = 128  # LIMIT: so many descriptors are open at once
BATCH_ITEMS: Final = 1024
BATCH_BYTES: Final = 4 * MIB
LARGE_FILE_BYTES: Final = 4 * MIB  # larger files are read window by window
WINDOW_BYTES: Final = 4 * MIB
LIGHT_FILE_BYTES: Final = 64 * KIB

_FILE: Final = EntryType.FILE
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK  # a pipe put in a file's place must not block us


class CutChunk(NamedTuple):
    """A chunk of a large file.  ``data`` is None where the chunk had been seen before."""

    id: ChunkId
    length: int
    data: bytes | None


class ReadFile(NamedTuple):
    """A file that was read.  A small one has ``data`` and no ``chunks``; an empty one has neither."""

    scanned: Scanned
    digest: BlobDigest
    data: bytes
    chunks: list[CutChunk]


class Known(NamedTuple):
    """A file that need not be read: its digest is known, and of one that is not small the chunks with their lengths."""

    scanned: Scanned
    digest: BlobDigest
    chunks: list[tuple[ChunkId, int]]


Found: TypeAlias = Scanned | Known
"""What a walk gives, once it was held against what is known."""

Item: TypeAlias = ReadFile | Known | Scanned
"""What a batch gives for each path: a file with its content or without, or a directory or link as it was scanned."""


class Batch(NamedTuple):
    """Consecutive paths that are read together.  One file above ``LARGE_FILE_BYTES`` is a batch by itself.

    ``bytes`` and ``files`` are of the files that are read, ``known_bytes`` and ``known_files`` of those that are not.
    """

    items: list[Found]
    bytes: int
    files: int
    known_bytes: int = 0
    known_files: int = 0

    @property
    def is_large(self) -> bool:
        """Whether this is one large file, to be read by a :class:`StreamReader`."""
        return self.bytes > LARGE_FILE_BYTES and len(self.items) == 1

    @property
    def is_light(self) -> bool:
        """Whether opening and closing these files is most of the work."""
        return self.bytes < self.files * LIGHT_FILE_BYTES


def gather_batches(walk: Iterable[Found]) -> Generator[Batch, None, None]:
    """Cut a walk into batches of at most ``BATCH_FILES`` paths to read, ``BATCH_ITEMS`` in all, and about ``BATCH_BYTES``.

    Small files that are known count towards the bytes too: they may have to be read to find their bundle's chunk.
    """
    items: list[Found] = []
    size = files = small_bytes = known_bytes = known_files = 0
    for found in walk:
        count = found.size if type(found) is Scanned else 0
        if items and (
            len(items) - known_files >= BATCH_FILES
            or len(items) >= BATCH_ITEMS
            or size + count > BATCH_BYTES
            or small_bytes > BATCH_BYTES
        ):
            yield Batch(items, size, files, known_bytes, known_files)
            items, size, files, small_bytes, known_bytes, known_files = [], 0, 0, 0, 0, 0
        items.append(found)
        if type(found) is Known:
            known_files += 1
            known_bytes += found[0].size
            small_bytes += 0 if found[2] else found[0].size
        else:
            size += count
            files += found[1] is _FILE
    if items:
        yield Batch(items, size, files, known_bytes, known_files)


_Opened: TypeAlias = tuple[int, bytes | None]
"""A descriptor, and the file's bytes where they were read already."""


class FileReader:
    """Reads batches of files beneath a directory.

    Threads: any; each thread cuts with its own chunker.

    Args:
        root_fd: the directory; stays the caller's.
        parameters: how to cut.
        seen: chunks whose bytes are not wanted any more; only ever grows.
    """

    def __init__(self, root_fd: int, parameters: Parameters, seen: Set[bytes]) -> None:
        self.root_fd = root_fd
        self.parameters = parameters
        self.seen = seen
        self._local = threading.local()
        self._reads_ready = hasattr(os, "RWF_NOWAIT")

    def read_batch(self, batch: Batch) -> list[Item]:
        """Read, cut and hash the files of a batch.

        Raises:
            SourceChanged: a file changed or vanished.
            InvalidInput: a file cannot be read.
        """
        opened: deque[_Opened] = deque()
        try:
            # All files are opened before one is waited for.  What the kernel holds is read at once; of the rest it is told
            # what will be read: from a cold cache, a hundred small reads at once take little longer than one.
            with Beneath(self.root_fd) as below:
                for item in batch.items:
                    if type(item) is Scanned and item.size:
                        opened.append(self._begin(below, item))
            return [
                self._read(item, opened) if type(item) is Scanned and item.type is _FILE else item
                for item in batch.items
            ]
        finally:
            for fd, _ in opened:
                os.close(fd)

    def _begin(self, below: Beneath, scanned: Scanned) -> _Opened:
        """Open a file, and read it if that needs no waiting."""
        fd = _open(below, scanned.path)
        if self._reads_ready:
            buffer = bytearray(scanned.size)
            try:
                if os.preadv(fd, [buffer], 0, os.RWF_NOWAIT) == scanned.size:
                    return fd, bytes(buffer)
            except BlockingIOError:
                pass
            except OSError:
                self._reads_ready = False  # this file system does not know the question
        _read_ahead(fd, 0, scanned.size)
        return fd, None

    def open_large(self, batch: Batch) -> StreamReader:
        """A reader for the large file of a batch; the file is opened when its first window is read."""
        scanned = batch.items[0]
        assert isinstance(scanned, Scanned), "a file that is known is never read window by window"

        def open_file() -> int:
            with Beneath(self.root_fd) as below:
                return open_scanned(below, scanned)

        return StreamReader(open_file, self.parameters, self.seen, scanned)

    def _read(self, scanned: Scanned, opened: deque[_Opened]) -> ReadFile:
        size = scanned.size
        if size == 0:
            return ReadFile(scanned, EMPTY_DIGEST, b"", [])
        fd, data = opened.popleft()
        try:
            if data is None:
                data = os.read(fd, size)
                if len(data) < size:  # a short read is rare, and allowed
                    data = read_rest(fd, data, size)
            # Once, after reading: the stamp holds for the descriptor from when the walk took it until now.
            verify_unchanged(fd, scanned)
        except OSError as error:
            raise source_fault(scanned.path, error) from error
        finally:
            os.close(fd)
        if len(data) != size:
            raise changed(scanned.path, "changed its size")
        if size < self.parameters.small_file_bytes:
            return ReadFile(scanned, BlobDigest(blake3_256(data)), data, [])
        chunks = self._cut(memoryview(data))
        digest = chunks[0].id if len(chunks) == 1 else blake3_256(data)
        return ReadFile(scanned, BlobDigest(digest), b"", chunks)

    def _cut(self, view: memoryview) -> list[CutChunk]:
        chunker: FileChunker | None = getattr(self._local, "chunker", None)
        if chunker is None:
            chunker = self._local.chunker = FileChunker(self.parameters)
        chunks: list[CutChunk] = []
        position = 0
        for length in chunker.cut(view):
            chunks.append(_chunk(view[position : position + length], self.seen))
            position += length
        return chunks


class Window(NamedTuple):
    """A run of a large file or stream.  ``digest`` (of the whole) is set on the last one."""

    chunks: list[CutChunk]
    bytes: int
    """Bytes that were read for it."""
    digest: BlobDigest | None


class StreamReader:
    """Reads one large file, or a stream of unknown length, window by window.

    Memory: one window and one chunk.

    Args:
        open_file: opens the source; called on the thread that reads the first window.
        parameters: how to cut.
        seen: chunks whose bytes are not wanted any more.
        scanned: the file as the walk saw it; None for a stream.
    """

    def __init__(
        self, open_file: Callable[[], int], parameters: Parameters, seen: Set[bytes], scanned: Scanned | None = None
    ) -> None:
        self.scanned = scanned
        self.size = 0
        """Bytes read so far."""
        self._open_file = open_file
        self._parameters = parameters
        self._seen = seen
        self._fd = -1
        self._cutter = StreamCutter(FileChunker(parameters))
        self._hasher = Blake3Hasher()

    def read_window(self) -> Window:
        """Read the next ``WINDOW_BYTES``.

        Raises:
            SourceChanged: the file is not what the walk saw.
            InvalidInput: it cannot be read.
        """
        path = self.scanned.path if self.scanned else b"standard input"
        try:
            if self._fd < 0:
                self._fd = self._open_file()
            data = read_rest(self._fd, b"", WINDOW_BYTES)
            self.size += len(data)
            if self.scanned is None:
                final = len(data) < WINDOW_BYTES
            else:
                _read_ahead(self._fd, self.size, WINDOW_BYTES)
                final = self.size >= self.scanned.size
                if len(data) < WINDOW_BYTES and not final:
                    raise changed(path, "was cut short")
                if final:
                    verify_unchanged(self._fd, self.scanned)
        except OSError as error:
            raise (source_fault(path, error) if self.scanned else local_fault("read", path, error)) from error
        self._hasher.update(data)
        chunks = self._cut(data, final)
        return Window(chunks, len(data), BlobDigest(self._hasher.digest()) if final else None)

    def _cut(self, data: bytes, final: bool) -> list[CutChunk]:
        # A source below the bound of small files is one chunk, however it is cut by others.
        if final and 0 < self.size < self._parameters.small_file_bytes:
            return [_chunk(memoryview(data), self._seen)]
        return [_chunk(view, self._seen) for view in self._cutter.feed(data, final)]

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_scanned(below: Beneath, scanned: Scanned) -> int:
    """Open a file that the walk saw.

    Raises:
        SourceChanged: it is another one now.
        InvalidInput: it cannot be opened.
    """
    fd = _open(below, scanned.path)
    try:
        verify_unchanged(fd, scanned)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(below: Beneath, path: bytes) -> int:
    try:
        return below.open(path, _READ_FLAGS)
    except OSError as error:
        raise source_fault(path, error) from error


def verify_unchanged(fd: int, scanned: Scanned) -> None:
    """Hold an open file against what the walk saw.

    Raises:
        SourceChanged: it is another file, or was written to.
    """
    info = os.fstat(fd)
    if stamp_of(info) != scanned.stamp or not stat.S_ISREG(info.st_mode):
        raise changed(scanned.path, "changed")


def scan_file(fd: int, path: bytes) -> Scanned:
    """A file that was opened by name rather than found by a walk.

    Raises:
        InvalidInput: it is no regular file.
    """
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise InvalidInput(
            f"{os.fsdecode(path)!r} is neither a directory nor a regular file",
            hint="to push a stream, pipe it in and push '-'",
        )
    return Scanned(path, EntryType.FILE, stat.S_IMODE(info.st_mode), info.st_size, b"", stamp_of(info))


def _read_ahead(fd: int, offset: int, count: int) -> None:
    """Tell the kernel what will be read soon; where it cannot be told, nothing is lost."""
    with suppress(OSError):
        os.posix_fadvise(fd, offset, count, os.POSIX_FADV_WILLNEED)


def _chunk(view: memoryview, seen: Set[bytes]) -> CutChunk:
    chunk = ChunkId(blake3_256(view))
    # A copy, so that a chunk that waits for the network does not keep the whole window alive.
    return CutChunk(chunk, len(view), None if chunk in seen else bytes(view))


def read_rest(fd: int, data: bytes, size: int) -> bytes:
    """Read on until there are ``size`` bytes, or no more.

    Raises:
        OSError: as the system says.
    """
    pieces = [data]
    missing = size - len(data)
    while missing:
        piece = os.read(fd, missing)
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
