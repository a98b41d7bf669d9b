"""Entries and pages: the pieces of a tree, and the rules that one page shows by itself.

This is identity: the bytes here are final.  The whole tree, its root and what holds across pages, is
:mod:`casstore.formats.tree`, which is also where others import these names from.

Invariants of every page that encodes or decodes: entries are sorted by path bytes and distinct; no component is empty,
``.``, ``..`` or holds a NUL; a parent that must stand on the same page does, and is a directory.

Source: docs/formats/tree.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from heapq import heappop, heappush
from itertools import pairwise
from operator import lt
from typing import Final, NamedTuple

from casstore.errors import HostileTree, MalformedDocument, TooLarge
from casstore.hashing import CONTEXT_PAGE, Blake3Hasher, blake3_256, derive
from casstore.ids import BlobDigest, PageDigest
from casstore.limits import (
    LINK_TARGET_MAX_BYTES,
    PAGE_CUT_DIVISOR,
    PAGE_ENTRIES_MAX,
    PAGE_ENTRIES_MIN,
    PAGE_SIZE_CUT_BYTES,
    PAGE_SIZE_MAX_BYTES,
    PATH_SIZE_MAX_BYTES,
)

PAGE_MAGIC: Final = b"CASP\x01"
MODE_MAX: Final = 0o7777
FILE_SIZE_MAX_BYTES: Final = 2**63 - 1  # LIMIT: what a file system can say (off_t)
EMPTY_DIGEST: Final = BlobDigest(blake3_256(b""))

_U16: Final = struct.Struct(">H")
_HEAD: Final = struct.Struct(">BH")
_FILE: Final = struct.Struct(">BHQ32s")
_LINK: Final = struct.Struct(">BHH")


class EntryType(IntEnum):
    """What an entry is."""

    FILE = 1
    DIRECTORY = 2
    LINK = 3


_FILE_TYPE: Final = EntryType.FILE
_DIRECTORY_TYPE: Final = EntryType.DIRECTORY
_LINK_TYPE: Final = EntryType.LINK


class TreeEntry(NamedTuple):
    """One path of a tree.

    ``mode``: permission bits, at most ``0o7777``; 0 for a link.  ``size`` (bytes) and ``digest`` are a file's,
    ``target`` is a link's; the others have the defaults.
    """

    path: bytes
    type: EntryType
    mode: int
    size: int = 0
    digest: BlobDigest | None = None
    target: bytes = b""


# --- one entry -------------------------------------------------------------------------------------------------------


def encode_entry(entry: TreeEntry) -> bytes:
    """``u16be len ‖ path ‖ u8 type ‖ u16be mode ‖`` file: ``u64be size ‖ digest32``; link: ``u16be len ‖ target``.

    Checks the fields; the rules of paths are checked where entries come together (:func:`encode_page`,
    :class:`PageCutter`).

    Raises:
        MalformedDocument: a mode, size, digest or target that an entry of this type cannot have.
        TooLarge: a path or target above its bound.
    """
    path, kind, mode, size, digest, target = entry
    length = len(path)
    if length > PATH_SIZE_MAX_BYTES:
        raise TooLarge(f"a path has at most {PATH_SIZE_MAX_BYTES} bytes, this has {length}", limit=PATH_SIZE_MAX_BYTES)
    if kind == _FILE_TYPE:
        if (
            digest is None
            or len(digest) != 32
            or target
            or not 0 <= mode <= MODE_MAX
            or not 0 <= size <= FILE_SIZE_MAX_BYTES
        ):
            raise MalformedDocument(f"{path[:200]!r} is not a file that a tree can hold: mode {mode:#o}, size {size}")
        if not size and digest != EMPTY_DIGEST:
            raise MalformedDocument(f"the file {path[:200]!r} is empty, but its digest is not that of no bytes")
        return _U16.pack(length) + path + _FILE.pack(kind, mode, size, digest)
    if size or digest is not None:
        raise MalformedDocument(f"{path[:200]!r} is no file, so it has neither size nor digest")
    if kind == _DIRECTORY_TYPE:
        if target or not 0 <= mode <= MODE_MAX:
            raise MalformedDocument(f"{path[:200]!r} is not a directory that a tree can hold: mode {mode:#o}")
        return _U16.pack(length) + path + _HEAD.pack(kind, mode)
    if kind != _LINK_TYPE or mode:
        raise MalformedDocument(f"{path[:200]!r} is not a link that a tree can hold: mode {mode:#o}")
    _verify_target(path, target)
    return _U16.pack(length) + path + _LINK.pack(kind, 0, len(target)) + target


def _verify_target(path: bytes, target: bytes) -> None:
    if not target or b"\0" in target:
        raise MalformedDocument(f"the link {path[:200]!r} has a target that is empty or holds a NUL")
    if len(target) > LINK_TARGET_MAX_BYTES:
        raise TooLarge(
            f"the target of the link {path[:200]!r} is above {LINK_TARGET_MAX_BYTES} bytes", limit=LINK_TARGET_MAX_BYTES
        )


# --- the rules of paths ----------------------------------------------------------------------------------------------


def verify_path(path: bytes) -> None:
    """Hold one path below the root directory against the rules.

    Raises:
        HostileTree: empty, absolute, with a component that is empty, ``.`` or ``..``, or with a NUL.
    """
    framed = b"/" + path + b"/"
    if b"//" in framed or b"\0" in path or b"/./" in framed or b"/../" in framed:
        raise HostileTree(f"a tree holds the path {path[:200]!r}: a component is empty, '.' or '..', or it holds a NUL")


def verify_paths(paths: Sequence[bytes]) -> None:
    """The rules of :func:`verify_path` for many paths at the price of a few scans.

    Raises:
        HostileTree: one of them breaks a rule.
    """
    if not paths:
        return
    framed = b"/" + b"/\0/".join(paths) + b"/"
    if b"//" in framed or b"/./" in framed or b"/../" in framed or framed.count(b"\0") != len(paths) - 1:
        for path in paths:
            verify_path(path)


def verify_order(paths: Sequence[bytes]) -> None:
    """Paths ascend by bytes and are distinct.

    Raises:
        HostileTree: they do not.
    """
    if not all(map(lt, paths, paths[1:])):
        before, path = next((a, b) for a, b in pairwise(paths) if not a < b)
        raise HostileTree(f"a tree lists {path[:200]!r} behind {before[:200]!r}: duplicate or not sorted by bytes")


class OpenDirectories:
    """The directories that paths still to come may lie in, and the rule that a parent is one of them.

    Paths are sorted by bytes, so ``a``, ``a-b``, ``a/x`` follow each other: a stack of open directories would close
    ``a`` too early.  A directory ``d`` is done with when a path at or behind ``d + b"0"`` comes (``0`` follows ``/``);
    done ones are dropped, so what is kept is about the depth of the tree.
    """

    def __init__(self) -> None:
        self._open: set[bytes] = set()
        self._ends: list[bytes] = []
        self._verified: bytes | None = None

    def add(self, entries: Sequence[TreeEntry], floor: bytes = b"") -> None:
        """Take the next entries.

        Args:
            entries: sorted, behind all that were taken before.
            floor: parents below this path are not asked for (when one page is looked at by itself).

        Raises:
            HostileTree: an entry whose parent is not a directory of the tree.
        """
        known = self._open
        verified = self._verified
        for entry in entries:
            path = entry[0]
            parent = path.rpartition(b"/")[0]
            if parent != verified:
                if parent not in known and parent >= floor and path:
                    raise HostileTree(f"a tree lists {path[:200]!r}, but {parent[:200]!r} is not a directory before it")
                verified = parent
            if entry[1] == _DIRECTORY_TYPE:
                self._push(path)
        self._verified = verified

    def _push(self, path: bytes) -> None:
        ends = self._ends
        while ends and ends[0] <= path:
            self._open.discard(heappop(ends)[:-1])
        self._open.add(path)
        if path:
            heappush(ends, path + b"0")


# --- pages -----------------------------------------------------------------------------------------------------------


def page_digest(data: bytes) -> PageDigest:
    """Identity of a page's bytes."""
    return PageDigest(derive(CONTEXT_PAGE, data))


def encode_page(entries: Sequence[TreeEntry]) -> bytes:
    """``"CASP" 0x01 ‖ entries``, holding the entries against every rule that concerns one page.

    Raises:
        HostileTree: a path, an order or a parent that no honest tree has.
        MalformedDocument: no entry, too many, or one with fields that its type cannot have.
        TooLarge: a path or target above its bound, or more bytes than a page can have.
    """
    data = PAGE_MAGIC + b"".join(map(encode_entry, entries))
    _verify_page(entries, len(data))
    return data


def _verify_page(entries: Sequence[TreeEntry], size: int) -> None:
    """What one page can be held against without its neighbours."""
    if not 0 < len(entries) <= PAGE_ENTRIES_MAX:
        raise MalformedDocument(f"a page has 1 to {PAGE_ENTRIES_MAX} entries, this has {len(entries)}")
    if size > PAGE_SIZE_MAX_BYTES:
        raise TooLarge(f"a page has at most {PAGE_SIZE_MAX_BYTES} bytes, this has {size}", limit=PAGE_SIZE_MAX_BYTES)
    paths = [entry[0] for entry in entries]
    verify_order(paths)
    first = paths[0]
    if first:
        verify_paths(paths)
    else:
        if entries[0].type != _DIRECTORY_TYPE:
            raise HostileTree("a tree's root (the empty path) is not a directory")
        verify_paths(paths[1:])
    # A parent that sorts below this page's first path lies on an earlier page: TreeVerifier sees to it.
    OpenDirectories().add(entries, floor=first)


def decode_page(data: bytes) -> list[TreeEntry]:
    """Undo :func:`encode_page`; what it returns encodes to the same bytes.

    Checks all that one page shows by itself.  That parents exist on earlier pages, and that the page ends where the
    rule says, is for :class:`TreeVerifier`; that the bytes are the page that was asked for, for :func:`page_digest`.

    Raises:
        HostileTree: a path, an order or a parent that no honest tree has.
        MalformedDocument: anything else that is not such a page.
        TooLarge: more bytes than a page can have.
    """
    entries = _decode_entries(data)
    _verify_page(entries, len(data))
    return entries


def _decode_entries(data: bytes) -> list[TreeEntry]:
    size = len(data)
    if size > PAGE_SIZE_MAX_BYTES:
        raise TooLarge(f"a page has at most {PAGE_SIZE_MAX_BYTES} bytes, this has {size}", limit=PAGE_SIZE_MAX_BYTES)
    if data[:5] != PAGE_MAGIC:
        raise MalformedDocument("not a page: it does not begin with CASP 01")
    entries: list[TreeEntry] = []
    # Hot loop: one struct call an entry, and tuple.__new__ instead of the NamedTuple's own slower constructor.
    append = entries.append
    new_entry = tuple.__new__
    new_digest = bytes.__new__
    unpack_file = _FILE.unpack_from
    position = 5
    try:
        while position < size:
            start = position + 2
            end = start + (data[position] << 8 | data[position + 1])
            path = data[start:end]
            if data[end] == 1:
                _, mode, length, digest = unpack_file(data, end)
                position = end + 43
                if length:
                    blob = new_digest(BlobDigest, digest)
                    if length > FILE_SIZE_MAX_BYTES:
                        raise MalformedDocument(f"the file {path[:200]!r} is larger than any file can be")
                elif digest == EMPTY_DIGEST:
                    blob = EMPTY_DIGEST
                else:
                    raise MalformedDocument(f"the file {path[:200]!r} is empty, but its digest is not that of no bytes")
                if mode > MODE_MAX:
                    raise MalformedDocument(f"{path[:200]!r} has the mode {mode:#o}, above 0o7777")
                append(new_entry(TreeEntry, (path, _FILE_TYPE, mode, length, blob, b"")))
            else:
                entry, position = _decode_other(data, end, path)
                append(entry)
    except (struct.error, IndexError):
        raise MalformedDocument("a page ends inside an entry") from None
    return entries


def _decode_other(data: bytes, end: int, path: bytes) -> tuple[TreeEntry, int]:
    """A directory or link whose path ends at ``end``, and where the next entry begins."""
    kind, mode = _HEAD.unpack_from(data, end)
    if kind == _DIRECTORY_TYPE:
        if mode > MODE_MAX:
            raise MalformedDocument(f"{path[:200]!r} has the mode {mode:#o}, above 0o7777")
        return TreeEntry(path, _DIRECTORY_TYPE, mode), end + 3
    if kind != _LINK_TYPE or mode:
        raise MalformedDocument(f"{path[:200]!r} has the type {kind} and the mode {mode:#o}: there is no such entry")
    (length,) = _U16.unpack_from(data, end + 3)
    target = data[end + 5 : end + 5 + length]
    if len(target) != length:
        raise MalformedDocument("a page ends inside an entry")
    _verify_target(path, target)
    return TreeEntry(path, _LINK_TYPE, 0, target=target), end + 5 + length


def is_cut_by_path(path: bytes) -> bool:
    """Whether the hash of the path says that a page which is long enough ends behind it."""
    return int.from_bytes(Blake3Hasher(path).digest()[:8], "little") % PAGE_CUT_DIVISOR == 0


def is_cut(path: bytes, entries: int, page_bytes: int) -> bool:
    """Whether a page ends behind ``path``, its ``entries``-th entry, with which it has ``page_bytes``."""
    if entries >= PAGE_ENTRIES_MAX or page_bytes >= PAGE_SIZE_CUT_BYTES:
        return True
    return entries >= PAGE_ENTRIES_MIN and is_cut_by_path(path)
