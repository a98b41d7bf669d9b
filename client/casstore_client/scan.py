"""Walks a directory in the order of the tree format, and reads nothing but names, modes and links.

Owns the order: a tree lists its paths by their bytes, so ``a``, ``a-b``, ``a/x`` follow each other, and a directory's
content is not next to the directory.  Each directory therefore counts as two items among its siblings: its name, and its
name with a slash, which stands for all that lies in it.  Memory: the names of the directories on the way down.

Symbolic links are listed, never followed.  What is neither file, directory nor link is refused by name.

Threads: a walk belongs to one thread at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from casstore.errors import CasstoreError, InvalidInput, SourceChanged
from casstore.formats.tree import EntryType
from casstore.limits import LINK_TARGET_MAX_BYTES, PATH_SIZE_MAX_BYTES
from casstore_client.beneath import Beneath
from casstore_client.errors import local_fault, show_path

Stamp: TypeAlias = tuple[int, int, int, int, int]
"""What shows that a file was touched: device, inode, size, mtime and ctime in nanoseconds."""

_SPECIAL: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Scanned(NamedTuple):
    """One path, as it was when the walk came by."""

    path: bytes
    type: EntryType
    mode: int
    """Permission bits, ``0o7777`` at most; 0 for a link."""
    size: int
    target: bytes
    stamp: Stamp | None
    """Set for files."""


def stamp_of(info: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def changed(path: bytes, how: str) -> SourceChanged:
    """The error for a file that did not hold still."""
    return SourceChanged(
        f"{show_path(path)} {how} while it was being pushed; nothing was committed",
        hint="push a copy or a file-system snapshot that nobody writes to",
        path=os.fsdecode(path) if path.isascii() else show_path(path),
    )


def source_fault(path: bytes, error: OSError) -> CasstoreError:
    """A system error on a path that was listed a moment ago, for ``raise … from error``."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
        return changed(path, "vanished or became something else")
    return local_fault("read", path or b".", error)


def walk(root_fd: int) -> Iterator[Scanned]:
    """Every path beneath a directory, in tree order, the root (empty path) first.

    Args:
        root_fd: the open directory; must stay open until the walk ends.

    Raises:
        SourceChanged: something vanished or changed its type since it was listed.
        InvalidInput: something that cannot be read, is no file, directory or link, or has too long a path.
    """
    with Beneath(root_fd) as below:
        info = os.fstat(root_fd)
        yield Scanned(b"", EntryType.DIRECTORY, stat.S_IMODE(info.st_mode), 0, b"", None)
        stack = [_list(below, b"")]
        while stack:
            prefix, names, directories = stack[-1]
            for name in names:
                if name.endswith(b"/"):
                    stack.append(_list(below, prefix + name))
                    break
                scanned = _look(below, prefix + name)
                if (scanned.type is EntryType.DIRECTORY) is not (name in directories):
                    raise changed(scanned.path, "became something else")
                yield scanned
            else:
                stack.pop()


def _list(below: Beneath, prefix: bytes) -> tuple[bytes, Iterator[bytes], frozenset[bytes]]:
    """A directory's items in tree order: prefix (empty or with a slash at its end), items, which of them are directories."""
    try:
        directories: list[bytes] = []
        names: list[bytes] = []
        with os.scandir(below.directory(prefix[:-1])) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                (directories if entry.is_dir(follow_symlinks=False) else names).append(name)
    except OSError as error:
        raise source_fault(prefix[:-1], error) from error
    items = names + directories + [name + b"/" for name in directories]
    items.sort()
    return prefix, iter(items), frozenset(directories)


def _look(below: Beneath, path: bytes) -> Scanned:
    try:
        fd, name = below.locate(path)
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        mode = info.st_mode
        if stat.S_ISREG(mode):
            scanned = Scanned(path, EntryType.FILE, stat.S_IMODE(mode), info.st_size, b"", stamp_of(info))
        elif stat.S_ISDIR(mode):
            scanned = Scanned(path, EntryType.DIRECTORY, stat.S_IMODE(mode), 0, b"", None)
        elif stat.S_ISLNK(mode):
            scanned = Scanned(path, EntryType.LINK, 0, 0, os.readlink(name, dir_fd=fd), None)
        else:
            what = _SPECIAL.get(stat.S_IFMT(mode), "a special file")
            raise InvalidInput(
                f"{show_path(path)} is {what}: a tree holds files, directories and symbolic links",
                hint="remove it, or push a directory without it",
            )
    except OSError as error:
        raise source_fault(path, error) from error
    if len(path) > PATH_SIZE_MAX_BYTES or len(scanned.target) > LINK_TARGET_MAX_BYTES:
        raise InvalidInput(f"{show_path(path)} has a path or link target above {PATH_SIZE_MAX_BYTES} bytes")
    return scanned
