"""Writes what was fetched: files, directories, links, modes and times, exactly as the tree says.

Owns every write to the destination.  A file is created new (``O_EXCL``, ``O_NOFOLLOW``) beneath a directory that was opened
without following a link, and its bytes are held against its digest: before they are written where it is one piece, else as
they are written.  Zeros become holes.

Directories are made open to their owner alone, filled, and get their modes at the end, deepest first; so read-only ones work,
for root and for anyone else.

A file's mtime is 2000-01-01 plus the first 29 bits of its digest in seconds.  One time for all would give changed files of
equal size the same entity tag in a web server; the time of the pull would make two pulls of one tree differ.

Threads: each method may run on several at once, on different paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from casstore.errors import DamagedObject, InvalidInput
from casstore.formats.tree import EMPTY_DIGEST, TreeEntry
from casstore.hashing import Blake3Hasher, blake3_256
from casstore.ids import BlobDigest
from casstore_client.beneath import Beneath
from casstore_client.errors import local_fault, show_path
from casstore_client.fetch import Chunk

MTIME_ORIGIN_S: Final = 946_684_800  # 2000-01-01T00:00:00Z
_SPECIAL_BITS: Final = 0o6000  # set-user-id and set-group-id: the system may drop them without a word
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Part(NamedTuple):
    """``length`` bytes at ``offset`` of a chunk's plain bytes."""

    chunk: Chunk
    offset: int
    length: int


class FileJob(NamedTuple):
    """A file to write, all of whose chunks are wanted.  ``mode`` None leaves the mode to the umask."""

    path: bytes
    mode: int | None
    size: int
    digest: BlobDigest
    parts: list[Part]


_Create: TypeAlias = Callable[[FileJob], int]


def mtime_ns(digest: bytes) -> int:
    """The modification time of a file with this digest, in nanoseconds since the epoch."""
    return (MTIME_ORIGIN_S + (int.from_bytes(digest[:4], "big") >> 3)) * 1_000_000_000


class TreeWriter:
    """Writes beneath one directory.

    Args:
        root_fd: the directory; stays the caller's.
    """

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd

    def make_directories(self, directories: Sequence[TreeEntry]) -> None:
        """Make directories, in tree order, open to their owner alone.

        Raises:
            InvalidInput, CapacityError: the file system refuses.
        """
        with Beneath(self._root_fd) as below:
            for entry in directories:
                path = entry.path
                if not path:
                    continue
                try:
                    fd, name = below.locate(path)
                    os.mkdir(name, 0o700, dir_fd=fd)
                except OSError as error:
                    raise local_fault("make the directory", path, error) from error

    def make_links(self, links: Sequence[TreeEntry]) -> None:
        """Make symbolic links.

        Raises:
            InvalidInput, CapacityError: the file system refuses.
        """
        with Beneath(self._root_fd) as below:
            for entry in links:
                try:
                    fd, name = below.locate(entry.path)
                    os.symlink(entry.target, name, dir_fd=fd)
                except OSError as error:
                    raise local_fault("make the link", entry.path, error) from error

    def write_files(self, jobs: Sequence[FileJob]) -> None:
        """Write whole files.

        Raises:
            DamagedObject: the bytes are not those of the file's digest.
            InvalidInput, CapacityError: the file system refuses.
        """
        with Beneath(self._root_fd) as below:
            for job in jobs:
                try:
                    self._write_file(below, job)
                except OSError as error:
                    raise local_fault("write", job.path, error) from error

    def open_large(self, job: FileJob) -> LargeFile:
        """A file that is written run by run."""
        return LargeFile(job, self._create_large)

    def set_directory_modes(self, directories: Sequence[TreeEntry]) -> None:
        """Give all directories their modes, deepest first.

        Args:
            directories: in tree order, so each comes after those above it.

        Raises:
            InvalidInput: the file system refuses.
        """
        with Beneath(self._root_fd) as below:
            for entry in reversed(directories):
                try:
                    _set_mode(below.directory(entry.path), entry.path, entry.mode)
                except OSError as error:
                    raise local_fault("set the mode of", entry.path or b".", error) from error

    def _write_file(self, below: Beneath, job: FileJob) -> None:
        path, mode, size, digest, parts = job
        single: bytes | memoryview = b""
        if len(parts) == 1:
            chunk, offset, length = parts[0]
            if length == len(chunk.plain):
                single = chunk.plain
                found: bytes = chunk.id
            else:
                single = memoryview(chunk.plain)[offset : offset + length]
                found = blake3_256(single)
            if found != digest or len(single) != size:
                raise wrong_content(path, digest, found)
        elif not parts and digest != EMPTY_DIGEST:
            raise wrong_content(path, digest, EMPTY_DIGEST)
        fd = below.open(path, _CREATE, 0o666 if mode is None else 0o600)
        try:
            if len(parts) > 1:
                hasher = Blake3Hasher()
                written = 0
                for chunk, offset, length in parts:
                    written += write_hashed(fd, hasher, memoryview(chunk.plain)[offset : offset + length])
                if hasher.digest() != digest or written != size:
                    raise wrong_content(path, digest, hasher.digest())
                os.ftruncate(fd, size)  # holes at the end have not made the file longer
            elif size:
                write_all(fd, single)
            finish_file(fd, job)
        finally:
            os.close(fd)

    def _create_large(self, job: FileJob) -> int:
        with Beneath(self._root_fd) as below:
            return below.open(job.path, _CREATE, 0o666 if job.mode is None else 0o600)


class LargeFile:
    """One file that is written run by run, in order, by one thread at a time.

    Args:
        job: the file; its ``parts`` are not looked at.
        create: makes it and returns a descriptor; called with the first run.
    """

    def __init__(self, job: FileJob, create: _Create) -> None:
        self.job = job
        self._create = create
        self._fd = -1
        self._hasher = Blake3Hasher()
        self._written = 0

    def write(self, parts: Sequence[Part], final: bool) -> None:
        """Write the next run; with the last one the file gets its mode and time, and is closed.

        Raises:
            DamagedObject: the whole is not what the digest says.
            InvalidInput, CapacityError: the file system refuses.
        """
        job = self.job
        try:
            if self._fd < 0:
                self._fd = self._create(job)
            for chunk, offset, length in parts:
                self._written += write_hashed(self._fd, self._hasher, memoryview(chunk.plain)[offset : offset + length])
            if final:
                found = self._hasher.digest()
                if found != job.digest or self._written != job.size:
                    raise wrong_content(job.path, job.digest, found)
                os.ftruncate(self._fd, job.size)
                finish_file(self._fd, job)
                self.close()
        except OSError as error:
            raise local_fault("write", job.path, error) from error

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def wrong_content(path: bytes, expected: BlobDigest, found: bytes) -> DamagedObject:
    """The error for a file whose chunks are right and whose whole is not."""
    found_digest = BlobDigest(found)
    return DamagedObject(
        f"{show_path(path) or 'the blob'} does not reassemble to {expected}: it is {found_digest}",
        hint="run `casstore fsck --full` on the server",
        object=str(expected),
        where=show_path(path),
        expected=str(expected),
        found=str(found_digest),
    )


def write_hashed(fd: int, hasher: Blake3Hasher, view: memoryview) -> int:
    """Write the next bytes of a new file, as a hole where they are zeros, and hash them; returns how many."""
    hasher.update(view)
    size = len(view)
    # The file is new, so what is skipped reads as zeros; a 5 GB image of mostly nothing stays as small as it was.
    if size and not view[0] and not view[-1] and view == bytes(size):
        os.lseek(fd, size, os.SEEK_CUR)
    else:
        write_all(fd, view)
    return size


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of it, however often the system stops short."""
    written = os.write(fd, data)
    while written < len(data):
        data = memoryview(data)[written:]
        written = os.write(fd, data)


def finish_file(fd: int, job: FileJob) -> None:
    """Give a file its mode and its time."""
    # ORDER: the mode after the last write: writing clears set-user-id.
    if job.mode is not None:
        _set_mode(fd, job.path, job.mode)
    time_ns = mtime_ns(job.digest)
    os.utime(fd, ns=(time_ns, time_ns))


def _set_mode(fd: int, path: bytes, mode: int) -> None:
    os.fchmod(fd, mode)
    if mode & _SPECIAL_BITS and os.fstat(fd).st_mode & 0o7777 != mode:
        raise InvalidInput(f"the system does not let this user give {show_path(path) or '.'} the mode {mode:#o}")
