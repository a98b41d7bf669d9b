"""The stat cache: what pushes of a directory need not read again.

Owns one file for each directory that was pushed, below ``$CASSTORE_CACHE_DIR``: the fingerprint of the whole walk with the
tree that it gave, so that an unchanged directory is pushed by looking at it; and for each file its stamp with its digest, for
each larger one its chunks, and for each bundle its chunk, so that of a changed directory only what changed is read.

When is a stamp believed?  A stamp that is equal to the one before says that nobody wrote to the file *unless* someone did so
within the same tick of the file system's clock as the change before.  So an entry is kept only if the file's ctime, which
nobody can set, was already ``RACY_NS`` in the past when the walk that took the stamp began: then whatever was written after the
walk began has a later ctime.  That is git's rule for its index, with room: kernels tick every 1 to 10 ms, FAT every 2 s.  An
entry that is too young is read once more by the next push, and kept then.  KNOWN HOLE: a file server whose clock is behind
this machine's by more than that, a clock that was set back to the nanosecond, and a program that still writes to a file through
memory that it mapped before; ``--no-cache`` is for those.

# TRUST: what stands here decides digests, so the file must be this user's and writable by nobody else, and each part carries a
hash.  Anything that is not exactly what this version wrote counts as absent.  A wrong digest that got in all the same meets the
server's proof: it takes no tree whose files do not hash to their digests.

# CRASH: a cache is written beside and renamed when the push has been committed; what a killed push leaves is removed by a later
one.  Nothing is synced: after a power cut the hashes tell.

LIMIT: ``CACHE_MAX_BYTES`` a directory, ``CACHES_MAX_BYTES`` together; what was not used longest goes first.

Source: docs/operations/stat-cache.md
"""

from __future__ import annotations

import logging
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, NamedTuple, Self

import msgspec

from casstore.chunking import Parameters
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId
from casstore.limits import GIB, MIB
from casstore_client.config import cache_dir
from casstore_client.listing import Stamp

RACY_NS: Final = 2_000_000_000
CACHE_MAX_BYTES: Final = 512 * MIB  # some four million files
CACHES_MAX_BYTES: Final = 2 * GIB
UNUSED_MAX_S: Final = 60 * 86_400
ABANDONED_S: Final = 86_400  # a push that takes longer than a day writes no cache
BLOCK_FILES: Final = 1024
BLOCK_MAX_BYTES: Final = 64 * MIB
BUNDLES_MAX: Final = 262_144  # LIMIT: 12 MiB in memory, and at 128 KiB each 32 GiB of small files
CHUNKS_OF_FILE_MAX: Final = 262_144  # LIMIT: of a file with more (about 64 GiB) none are kept, and it is read again

_MAGIC: Final = b"casstore stat cache 1\n"
_BLOCK: Final = struct.Struct("<I16s")  # length, hash
_FOOT: Final = struct.Struct("<QQ16s")  # where bundles and summary begin, hash of both numbers
_STAMP: Final = struct.Struct("<QQQqq")
_CHUNK: Final = struct.Struct(">32sI")
_KEY_BYTES: Final = 16
_BUNDLE_BYTES: Final = _KEY_BYTES + 32
_SUFFIX: Final = ".stat"

log: Final = logging.getLogger(__name__)


class Summary(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the last push of the directory gave.  ``marks`` is empty where a file was too young to be believed."""

    directory: bytes
    parameters: tuple[int, ...]
    marks: bytes
    root: bytes
    files: int
    directories: int
    links: int
    size_bytes: int
    chunks: int
    chunk_bytes: int


class _Block(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Consecutive files.  ``chunks``: of the larger ones, by place in ``paths``."""

    paths: list[bytes]
    stamps: bytes
    digests: bytes
    chunks: dict[int, bytes]


class KnownContent(NamedTuple):
    """What the cache says about a file: its digest, and of a larger file its chunks with their lengths."""

    digest: BlobDigest
    chunks: list[tuple[ChunkId, int]]


class CachePlace(NamedTuple):
    """Where the cache of one directory is.

    ``parameters`` belongs to the place: a store that cuts otherwise has a cache of its own.
    """

    folder: Path
    directory: bytes
    parameters: Parameters

    @property
    def path(self) -> Path:
        """The file."""
        named = b"\0".join((self.directory, repr(tuple(self.parameters)).encode()))
        return self.folder / (blake3_256(named)[:20].hex() + _SUFFIX)


def locate_cache(
    directory: bytes, parameters: Parameters, environ: Mapping[str, str] = os.environ
) -> CachePlace | None:
    """Where the cache of a directory is, or None where this user can have none.

    Args:
        directory: its path; links in it are resolved.
        parameters: how its content is cut.
        environ: the environment.
    """
    try:
        return CachePlace(cache_dir(environ) / "stat", os.path.realpath(directory), parameters)
    except (OSError, RuntimeError) as error:  # no home directory
        log.debug("no stat cache: %s", error)
        return None


def forget_cache(directory: bytes, parameters: Parameters) -> None:
    """Remove the cache of a directory, because it was wrong."""
    place = locate_cache(directory, parameters)
    with suppress(OSError):
        if place is not None:
            os.unlink(place.path)


class StatCache:
    """The cache as it was when it was opened.

    Threads: one at a time.
    """

    def __init__(self, file: IO[bytes], summary: Summary, bundles_at: int) -> None:
        self.summary = summary
        self._file = file
        self._bundles_at = bundles_at
        self._bundles: bytes | None = None
        self._blocks = self._read_blocks()
        self._places: dict[bytes, int] = {}
        self._last = b""
        self._block = _Block([], b"", b"", {})
        self._ended = False

    @classmethod
    def open(cls, place: CachePlace) -> Self | None:
        """Open the cache of a directory; None if there is none that can be believed."""
        path = place.path
        file: IO[bytes] | None = None
        try:
            file = open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")  # noqa: SIM115
            info = os.fstat(file.fileno())
            if info.st_uid != os.geteuid() or info.st_mode & 0o022:
                raise _Unbelievable("it belongs to someone else, or others may write to it")
            if file.read(len(_MAGIC)) != _MAGIC or info.st_size < len(_MAGIC) + _FOOT.size:
                raise _Unbelievable("another version wrote it")
            file.seek(-_FOOT.size, os.SEEK_END)
            foot = file.read(_FOOT.size)
            bundles_at, summary_at, check = _FOOT.unpack(foot)
            if blake3_256(foot[:16])[:16] != check:
                raise _Unbelievable("its end is damaged")
            file.seek(summary_at)
            summary = msgspec.msgpack.decode(_read_block(file), type=Summary)
            if summary.directory != place.directory or summary.parameters != tuple(place.parameters):
                raise _Unbelievable("it is another directory's")
            os.utime(file.fileno())  # what is used stays
            return cls(file, summary, bundles_at)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, struct.error, msgspec.MsgspecError) as error:
            log.debug("the stat cache %s is not used: %s", path, error)
        if file is not None:
            file.close()
        return None

    def find_file(self, path: bytes, stamp: Stamp) -> KnownContent | None:
        """What is known about a file that looks so.  Paths are asked for in tree order."""
        while path > self._last:
            if self._ended or not self._next_block():
                return None
        place = self._places.get(path)
        if place is None:
            return None
        block = self._block
        if _STAMP.unpack_from(block.stamps, place * _STAMP.size) != stamp:
            return None
        digest = BlobDigest(block.digests[32 * place : 32 * place + 32])
        chunks = block.chunks.get(place)
        if chunks is None:
            return KnownContent(digest, [])
        return KnownContent(digest, [(ChunkId(chunk), length) for chunk, length in _CHUNK.iter_unpack(chunks)])

    def find_bundle(self, key: bytes) -> ChunkId | None:
        """The chunk that a bundle of files with these digests is."""
        rows = self._bundles if self._bundles is not None else self._read_bundles()
        low, high = 0, len(rows) // _BUNDLE_BYTES
        while low < high:
            middle = (low + high) // 2
            at = middle * _BUNDLE_BYTES
            found = rows[at : at + _KEY_BYTES]
            if found == key:
                return ChunkId(rows[at + _KEY_BYTES : at + _BUNDLE_BYTES])
            if found < key:
                low = middle + 1
            else:
                high = middle
        return None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _next_block(self) -> bool:
        try:
            data = next(self._blocks, None)
            block = None if data is None else msgspec.msgpack.decode(data, type=_Block)
            if block is not None:
                count = len(block.paths)
                whole = len(block.stamps) == count * _STAMP.size and len(block.digests) == count * 32
                if not count or not whole or any(len(row) % _CHUNK.size for row in block.chunks.values()):
                    raise _Unbelievable("a block does not add up")
        except (OSError, ValueError, struct.error, msgspec.MsgspecError) as error:
            log.debug("the rest of the stat cache %s is not used: %s", self._file.name, error)
            block = None
        if block is None:
            self._ended = True
            self._places = {}
            return False
        self._block, self._last = block, block.paths[-1]
        self._places = {path: place for place, path in enumerate(block.paths)}
        return True

    def _read_blocks(self) -> Iterator[bytes]:
        at = len(_MAGIC)
        while at < self._bundles_at:
            self._file.seek(at)
            data = _read_block(self._file)
            at += _BLOCK.size + len(data)
            yield data

    def _read_bundles(self) -> bytes:
        rows = b""
        try:
            self._file.seek(self._bundles_at)
            rows = _read_block(self._file)
        except (OSError, ValueError, struct.error) as error:
            log.debug("the bundles of the stat cache are not used: %s", error)
        self._bundles = rows
        return rows


class CacheWriter:
    """Gathers what a push learns; becomes the directory's cache at :meth:`commit`, and nothing before.

    It never fails a push: where it cannot write it stops, and says so in the debug log.

    Threads: one at a time.

    Args:
        place: where to.
        began_ns: when the walk began, by the system's clock.
    """

    def __init__(self, place: CachePlace, began_ns: int) -> None:
        self.young = 0
        """How many files were too young to be believed."""
        self._place = place
        self._believed_ns = began_ns - RACY_NS
        self._file: IO[bytes] | None = None
        self._temporary = place.path.with_suffix(f".{os.getpid()}-{os.urandom(6).hex()}.tmp")
        self._paths: list[bytes] = []
        self._stamps: list[bytes] = []
        self._digests: list[bytes] = []
        self._chunks: dict[int, bytes] = {}
        self._chunk_bytes = 0
        self._bundles: dict[bytes, bytes] = {}
        self._size = 0
        try:
            place.folder.mkdir(0o700, parents=True, exist_ok=True)
            self._file = open(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")  # noqa: SIM115
            self._file.write(_MAGIC)
        except OSError as error:
            self._give_up(str(error))

    def add_file(self, path: bytes, stamp: Stamp, digest: bytes, chunks: list[tuple[ChunkId, int]]) -> None:
        """Take the next file with content, in tree order; ``chunks`` are those of a file that is not bundled."""
        if stamp[4] >= self._believed_ns:
            self.young += 1
            return
        if chunks:
            if len(chunks) > CHUNKS_OF_FILE_MAX:
                return
            packed = b"".join([_CHUNK.pack(chunk, length) for chunk, length in chunks])
            self._chunks[len(self._paths)] = packed
            self._chunk_bytes += len(packed)
        self._paths.append(path)
        self._stamps.append(_STAMP.pack(*stamp))
        self._digests.append(digest)
        if len(self._paths) >= BLOCK_FILES or self._chunk_bytes >= MIB:
            self._write_files()

    def add_bundle(self, key: bytes, chunk: bytes) -> None:
        """Take a bundle."""
        if len(self._bundles) < BUNDLES_MAX:
            self._bundles[key] = chunk

    def commit(self, summary: Summary) -> None:
        """The push was committed: put the new cache in the old one's place, and remove what nobody uses."""
        file = self._file
        if file is None:
            return
        try:
            self._write_files()
            bundles_at = file.tell()
            self._write(b"".join([key + chunk for key, chunk in sorted(self._bundles.items())]))
            summary_at = file.tell()
            self._write(msgspec.msgpack.encode(summary))
            numbers = struct.pack("<QQ", bundles_at, summary_at)
            file.write(numbers + blake3_256(numbers)[:16])
            size = file.tell()
            file.close()
            if size <= CACHE_MAX_BYTES:
                # ORDER: whole first, then its name; the hashes say so to whoever reads it after a crash.
                os.rename(self._temporary, self._place.path)
                self._file = None
                prune_caches(self._place.folder, keep=self._place.path.name)
            else:
                self._give_up(f"it would have {size} bytes")
        except OSError as error:
            self._give_up(str(error))

    def discard(self) -> None:
        """Remove what was written; harmless after :meth:`commit`."""
        if self._file is not None:
            self._give_up("the push was not committed")

    def _write_files(self) -> None:
        if self._paths and self._file is not None:
            block = _Block(self._paths, b"".join(self._stamps), b"".join(self._digests), self._chunks)
            self._write(msgspec.msgpack.encode(block))
        self._paths, self._stamps, self._digests, self._chunks, self._chunk_bytes = [], [], [], {}, 0

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        self._size += len(data)
        if len(data) > BLOCK_MAX_BYTES or self._size > CACHE_MAX_BYTES:
            self._give_up("it grew too large")
            return
        try:
            self._file.write(_BLOCK.pack(len(data), blake3_256(data)[:16]))
            self._file.write(data)
        except OSError as error:
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        log.debug("no stat cache is written for %r: %s", self._place.directory, why)
        file, self._file = self._file, None
        with suppress(OSError):
            if file is not None:
                file.close()
        with suppress(OSError):
            os.unlink(self._temporary)


def bundle_key(digests: Sequence[bytes]) -> bytes:
    """What names a bundle before its bytes are read: the digests of its files, in order."""
    return blake3_256(b"".join(digests))[:_KEY_BYTES]


class _Unbelievable(ValueError):
    """A cache that this version did not write so."""


def _read_block(file: IO[bytes]) -> bytes:
    length, check = _BLOCK.unpack(file.read(_BLOCK.size))
    if length > BLOCK_MAX_BYTES:
        raise _Unbelievable("a block is too long")
    data = file.read(length)
    if len(data) != length or blake3_256(data)[:16] != check:
        raise _Unbelievable("a block is damaged")
    return data


def prune_caches(folder: Path, *, keep: str, now_s: float | None = None) -> None:
    """Remove what killed pushes left, what was not used for ``UNUSED_MAX_S``, and above ``CACHES_MAX_BYTES`` the least used."""
    now_s = time.time() if now_s is None else now_s
    found: list[tuple[float, int, str]] = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                age_s = now_s - info.st_mtime
                if entry.name.endswith(_SUFFIX):
                    found.append((age_s, info.st_size, entry.name))
                elif entry.name.endswith(".tmp") and age_s > ABANDONED_S:
                    os.unlink(folder / entry.name)
    total = 0
    for age_s, size, name in sorted(found):
        total += size
        if name != keep and (age_s > UNUSED_MAX_S or total > CACHES_MAX_BYTES):
            with suppress(OSError):
                os.unlink(folder / name)
