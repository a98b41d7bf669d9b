"""Every system call that matters, behind one object, so that a test can fail the N-th.

Owns: how bytes, names and commits reach the disk.  Knows nothing of packs, logs or formats.

Invariant: nothing else under :mod:`casstore.storage.local` calls :mod:`os` to change the disk, and no LMDB transaction
is committed but through :meth:`Files.commit`.  The fault tests count on it: they hand in a subclass that fails one
call or cuts the power, and look at what is left.

Three rules of POSIX durability that the callers keep:

- bytes are durable after :meth:`Files.fsync` of the file, a name after :meth:`Files.fsync_dir` of its directory;
- a name that must never be seen with half its bytes is given after the bytes are durable;
- after a failed fsync the kernel may have dropped the bytes and forgotten it: asking again proves nothing, so the
  outcome is unknown and whoever asked is sealed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Final, NamedTuple, Protocol

from casstore.errors import CasstoreError, Overloaded, ReadOnly, StoreFull, Unavailable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_OVERLOADED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_CANNOT_ALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_FALLOC_FL_KEEP_SIZE: Final = 1  # linux/falloc.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Space(NamedTuple):
    """What a file system has, for this user."""

    total_bytes: int
    free_bytes: int
    free_files: int | None
    """How many more files it takes; None where it does not count them."""


class Committable(Protocol):
    """An LMDB write transaction, as far as a commit is concerned."""

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class Files:
    """The system calls themselves; a thin layer without state.

    Raises:
        OSError: from every method, as the system reports it.  Callers translate once, with :func:`refusal` or into
            :class:`~casstore.errors.OutcomeUnknown`.

    Threads: any.
    """

    # --- names -------------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o750) -> None:
        """Make one directory; its name is durable after :meth:`fsync_dir` of the parent."""
        os.mkdir(path, mode)

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, ascending."""
        return sorted(os.listdir(path))

    def link_new(self, source: str, destination: str) -> None:
        """Give a file a second name, atomically, and never over an existing one.

        Raises:
            FileExistsError: ``destination`` exists.
        """
        os.link(source, destination, follow_symlinks=False)

    def rename(self, source: str, destination: str) -> None:
        """Rename atomically, replacing what was there."""
        os.replace(source, destination)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def fsync_dir(self, path: str, opened: int | None = None) -> None:
        """Make the names in a directory durable.

        Args:
            path: the directory.
            opened: its descriptor from :meth:`open_dir`, where no error but that of the disk may come now.
        """
        descriptor = os.open(path, _DIRECTORY) if opened is None else opened
        try:
            os.fsync(descriptor)
        finally:
            if opened is None:
                os.close(descriptor)

    def open_dir(self, path: str) -> int:
        """Open a directory for :meth:`fsync_dir`."""
        return os.open(path, _DIRECTORY)

    def stat(self, path: str) -> os.stat_result:
        """What the file system knows about a name; links are not followed."""
        return os.stat(path, follow_symlinks=False)

    def free_bytes(self, path: str) -> int:
        """How much room the file system of ``path`` has left for this user."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def space(self, path: str) -> Space:
        """How much room the file system of ``path`` has, in bytes and in files."""
        found = os.statvfs(path)
        free_files = found.f_favail if found.f_files else None
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, free_files)

    # --- bytes -------------------------------------------------------------------------------------------------------

    def open_write(self, path: str, mode: int = 0o640) -> int:
        """Create a file that does not exist yet and open it for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def open_append(self, path: str) -> int:
        """Open an existing file for appending."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)

    def open_read(self, path: str) -> int:
        """Open an existing file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def open_lock(self, path: str) -> int:
        """Open a lock file, creating it where it is missing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view.nbytes:
            view = view[os.write(descriptor, view) :]

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        """Read ``length`` bytes at ``offset``; fewer only at the end of the file."""
        data = os.pread(descriptor, length, offset)
        while 0 < len(data) < length:
            more = os.pread(descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut a file to ``length`` bytes."""
        os.ftruncate(descriptor, length)

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        """Have the blocks of a range laid aside, so that writing there needs no space any more.

        The file's length and bytes stay as they are.  Where the file system cannot do that, nothing happens.
        """
        # The system call itself, with the flag that Python's ``os.posix_fallocate`` does not have.
        result = _LIBC.fallocate(
            ctypes.c_int(descriptor), ctypes.c_int(_FALLOC_FL_KEEP_SIZE), ctypes.c_int64(offset), ctypes.c_int64(length)
        )
        number = ctypes.get_errno() if result else 0
        if number and number not in _CANNOT_ALLOCATE:
            raise OSError(number, os.strerror(number))

    def fsync(self, descriptor: int) -> None:
        """Make a file's bytes and length durable."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Let go of a descriptor."""
        os.close(descriptor)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def lock(self, descriptor: int) -> None:
        """Take the exclusive ``flock`` of an open file, without waiting.

        Raises:
            BlockingIOError: another process holds it.
        """
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def commit(self, transaction: Committable) -> None:
        """Commit an LMDB write transaction.

        Raises:
            lmdb.Error: as LMDB reports it.
        """
        transaction.commit()


def is_full(error: OSError) -> bool:
    """Whether the system said that no space is left."""
    return error.errno in _FULL


def refusal(error: OSError, doing: str) -> CasstoreError:
    """The error to raise for a system call that failed before anything was named or acknowledged.

    Args:
        error: what the system said.
        doing: what was attempted, to end the sentence "the store cannot …".
    """
    said = os.strerror(error.errno) if error.errno else str(error)
    if is_full(error):
        return StoreFull(f"the store cannot {doing}: {said}", hint="free or add disk space; nothing was recorded")
    if error.errno in _READ_ONLY:
        return ReadOnly(f"the store cannot {doing}: {said}", hint="check the mount and who owns the store directory")
    if error.errno in _OVERLOADED:
        return Overloaded(f"the store cannot {doing}: {said}", retry_after_s=1)
    return Unavailable(f"the store cannot {doing}: {said}", hint="look at the kernel log for a failing disk")


def read_file(files: Files, path: str, max_bytes: int) -> bytes:
    """Read a small file whole.

    Args:
        files: how.
        path: which.
        max_bytes: no more than this is read; a longer file is returned cut, and the caller's parser refuses it.
    """
    descriptor = files.open_read(path)
    try:
        return files.pread(descriptor, max_bytes, 0)
    finally:
        files.close(descriptor)


def write_new_file(files: Files, path: str, data: bytes, mode: int = 0o640) -> None:
    """Create a file with its bytes durable; the name is durable after ``fsync_dir`` of its directory.

    Raises:
        FileExistsError: the name is taken.
        OSError: anything else; the file may be there in part.
    """
    descriptor = files.open_write(path, mode)
    try:
        files.write(descriptor, data)
        files.fsync(descriptor)
    finally:
        files.close(descriptor)
