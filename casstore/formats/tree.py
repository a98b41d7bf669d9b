"""Trees: the canonical listing of a directory, cut into pages, under a root whose digest names it.

This is identity: the bytes here are final.  The same directory has the same digest on any machine, in any version,
however its content is chunked, compressed or packed.  A tree covers paths (bytes), types, permission bits, sizes, file
digests, link targets and empty directories; not owner, not time.

Invariants of every tree that :class:`PageCutter` makes and :class:`TreeVerifier` takes: the first entry is the root
directory (empty path); entries are sorted by path bytes and distinct; no component is empty, ``.``, ``..`` or holds a
NUL; the parent of every path is a directory of the tree (so nothing lies below a file or a link); a page ends exactly
where the rule says.  Where pages end depends on paths, so a changed file rewrites one page and an inserted one normally
one page.

Must not know how file content is stored.

Source: docs/formats/tree.md
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from casstore.errors import DigestMismatch, HostileTree, MalformedDocument, TooLarge
from casstore.formats.page import (
    EMPTY_DIGEST,
    FILE_SIZE_MAX_BYTES,
    MODE_MAX,
    PAGE_MAGIC,
    EntryType,
    OpenDirectories,
    TreeEntry,
    decode_page,
    encode_entry,
    encode_page,
    is_cut,
    is_cut_by_path,
    page_digest,
    verify_order,
    verify_path,
    verify_paths,
)
from casstore.hashing import CONTEXT_TREE, derive
from casstore.ids import PageDigest, TreeDigest
from casstore.limits import (
    PAGE_ENTRIES_MAX,
    PAGE_ENTRIES_MIN,
    PAGE_SIZE_CUT_BYTES,
    PAGE_SIZE_MAX_BYTES,
    ROOT_SIZE_MAX_BYTES,
)

__all__ = [
    "EMPTY_DIGEST",
    "FILE_SIZE_MAX_BYTES",
    "MODE_MAX",
    "PAGE_MAGIC",
    "BuiltPage",
    "EntryType",
    "PageCutter",
    "PageRef",
    "TreeEntry",
    "TreeVerifier",
    "decode_page",
    "decode_root",
    "encode_entry",
    "encode_page",
    "encode_root",
    "page_digest",
    "split_root_for_path",
    "tree_digest",
    "verify_path",
]

ROOT_MAGIC: Final = b"CASR\x01"
CONTENT_MAX_BYTES: Final = 2**64 - 1  # LIMIT: u64 in the root

_ROOT_HEAD: Final = struct.Struct(">5sI")
_ROOT_ROW: Final = struct.Struct(">32sIIQH")


class PageRef(NamedTuple):
    """What a root says about one page.  ``content_bytes`` is the sum of the sizes of its files."""

    digest: PageDigest
    entries: int
    page_bytes: int
    content_bytes: int
    first_path: bytes


class BuiltPage(NamedTuple):
    """A page that was just cut."""

    ref: PageRef
    data: bytes
    entries: list[TreeEntry]


# --- the root --------------------------------------------------------------------------------------------------------


def tree_digest(root: bytes) -> TreeDigest:
    """Identity of a tree: that of its root's bytes."""
    return TreeDigest(derive(CONTEXT_TREE, root))


def _verify_refs(pages: Sequence[PageRef]) -> None:
    if not pages:
        raise MalformedDocument("a tree has at least one page, that of its root directory")
    paths = [page.first_path for page in pages]
    if paths[0]:
        raise HostileTree("a tree's first page does not begin with the root directory")
    verify_order(paths)
    verify_paths(paths[1:])
    last = len(pages) - 1
    for number, (_, entries, page_bytes, content_bytes, _) in enumerate(pages):
        if not 0 < entries <= PAGE_ENTRIES_MAX or not len(PAGE_MAGIC) < page_bytes <= PAGE_SIZE_MAX_BYTES:
            raise MalformedDocument(f"page {number} of a tree has {entries} entries in {page_bytes} bytes: no page can")
        if not 0 <= content_bytes <= CONTENT_MAX_BYTES:
            raise MalformedDocument(f"page {number} of a tree has {content_bytes} bytes of content: no page can")
        if number < last and entries < PAGE_ENTRIES_MIN and page_bytes < PAGE_SIZE_CUT_BYTES:
            raise MalformedDocument(f"page {number} of a tree is cut after {entries} entries, before the rule allows")


def encode_root(pages: Sequence[PageRef]) -> bytes:
    """``"CASR" 0x01 ‖ u32be pages ‖ row*``

    row = ``digest32 ‖ u32be entries ‖ u32be page bytes ‖ u64be content bytes ‖ u16be len ‖ first path``

    Raises:
        HostileTree: a first path, or an order of them, that no honest tree has.
        MalformedDocument: no page, or numbers that no page has.
        TooLarge: above ``ROOT_SIZE_MAX_BYTES``.
    """
    _verify_refs(pages)
    parts = [_ROOT_HEAD.pack(ROOT_MAGIC, len(pages))]
    for digest, entries, page_bytes, content_bytes, path in pages:
        parts.append(_ROOT_ROW.pack(digest, entries, page_bytes, content_bytes, len(path)))
        parts.append(path)
    data = b"".join(parts)
    if len(data) > ROOT_SIZE_MAX_BYTES:
        raise TooLarge(
            f"a tree's root has at most {ROOT_SIZE_MAX_BYTES} bytes, this {len(data)}", limit=ROOT_SIZE_MAX_BYTES
        )
    return data


def decode_root(data: bytes) -> list[PageRef]:
    """Undo :func:`encode_root`; what it returns encodes to the same bytes.

    Raises:
        HostileTree: a first path, or an order of them, that no honest tree has.
        MalformedDocument: anything else that is not such a root.
        TooLarge: above ``ROOT_SIZE_MAX_BYTES``.
    """
    size = len(data)
    if size > ROOT_SIZE_MAX_BYTES:
        raise TooLarge(f"a tree's root has at most {ROOT_SIZE_MAX_BYTES} bytes, this {size}", limit=ROOT_SIZE_MAX_BYTES)
    if size < _ROOT_HEAD.size or data[:5] != ROOT_MAGIC:
        raise MalformedDocument("not a tree's root: it does not begin with CASR 01")
    count = _ROOT_HEAD.unpack_from(data)[1]
    pages: list[PageRef] = []
    position = _ROOT_HEAD.size
    try:
        for _ in range(count):
            digest, entries, page_bytes, content_bytes, length = _ROOT_ROW.unpack_from(data, position)
            start = position + _ROOT_ROW.size
            position = start + length
            pages.append(PageRef(PageDigest(digest), entries, page_bytes, content_bytes, data[start:position]))
    except struct.error:
        raise MalformedDocument("a tree's root ends inside a page's row") from None
    if position != size:
        raise MalformedDocument(f"a tree's root should end at {position} bytes, it has {size}")
    _verify_refs(pages)
    return pages


def split_root_for_path(pages: Sequence[PageRef], path: bytes) -> int | None:
    """Index of the one page that holds ``path`` if the tree does; None if ``pages`` is empty."""
    return bisect_right(pages, path, key=lambda page: page.first_path) - 1 if pages else None


# --- whole trees -----------------------------------------------------------------------------------------------------


class PageCutter:
    """Cuts a tree's entries, pushed in path order, into pages.

    Memory: one page, and the directories that are still open.
    """

    def __init__(self) -> None:
        self._directories = OpenDirectories()
        self._last: bytes | None = None
        self._parts: list[bytes] = []
        self._entries: list[TreeEntry] = []
        self._size = len(PAGE_MAGIC)
        self._content = 0

    def add(self, entry: TreeEntry) -> BuiltPage | None:
        """Take the next entry; the first is the root directory, with the empty path.

        Returns:
            The page that ends with this entry, if one does.

        Raises:
            HostileTree: a path, an order or a parent that no honest tree has.
            MalformedDocument: fields that an entry of this type cannot have, or content beyond what a root can count.
            TooLarge: a path or target above its bound.
        """
        path = entry[0]
        last = self._last
        if last is None:
            if path or entry.type != EntryType.DIRECTORY:
                raise HostileTree("a tree does not begin with its root directory")
        elif path <= last:
            raise HostileTree(f"a tree lists {path[:200]!r} behind {last[:200]!r}: duplicate or not sorted by bytes")
        else:
            verify_path(path)
        encoded = encode_entry(entry)
        self._directories.add((entry,))
        self._last = path
        self._parts.append(encoded)
        self._entries.append(entry)
        self._size += len(encoded)
        self._content += entry[3]
        return self._cut() if is_cut(path, len(self._entries), self._size) else None

    def finish(self) -> list[BuiltPage]:
        """The last page, if entries are left for one.

        Raises:
            HostileTree: nothing was added: a tree has at least its root directory.
        """
        if self._last is None:
            raise HostileTree("a tree does not begin with its root directory")
        return [self._cut()] if self._entries else []

    def _cut(self) -> BuiltPage:
        if self._content > CONTENT_MAX_BYTES:
            raise MalformedDocument(f"the files of one page have {self._content} bytes: more than a root can count")
        entries = self._entries
        data = PAGE_MAGIC + b"".join(self._parts)
        ref = PageRef(page_digest(data), len(entries), len(data), self._content, entries[0].path)
        self._parts, self._entries, self._size, self._content = [], [], len(PAGE_MAGIC), 0
        return BuiltPage(ref, data, entries)


class TreeVerifier:
    """Holds a tree, whoever sent it, against every rule: first its root, then its pages in order.

    After an error it is of no further use.

    Memory: the root, and the directories that are still open.

    Args:
        root: the root's bytes.
        expected: the digest that the tree must have; None if its root was held against it before.

    Raises:
        DigestMismatch: the root is not that of ``expected``.
        HostileTree, MalformedDocument, TooLarge: as :func:`decode_root`.
    """

    def __init__(self, root: bytes, expected: TreeDigest | None = None) -> None:
        if expected is not None and (found := tree_digest(root)) != expected:
            raise DigestMismatch(
                f"a root was to be that of {expected}, it is {found}", expected=str(expected), found=str(found)
            )
        self.pages: list[PageRef] = decode_root(root)
        """What the root says, page by page."""
        self._next = 0
        self._last: bytes | None = None
        self._directories = OpenDirectories()

    def add_page(self, data: bytes) -> list[TreeEntry]:
        """Take the next page.

        Returns:
            Its entries.

        Raises:
            DigestMismatch: not the page that the root names here.
            HostileTree: a path, an order or a parent that no honest tree has.
            MalformedDocument: one page too many, a page that the root describes falsely, or one that does not end where
                the rule says.
        """
        number = self._next
        if number >= len(self.pages):
            raise MalformedDocument(f"a tree of {len(self.pages)} pages was given one more")
        ref = self.pages[number]
        if (found := page_digest(data)) != ref.digest:
            message = f"page {number} of a tree was to be {ref.digest}, it is {found}"
            raise DigestMismatch(message, expected=str(ref.digest), found=str(found))
        entries = decode_page(data)
        said = (ref.entries, ref.page_bytes, ref.content_bytes, ref.first_path)
        if (len(entries), len(data), sum([entry[3] for entry in entries]), entries[0].path) != said:
            raise MalformedDocument(f"a tree's root describes page {number} otherwise than it is")
        if self._last is not None:
            verify_order((self._last, entries[0].path))
        self._directories.add(entries)
        self._verify_cut(entries, len(data), number)
        self._last = entries[-1].path
        self._next += 1
        return entries

    def _verify_cut(self, entries: Sequence[TreeEntry], size: int, number: int) -> None:
        """The page ends behind the first entry where the rule cuts; only the last page may end before."""
        # Within a page size and count stay below the cut, else decode_page or the line below refused it; what is left
        # is the hash of the path.
        last = entries[-1]
        if size - len(encode_entry(last)) >= PAGE_SIZE_CUT_BYTES or any(
            is_cut_by_path(entry[0]) for entry in entries[PAGE_ENTRIES_MIN - 1 : -1]
        ):
            raise MalformedDocument(f"page {number} of a tree goes on behind the place where the rule cuts it")
        if number < len(self.pages) - 1 and not is_cut(last.path, len(entries), size):
            raise MalformedDocument(f"page {number} of a tree ends before the place where the rule cuts it")

    def finish(self) -> None:
        """Say that there are no more pages.

        Raises:
            MalformedDocument: the root names more.
        """
        if self._next != len(self.pages):
            raise MalformedDocument(f"a tree of {len(self.pages)} pages ends after {self._next}")
