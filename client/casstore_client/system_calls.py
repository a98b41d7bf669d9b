"""Three system calls that Python's ``os`` lacks: sync one file system, rename without replacing, exchange two names.

Where the C library or the file system does not have one, the nearest thing is done, and the docstring says what is lost.

Threads: any; the interpreter's lock is released during a call.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Final

_AT_RENAME_NOREPLACE: Final = 1
_AT_RENAME_EXCHANGE: Final = 2
_MISSING: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP})

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_file_system(fd: int) -> None:
    """Write everything of the file system that holds ``fd`` to disk (all file systems, where only that can be done).

    Durability: what was written before the call survives a power cut once it has returned.

    Raises:
        OSError: the disk failed; what was written may be lost.
    """
    try:
        _call("syncfs", fd)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        os.sync()


def rename_new(old: bytes, new: bytes, *, dir_fd: int) -> None:
    """Rename within one directory; a name that is taken is left alone.

    KNOWN HOLE: on a file system without that call, a name that someone takes at the same moment is replaced.

    Raises:
        FileExistsError: ``new`` is there.
        OSError: as rename(2).
    """
    try:
        _call("renameat2", dir_fd, old, dir_fd, new, _AT_RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        if exists(new, dir_fd=dir_fd):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def exchange(one: bytes, other: bytes, *, dir_fd: int) -> bool:
    """Exchange two names of one directory in one step: whoever looks sees one or the other.

    Returns:
        False if the file system cannot; then nothing was done.

    Raises:
        OSError: as rename(2).
    """
    try:
        _call("renameat2", dir_fd, one, dir_fd, other, _AT_RENAME_EXCHANGE)
    except OSError as error:
        if error.errno in _MISSING:
            return False
        raise
    return True


def exists(name: bytes, *, dir_fd: int) -> bool:
    """Whether there is anything of that name, be it a dangling link."""
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
