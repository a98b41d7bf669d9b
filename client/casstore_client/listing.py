"""Lists a directory and looks at everything in it, with as little Python for each entry as there can be.

Owns the one look that a push takes at a file before it reads it: where the file's stamp comes from, and what a
:class:`Fingerprint` is taken of.  Both are of the same moment, so whatever changes afterwards shows against either.

Memory: a name and some 50 bytes an entry.

Threads: any; no state is shared.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from casstore.errors import CasstoreError, SourceChanged
from casstore.hashing import Blake3Hasher
from casstore_client.beneath import Beneath
from casstore_client.errors import local_fault, show_path

Stamp: TypeAlias = tuple[int, int, int, int, int]
"""What shows that a file was touched: device, inode, size, mtime and ctime in nanoseconds."""

EAGER_ENTRIES_MAX: Final = (
    16_384  # LIMIT: 600 bytes each; of larger directories only names are held while they are looked at
)
_RECORD: Final = "QQqqqI"  # what FIELDS gives: the stamp, then type and permission bits
_FIELDS: Final[Callable[[os.stat_result], tuple[int, int, int, int, int, int]]] = attrgetter(
    "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_mode"
)
RECORDS: Final = struct.Struct("<" + _RECORD)
_NAME: Final[Callable[[os.DirEntry[str]], str]] = attrgetter("name")
_IFMT: Final = 0o170000
_TIME_END: Final = 2**63  # nanoseconds: some day in the year 2262

Excludes: TypeAlias = Callable[[bytes, Sequence[tuple[bytes, bool]]], list[bool]]
"""Given a directory's prefix and its (name, is directory) pairs, says which of them are left out."""


class Listing(NamedTuple):
    """A directory as it was when it was listed."""

    prefix: bytes
    """Its path with a slash at the end; empty for the root."""
    names: list[bytes]
    """What lies in it, sorted by bytes."""
    records: bytes
    """Of each name what ``stat`` said: stamp and mode, packed."""
    directories: list[bytes]
    """Prefixes of the directories among them, in the order in which a walk enters them."""


def stamp_of(info: os.stat_result) -> Stamp:
    """The stamp of a file."""
    stamp = _FIELDS(info)[:5]
    return stamp if -_TIME_END <= stamp[3] < _TIME_END else (*stamp[:3], _wrap(stamp[3]), _wrap(stamp[4]))


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


def list_directory(below: Beneath, prefix: bytes, excludes: Excludes | None = None) -> Listing:
    """List a directory, and look at everything in it.

    Raises:
        SourceChanged: it, or something in it, vanished.
        InvalidInput: it cannot be read.
    """
    try:
        fd = below.directory(prefix[:-1])
        with os.scandir(fd) as scan:
            entries = list(islice(scan, EAGER_ENTRIES_MAX + 1))
            if len(entries) > EAGER_ENTRIES_MAX:
                return _list_large(fd, prefix, chain(entries, scan), excludes)
            if excludes is not None:
                entries = _keep(prefix, entries, excludes)
    except OSError as error:
        raise source_fault(prefix[:-1], error) from error
    entries.sort(key=_NAME)
    joined = "\0".join([entry.name for entry in entries])
    if not joined.isascii():  # text sorts otherwise than bytes where a name is not UTF-8
        entries.sort(key=lambda entry: os.fsencode(entry.name))
        joined = "\0".join([entry.name for entry in entries])
    names = os.fsencode(joined).split(b"\0") if entries else []
    try:
        stats = [entry.stat(follow_symlinks=False) for entry in entries]
    except OSError as error:
        raise source_fault(prefix + os.fsencode(error.filename), error) from error
    directories = [prefix + n + b"/" for n, s in zip(names, stats, strict=True) if s.st_mode & _IFMT == stat.S_IFDIR]
    directories.sort()
    return Listing(prefix, names, _pack(list(map(_FIELDS, stats))), directories)


def _keep(prefix: bytes, entries: list[os.DirEntry[str]], excludes: Excludes) -> list[os.DirEntry[str]]:
    pairs = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [entry for entry, out in zip(entries, excludes(prefix, pairs), strict=True) if not out]


def _list_large(fd: int, prefix: bytes, scan: Iterator[os.DirEntry[str]], excludes: Excludes | None) -> Listing:
    """As :func:`list_directory`, holding a name and a record of each entry and no more."""
    names: list[bytes] = []
    while part := list(islice(scan, EAGER_ENTRIES_MAX)):
        kept = part if excludes is None else _keep(prefix, part, excludes)
        names += [os.fsencode(entry.name) for entry in kept]
    names.sort()
    records: list[bytes] = []
    directories: list[bytes] = []
    for start in range(0, len(names), EAGER_ENTRIES_MAX):
        some = names[start : start + EAGER_ENTRIES_MAX]
        fields: list[tuple[int, ...]] = []
        for name in some:
            try:
                fields.append(_FIELDS(os.stat(name, dir_fd=fd, follow_symlinks=False)))
            except OSError as error:
                raise source_fault(prefix + name, error) from error
        records.append(_pack(fields))
        directories += [prefix + n + b"/" for n, f in zip(some, fields, strict=True) if f[5] & _IFMT == stat.S_IFDIR]
    directories.sort()
    return Listing(prefix, names, b"".join(records), directories)


def _pack(fields: Sequence[tuple[int, ...]]) -> bytes:
    try:
        return struct.pack("<" + _RECORD * len(fields), *chain.from_iterable(fields))
    except struct.error:  # a time that 64 bits do not hold
        return b"".join([RECORDS.pack(*f[:3], _wrap(f[3]), _wrap(f[4]), f[5]) for f in fields])


def _wrap(time_ns: int) -> int:
    """A time as 64 bits hold it: another time, and always the same one."""
    return (time_ns + _TIME_END) % 2**64 - _TIME_END


class Fingerprint:
    """What a walk saw, in a few bytes: two walks that saw the same have the same marks.

    It covers the names, stamps and modes of everything, of directories too; so it may differ where a tree would not, and never
    the other way round.  A mark is taken at every ``MARK_EVERY``-th directory and covers all before it, so that a difference
    shows early.

    Args:
        seed: whatever else decides what a tree is made of.
    """

    MARK_EVERY: Final = 16
    MARK_BYTES: Final = 16

    def __init__(self, seed: bytes) -> None:
        self._hasher = Blake3Hasher(seed)
        self._listings = 0
        self._marks: list[bytes] = []

    def add(self, listing: Listing) -> None:
        """Take the next directory."""
        names = b"\0".join(listing.names)
        head = struct.pack("<QQQ", len(listing.prefix), len(listing.names), len(names))
        self._hasher.update(b"".join((head, listing.prefix, names, listing.records)))
        self._listings += 1
        if self._listings % self.MARK_EVERY == 0:
            self._mark()

    def _mark(self) -> None:
        self._marks.append(self._hasher.digest()[: self.MARK_BYTES])

    def finish(self) -> bytes:
        """All marks, the last of which covers everything."""
        self._mark()
        return b"".join(self._marks)

    def agrees(self, marks: bytes) -> bool:
        """Whether the newest mark, if one was just taken, is that of another walk's :meth:`finish`."""
        end = len(self._marks) * self.MARK_BYTES
        return not end or marks[end - self.MARK_BYTES : end] == self._marks[-1]


def look_again(root_fd: int, seed: bytes, marks: bytes, excludes: Excludes | None) -> bool:
    """Walk a directory without reading anything, and say whether it has the fingerprint that it had.

    Args:
        root_fd: the directory; stays the caller's.
        seed: of the fingerprint.
        marks: what :meth:`Fingerprint.finish` gave for the walk before.
        excludes: what is left out.

    Raises:
        SourceChanged, InvalidInput: as :func:`list_directory`.
    """
    found = Fingerprint(seed)
    with Beneath(root_fd) as below:
        stack = [b""]
        while stack:
            listing = list_directory(below, stack.pop(), excludes)
            found.add(listing)
            if not found.agrees(marks):
                return False
            stack += listing.directories[::-1]
    return found.finish() == marks
