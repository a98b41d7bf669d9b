"""Removes a directory tree, whatever is in it: read-only directories, links, paths deeper than the kernel takes.

Owns the one way in which the client deletes.  The tree is flattened while it is removed: each subdirectory is first moved up
to the top, so no path is ever longer than two names and no more than two descriptors are open.

Invariant: no link is followed; nothing outside the directory is touched.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from casstore_client.beneath import DIRECTORY_FLAGS


def remove_tree(name: bytes, *, dir_fd: int) -> None:
    """Remove ``name`` in the directory ``dir_fd``, with all that it holds if it is a directory; gone already is fine.

    Raises:
        OSError: something cannot be removed; what was removed before stays removed.
    """
    try:
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return
    _unlock(name, dir_fd)
    top_fd = os.open(name, DIRECTORY_FLAGS, dir_fd=dir_fd)
    try:
        _empty(top_fd)
    finally:
        os.close(top_fd)
    os.rmdir(name, dir_fd=dir_fd)


def _empty(top_fd: int) -> None:
    # A prefix that nothing in the tree is likely to have; a clash would show as ENOTEMPTY and not as harm.
    prefix = b".removing-" + os.urandom(8).hex().encode() + b"-"
    pending = _clear(top_fd)
    count = 0
    while pending:
        name = pending.pop()
        _unlock(name, top_fd)
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=top_fd)
        try:
            for child in _clear(fd):
                _unlock(child, fd)  # a directory that moves must be writable itself
                count += 1
                moved = prefix + str(count).encode()
                os.rename(child, moved, src_dir_fd=fd, dst_dir_fd=top_fd)
                pending.append(moved)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top_fd)


def _clear(fd: int) -> list[bytes]:
    """Unlink all but the directories; returns those."""
    directories: list[bytes] = []
    with os.scandir(fd) as entries:
        listed = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        if is_directory:
            directories.append(name)
        else:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
    return directories


def _unlock(name: bytes, dir_fd: int) -> None:
    """Let the owner list and change a directory."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            # chmod by name would follow a link, and a descriptor that only names cannot be changed but through /proc.
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IRWXU)
    finally:
        os.close(fd)
