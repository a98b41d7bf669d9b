"""Walks a directory in the order of the tree format, and reads nothing but names, modes and links.

Owns the order: a tree lists its paths by their bytes, so ``a``, ``a-b``, ``a/x`` follow each other, and a directory's
content is not next to the directory.  Each directory therefore counts as two items among its siblings: its name, and its
name with a slash, which stands for all that lies in it.

Symbolic links are listed, never followed.  What is neither file, directory nor link is refused by name.  What is excluded is
not looked at, and an excluded directory is not entered.  Memory: the listings of the directories on the way down.

Threads: a walk belongs to one thread at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from casstore.errors import InvalidInput
from casstore.formats.tree import EntryType
from casstore.limits import LINK_TARGET_MAX_BYTES, PATH_SIZE_MAX_BYTES
from casstore_client.beneath import Beneath
from casstore_client.errors import show_path
from casstore_client.listing import (
    RECORDS,
    Excludes,
    Listing,
    Stamp,
    changed,
    list_directory,
    source_fault,
    stamp_of,
)

__all__ = ["Scanned", "Stamp", "changed", "source_fault", "stamp_of", "walk"]

_FILE, _DIRECTORY, _LINK = EntryType.FILE, EntryType.DIRECTORY, EntryType.LINK
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


def walk(
    root_fd: int, excludes: Excludes | None = None, on_listing: Callable[[Listing], None] | None = None
) -> Iterator[Scanned]:
    """Every path beneath a directory, in tree order, the root (empty path) first.

    Args:
        root_fd: the open directory; must stay open until the walk ends.
        excludes: says what is left out.
        on_listing: is shown each directory when it is listed.

    Raises:
        SourceChanged: something vanished or changed its type since it was listed.
        InvalidInput: something that cannot be read, is no file, directory or link, or has too long a path.
    """
    new = tuple.__new__  # of a NamedTuple its own constructor costs three times as much
    with Beneath(root_fd) as below:
        info = os.fstat(root_fd)
        yield Scanned(b"", _DIRECTORY, stat.S_IMODE(info.st_mode), 0, b"", None)
        stack = [_enter(below, b"", excludes, on_listing)]
        while stack:
            prefix, items, records = stack[-1]
            for item in items:
                if item[-1] == 47:  # a directory's second item
                    stack.append(_enter(below, prefix + item, excludes, on_listing))
                    break
                record = next(records)
                path = prefix + item
                kind = record[5] & 0o170000
                if len(path) > PATH_SIZE_MAX_BYTES:
                    raise _too_long(path)
                if kind == stat.S_IFREG:
                    yield new(Scanned, (path, _FILE, record[5] & 0o7777, record[2], b"", record[:5]))
                elif kind == stat.S_IFDIR:
                    yield new(Scanned, (path, _DIRECTORY, record[5] & 0o7777, 0, b"", None))
                else:
                    yield _look_at_other(below, path, kind)
            else:
                stack.pop()


_Frame: TypeAlias = tuple[bytes, Iterator[bytes], Iterator[tuple[Any, ...]]]


def _enter(
    below: Beneath, prefix: bytes, excludes: Excludes | None, on_listing: Callable[[Listing], None] | None
) -> _Frame:
    listing = list_directory(below, prefix, excludes)
    if on_listing is not None:
        on_listing(listing)
    items = listing.names
    if listing.directories:
        start = len(prefix)
        items = items + [directory[start:] for directory in listing.directories]
        items.sort()
    return prefix, iter(items), RECORDS.iter_unpack(listing.records)


def _look_at_other(below: Beneath, path: bytes, kind: int) -> Scanned:
    """A link with its target; anything else is refused."""
    if kind != stat.S_IFLNK:
        what = _SPECIAL.get(kind, "a special file")
        raise InvalidInput(
            f"{show_path(path)} is {what}: a tree holds files, directories and symbolic links",
            hint="remove it, exclude it, or push a directory without it",
        )
    try:
        fd, name = below.locate(path)
        target = os.readlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise changed(path, "became something else") from error
        raise source_fault(path, error) from error
    if len(target) > LINK_TARGET_MAX_BYTES:
        raise _too_long(path)
    return Scanned(path, _LINK, 0, 0, target, None)


def _too_long(path: bytes) -> InvalidInput:
    return InvalidInput(f"{show_path(path)} has a path or link target above {PATH_SIZE_MAX_BYTES} bytes")
