"""Takes files from directories that are here already, so that they need not be fetched.

Owns every read of a seed.  A seed is any directory: an earlier pull, the tree that is about to be replaced, what an interrupted
pull has left.  A file is looked for at its own path, and nothing that a seed says is believed: its bytes are held against
the digest that the tree wants.

There are three ways to take a file, and each is safe against someone who writes to the seed meanwhile:

* *copy*: what is written is what was hashed, out of memory; a large file is hashed as it is written and thrown away if it is another;
* *clone* (``FICLONE``): the new file shares the blocks, and it is the new file that is hashed;
* *link*, only if asked for: the new name is a second one of the same file.  It is taken back if it is not the file that was hashed.
  What is written to one name later shows under the other: so it is for trees that nobody writes to.

# TRUST: seeds may be hostile.  Nothing is followed through a link, a named pipe does not block, a file that grows is not read beyond
the size that is wanted, and what cannot be opened or read is simply not there.

Threads: :meth:`SeedReader.take` may run on several at once, on different files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from casstore.hashing import Blake3Hasher, blake3_256
from casstore.limits import KIB, MIB
from casstore_client.beneath import Beneath
from casstore_client.errors import local_fault
from casstore_client.fetch import Chunk
from casstore_client.restore import FileJob, finish_file, mtime_ns, write_all, write_hashed

# LIMIT: what one thread holds of one file; larger ones go through in pieces of this size.
PIECE_BYTES: Final = MIB
CLONE_BYTES: Final = 64 * KIB  # below it, sharing blocks costs more than copying them
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE: Final = 0x40049409
_NO_CLONES: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS, errno.EINVAL})


class Seed:
    """One directory to take files from.

    Args:
        fd: the open directory; :meth:`close` closes it.
        link: whether its files may be linked.
    """

    def __init__(self, fd: int, *, link: bool) -> None:
        self.fd = fd
        self.links = link
        """Whether linking is allowed, and has not been found impossible."""
        self.clones = True
        """Whether cloning has not been found impossible."""

    def close(self) -> None:
        """Let go of the directory; harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_seed(path: bytes, *, link: bool) -> Seed:
    """Open a seed that the user has named.  A link that is itself named is followed; those inside are not.

    Raises:
        InvalidInput: it is no directory, or cannot be opened.
    """
    try:
        return Seed(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), link=link)
    except OSError as error:
        raise local_fault("open the seed", path or b"''", error) from error


class SeedReader:
    """Takes files from seeds into one directory.

    Args:
        seeds: tried in this order for each file.
        root_fd: where the files go; stays the caller's.
    """

    def __init__(self, seeds: Sequence[Seed], root_fd: int) -> None:
        self._seeds = seeds
        self._root_fd = root_fd

    def take(self, jobs: Sequence[FileJob]) -> list[bool]:
        """Make those files that a seed has; their directories must be there.

        Returns:
            for each job whether its file is there now, complete.

        Raises:
            InvalidInput, CapacityError: the file system of the destination refuses.
        """
        done: list[bool] = []
        above: bytes | None = None
        target_fd = -1
        source_fds: list[tuple[Seed, int]] = []
        with ExitStack() as stack:
            target = stack.enter_context(Beneath(self._root_fd))
            sources = [(seed, stack.enter_context(Beneath(seed.fd))) for seed in self._seeds]
            for job in jobs:
                parent, _, name = job.path.rpartition(b"/")
                try:
                    if parent != above:
                        target_fd = target.directory(parent)
                        source_fds = _open_sources(sources, parent)
                        above = parent
                    done.append(any(_take(seed, _Place(fd, target_fd, name), job) for seed, fd in source_fds))
                except OSError as error:
                    raise local_fault("write", job.path, error) from error
        return done

    def find_chunks(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Look for chunks of larger files at the place where their hints say that a seed may have them: what was written of a file
        when a pull was interrupted, the part before the first change of one that changed.

        Returns:
            those that are not there; the others have their bytes, verified.
        """
        with ExitStack() as stack:
            sources = [stack.enter_context(Beneath(seed.fd)) for seed in self._seeds]
            return [chunk for chunk in chunks if not any(_find_chunk(below, chunk) for below in sources)]


def _find_chunk(below: Beneath, chunk: Chunk) -> bool:
    assert chunk.hint is not None, "only chunks with hints are looked for"
    path, offset = chunk.hint
    try:
        fd = below.open(path, _READ)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        data = _read_at(fd, chunk.length, offset)
    finally:
        os.close(fd)
    if len(data) != chunk.length or blake3_256(data) != chunk.id:
        return False
    chunk.plain = data
    return True


class _Place(NamedTuple):
    """Where a file lies in a seed and where it goes: a name in two directories."""

    source_fd: int
    target_fd: int
    name: bytes


def _open_sources(sources: Sequence[tuple[Seed, Beneath]], path: bytes) -> list[tuple[Seed, int]]:
    """The directory ``path`` of those seeds that have it."""
    found: list[tuple[Seed, int]] = []
    for seed, below in sources:
        with suppress(OSError):
            found.append((seed, below.directory(path)))
    return found


def _take(seed: Seed, place: _Place, job: FileJob) -> bool:
    """Take one file.  What the seed's file system refuses is a no; what that of the destination refuses raises."""
    try:
        fd = os.open(place.name, _READ, dir_fd=place.source_fd)
    except OSError:
        return False
    try:
        info = os.fstat(fd)
        if info.st_size != job.size or not stat.S_ISREG(info.st_mode):
            return False
        may_link = seed.links and _may_link(info, job)
        if not may_link and seed.clones and job.size >= CLONE_BYTES:
            cloned = _clone(seed, fd, place, job)
            if cloned is not None:
                return cloned
        if job.size > PIECE_BYTES:
            return (may_link and _hashes_to(fd, job) and _link(seed, place, info)) or _copy(fd, place, job)
        data = _read_at(fd, job.size + 1, 0)
        if len(data) != job.size or blake3_256(data) != job.digest:
            return False
        if not (may_link and _link(seed, place, info)):
            _write(place, job, data)
        return True
    finally:
        os.close(fd)


def _may_link(info: os.stat_result, job: FileJob) -> bool:
    """Whether a file of a seed is in all that a link shares what a pull would make: owner, mode and time."""
    return (
        info.st_mtime_ns == mtime_ns(job.digest)
        and stat.S_IMODE(info.st_mode) == job.mode
        and info.st_uid == os.geteuid()
    )


def _link(seed: Seed, place: _Place, info: os.stat_result) -> bool:
    source_fd, target_fd, name = place
    try:
        os.link(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if error.errno == errno.EXDEV:
            seed.links = False
        return False  # it has too many names already, is gone, or the system has a rule against it
    # TRUST: the name in the seed may lead elsewhere since the file was opened, and the file may have been written to since it was hashed.
    found = os.stat(name, dir_fd=target_fd, follow_symlinks=False)
    if _identity(found) == _identity(info):
        return True
    os.unlink(name, dir_fd=target_fd)
    return False


def _identity(info: os.stat_result) -> tuple[int, int, int, int, int, int]:
    return (info.st_dev, info.st_ino, info.st_mode, info.st_uid, info.st_size, info.st_mtime_ns)


def _clone(seed: Seed, fd: int, place: _Place, job: FileJob) -> bool | None:
    """Share the blocks of a file; None if that cannot be done here."""
    out = _create(place, os.O_RDWR)
    taken: bool | None = False
    try:
        try:
            fcntl.ioctl(out, _FICLONE, fd)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            seed.clones = error.errno not in _NO_CLONES
            taken = None
        else:
            taken = os.fstat(out).st_size == job.size and _hashes_to(out, job)
            if taken:
                finish_file(out, job)
    finally:
        _close_or_drop(out, place, keep=taken is True)
    return taken


def _copy(fd: int, place: _Place, job: FileJob) -> bool:
    """Copy a large file, hashing what is written."""
    out = _create(place, os.O_WRONLY)
    taken = False
    try:
        hasher = Blake3Hasher()
        at = 0
        while at < job.size:
            piece = _read_at(fd, min(PIECE_BYTES, job.size - at), at)
            if not piece:
                break
            at += write_hashed(out, hasher, memoryview(piece))
        if at == job.size and hasher.digest() == job.digest:
            os.ftruncate(out, job.size)  # a hole at the end has not made the file longer
            finish_file(out, job)
            taken = True
    finally:
        _close_or_drop(out, place, keep=taken)
    return taken


def _write(place: _Place, job: FileJob, data: bytes) -> None:
    out = _create(place, os.O_WRONLY)
    try:
        write_all(out, data)
        finish_file(out, job)
    finally:
        os.close(out)


def _create(place: _Place, access: int) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(place.name, access | flags, 0o600, dir_fd=place.target_fd)


def _close_or_drop(out: int, place: _Place, *, keep: bool) -> None:
    os.close(out)
    if not keep:
        os.unlink(place.name, dir_fd=place.target_fd)


def _hashes_to(fd: int, job: FileJob) -> bool:
    hasher = Blake3Hasher()
    at = 0
    while at < job.size:
        piece = _read_at(fd, min(PIECE_BYTES, job.size - at), at)
        if not piece:
            return False
        hasher.update(piece)
        at += len(piece)
    return hasher.digest() == job.digest


def _read_at(fd: int, size: int, offset: int) -> bytes:
    """As ``pread``; nothing where the file cannot be read."""
    try:
        return os.pread(fd, size, offset)
    except OSError:
        return b""
