"""The pages of an LMDB data file, read without LMDB: is each of them what the ones that lead to it say?

LMDB maps its file and believes what it finds there: a page number with a flipped bit leads a reader to another page, or out of
the file (SIGBUS), and a free list with a flipped bit gives away, at the next commit, a page that is in use.  Its pages have no
checksums, but they say much twice: a page its own number, its kind and where its nodes lie; a table how many pages and rows it
has; the keys their order; and a page is in use or free, never both.  All of that is held against each other here, before
anyone lets LMDB follow a pointer.

What is not said twice is not seen here: the bytes of keys (where they stay in order) and of values, which whoever wrote
them checks.

Source: ``mdb.c`` of LMDB 0.9 (data format version 1), 64 bits, little-endian.

Memory: a byte for each page of the file, and one path from a root to a leaf.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from casstore.errors import CasstoreError, DamagedObject

Read = Callable[[int, int], bytes]
"""Offset and length → bytes, fewer at the end of the file."""
Seen = Callable[[int, int, str, bytes], None]
"""Told of every run of bytes that means something: first offset, offset behind it, what it is, in which table."""

PAGE_HEADER: Final = struct.Struct("<QHHHH")
_NODE: Final = struct.Struct("<HHHH")
_META: Final = struct.Struct("<IIQQ")
_TABLE: Final = struct.Struct("<IHHQQQQQ")
_TAIL: Final = struct.Struct("<QQ")
_NUMBER: Final = struct.Struct("<Q")
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG, _TABLE_NODE = 1, 2
_INTEGER_KEYS: Final = 8
_NO_PAGE: Final = (1 << 64) - 1
_PAGE_SIZES: Final = (4096, 8192, 16384, 32768)
_DEPTH_MAX: Final = 32  # MDB_CURSOR's stack
_MAIN, _FREE = b"(main)", b"(free)"


class Table(NamedTuple):
    """What a table says of itself."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    rows: int
    root: int


class Meta(NamedTuple):
    """A meta page: the state after one transaction."""

    page: int
    free: Table
    main: Table
    last_page: int
    transaction: int


class _Fault(Exception):
    """A page that is not what it should be."""


def check_pages(
    read: Read, size: int, path: str, what: str, *, transaction: int | None = None, seen: Seen | None = None
) -> bool:
    """Hold every page that a transaction can reach against what leads to it.

    Args:
        read: reads the data file.
        size: of the data file, in bytes.
        path: of the data file, for the message.
        what: "index" or "ledger", for the message.
        transaction: the one whose pages are kept from being used again, by a reader of it; None for the newest of a file
            that nobody writes.
        seen: told of everything that was looked at.

    Returns:
        False if the transaction has gone from the meta pages meanwhile: its reader came too late, and must begin again.

    Raises:
        DamagedObject: something does not fit; the first thing that was found.
        OSError: the file cannot be read.
    """
    try:
        metas = [_read_meta(read, number, seen) for number in (0, 1)]
        if transaction is None:
            _check_metas(metas)
        chosen = max(metas, key=lambda meta: meta.transaction)
        if transaction is not None:
            found = [meta for meta in metas if meta.transaction == transaction]
            if not found:
                return False
            chosen = found[0]
        _Walk(read, size, chosen, seen).run()
    except (_Fault, struct.error, IndexError) as error:
        raise _damaged(path, what, str(error) or repr(error)) from error
    return True


def _damaged(path: str, what: str, found: str) -> CasstoreError:
    return DamagedObject(
        f"the {what} at {path} is damaged: {found}",
        hint="do not start a server on it; "
        + (
            "`casstore fsck --rebuild-index --store DIR` makes it anew; nothing is lost as long as the packs are there"
            if what == "index"
            else f"restore {what}/ from a backup, and keep signed-heads"
        ),
        object=what,
        where=path,
        found=found,
    )


def _read_meta(read: Read, number: int, seen: Seen | None) -> Meta:
    # The page size is not known yet; the second meta page lies where the first one says.
    size = 4096
    if number:
        size = _table(read(PAGE_HEADER.size + _META.size, _TABLE.size), 0).pad
        if size not in _PAGE_SIZES:
            raise _Fault(f"a page size of {size} bytes")
    at = number * size
    data = read(at, 4096)
    page, _, flags, *_ = PAGE_HEADER.unpack_from(data)
    magic, version, address, _ = _META.unpack_from(data, PAGE_HEADER.size)
    if (page, flags, magic, version, address) != (number, _META_PAGE, _MAGIC, _VERSION, 0):
        raise _Fault(f"meta page {number} is none")
    tables = PAGE_HEADER.size + _META.size
    free, main = _table(data, tables), _table(data, tables + _TABLE.size)
    if free.pad not in _PAGE_SIZES or free.flags != _INTEGER_KEYS or main.pad or main.flags:
        raise _Fault(f"meta page {number} describes other tables than LMDB makes here")
    last, transaction = _TAIL.unpack_from(data, tables + 2 * _TABLE.size)
    if seen is not None:
        end = tables + 2 * _TABLE.size + _TAIL.size
        seen(at, at + end, f"meta page {number}", b"")
    return Meta(number, free, main, last, transaction)


def _check_metas(metas: list[Meta]) -> None:
    """Transaction N lies on page N mod 2, and the one before it on the other."""
    new, old = sorted(metas, key=lambda meta: meta.transaction, reverse=True)
    is_first = new.transaction == old.transaction == 0
    if not is_first and (new.transaction - old.transaction != 1 or new.transaction % 2 != new.page):
        raise _Fault(f"the meta pages are of transactions {metas[0].transaction} and {metas[1].transaction}")
    if new.free.pad != old.free.pad:
        raise _Fault("the meta pages name two page sizes")


def _table(data: bytes, at: int) -> Table:
    return Table(*_TABLE.unpack_from(data, at))


class _Counts:
    """What was found of one table."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.branches = self.leaves = self.overflows = self.rows = 0


class _Bounds(NamedTuple):
    """Where the keys of a page lie, as the pages above say: not below the first, below the second."""

    low: bytes | None = None
    high: bytes | None = None


class _Node(NamedTuple):
    """Where a node lies in its page, and what its header says."""

    at: int
    key_length: int
    word: int
    """The size of the value, or half of the number of the page below."""
    flags: int

    def key(self, data: bytes) -> bytes:
        start = self.at + _NODE.size
        return data[start : start + self.key_length]


_Row = tuple[int, bytes, bytes, int]
"""Page, key, value and flags."""


class _Walk:
    """One pass over everything that a meta page leads to."""

    def __init__(self, read: Read, size: int, meta: Meta, seen: Seen | None) -> None:
        self._read = read
        self._meta = meta
        self._seen = seen
        self._size = meta.free.pad
        # Pages at the end that were taken and given back in one transaction are never written.
        self._used = bytearray(min(size // self._size, meta.last_page + 1))
        self._use(0, 2, "a meta page")

    def run(self) -> None:
        meta = self._meta
        named: list[tuple[bytes, Table]] = []
        for _, key, value, flags in self._rows(_MAIN, meta.main):
            if flags != _TABLE_NODE or len(value) != _TABLE.size:
                raise _Fault(f"the table of tables has a row {key!r} that is no table")
            named.append((key, _table(value, 0)))
        for name, table in named:
            if table.pad or table.flags:
                raise _Fault(f"table {name!r} is said to be of another kind than it was made")
            for page, _, _, flags in self._rows(name, table):
                if flags:
                    raise _Fault(f"page {page} of table {name!r} has a row with flags {flags}")
        self._check_free()

    def _check_free(self) -> None:
        free = bytearray(len(self._used))
        is_last_free = False
        for _, key, value, _ in self._rows(_FREE, self._meta.free):
            (transaction,) = _NUMBER.unpack(key)
            (count,) = _NUMBER.unpack_from(value)
            # A row that was made in reserve and not needed holds zeros.
            fits = (count + 1) * _NUMBER.size == len(value) if count else not any(value)
            if transaction > self._meta.transaction or not fits:
                raise _Fault(f"the free list has a row of transaction {transaction} with {count} pages")
            before = self._meta.last_page + 1
            for page in struct.unpack_from(f"<{count}Q", value, _NUMBER.size):
                if not 2 <= page < before or (page < len(free) and free[page]):
                    raise _Fault(f"the free list names page {page} out of order, or twice")
                if page < len(free):
                    free[page] = 1
                is_last_free |= page == self._meta.last_page
                before = page
        for page, (is_used, is_free) in enumerate(zip(self._used, free, strict=True)):
            if is_used and is_free:
                raise _Fault(f"page {page} is in use and in the free list")
        # A last page that is too high would let the file grow to it with holes.
        last = self._meta.last_page
        if not is_last_free and not (last < len(self._used) and self._used[last]):
            raise _Fault(f"the last page is said to be {last}, and nothing uses that one")

    def _use(self, page: int, count: int, what: str) -> None:
        if count < 1 or page + count > len(self._used):
            raise _Fault(
                f"{what} is said to be page {page}, {count} pages long; the last page is {len(self._used) - 1}"
            )
        if any(self._used[page : page + count]):
            raise _Fault(f"{what} is said to be page {page}, which something else uses")
        self._used[page : page + count] = b"\1" * count

    def _see(self, page: int, start: int, stop: int, what: str, table: bytes) -> None:
        if self._seen is not None and stop > start:
            at = page * self._size
            self._seen(at + start, at + stop, what, table)

    # --- tables ------------------------------------------------------------------------------------------------------

    def _rows(self, name: bytes, table: Table) -> Iterator[_Row]:
        """The rows of a table, in order."""
        counts = _Counts(name)
        if table.root != _NO_PAGE:
            if not 1 <= table.depth <= _DEPTH_MAX:
                raise _Fault(f"table {name!r} is said to be {table.depth} pages deep")
            yield from self._page(counts, table.root, table.depth, _Bounds())
        elif table.depth:
            raise _Fault(f"table {name!r} has no root, and is said to be {table.depth} pages deep")
        found = (counts.branches, counts.leaves, counts.overflows, counts.rows)
        said = (table.branches, table.leaves, table.overflows, table.rows)
        if found != said:
            raise _Fault(
                f"table {name!r} is said to have {said} branches, leaves, overflow pages, rows; it has {found}"
            )

    def _page(self, counts: _Counts, page: int, depth: int, bounds: _Bounds) -> Iterator[_Row]:
        """The rows below one page."""
        name = counts.name
        self._use(page, 1, f"a page of table {name!r}")
        data = self._read(page * self._size, self._size)
        number, _, flags, lower, upper = PAGE_HEADER.unpack_from(data)
        wanted = _LEAF if depth == 1 else _BRANCH
        if (number, flags) != (page, wanted) or len(data) != self._size:
            raise _Fault(f"page {page} of table {name!r} calls itself page {number} of kind {flags}, not {wanted}")
        if lower % 2 or not PAGE_HEADER.size < lower <= upper <= self._size:
            raise _Fault(f"page {page} of table {name!r} has its free space from {lower} to {upper}")
        # Two bytes between number and kind have a meaning on pages of other kinds only.
        self._see(page, 0, 8, "page number", name)
        self._see(page, 10, lower, "page header and pointers", name)
        nodes = self._nodes(counts, page, data, (lower, upper))
        if depth == 1:
            counts.leaves += 1
            counts.rows += len(nodes)
            yield from self._leaf(counts, page, data, nodes, bounds)
            return
        counts.branches += 1
        # The first key of a branch is never looked at.
        keys = [node.key(data) for node in nodes[1:]]
        self._check_order(name, page, keys, bounds)
        edges = [bounds.low, *keys, bounds.high]
        for position, node in enumerate(nodes):
            child = node.word | node.flags << 32
            yield from self._page(counts, child, depth - 1, _Bounds(edges[position], edges[position + 1]))

    def _nodes(self, counts: _Counts, page: int, data: bytes, free: tuple[int, int]) -> list[_Node]:
        """The nodes of a page; together they fill it from the end of the free space on."""
        is_leaf = PAGE_HEADER.unpack_from(data)[2] == _LEAF
        lower, upper = free
        nodes: list[_Node] = []
        spans: list[tuple[int, int]] = []
        for at in struct.unpack_from(f"<{(lower - PAGE_HEADER.size) // 2}H", data, PAGE_HEADER.size):
            if not upper <= at <= self._size - _NODE.size:
                raise _Fault(f"page {page} of table {counts.name!r} has a node at {at}, outside")
            low, high, flags, key_length = _NODE.unpack_from(data, at)
            word = low | high << 16
            inside = 0 if not is_leaf else _NUMBER.size if flags & _BIG else word
            end = at + _NODE.size + key_length + inside
            nodes.append(_Node(at, key_length, word, flags))
            spans.append((at, end + end % 2))
            self._see(page, at, at + _NODE.size, "node header", counts.name)
            self._see(page, at + _NODE.size, at + _NODE.size + key_length, "key", counts.name)
            self._see(page, at + _NODE.size + key_length, end, "value", counts.name)
        spans.sort()
        ends = [upper, *(end for _, end in spans)]
        if [start for start, _ in spans] != ends[:-1] or ends[-1] != self._size:
            raise _Fault(f"the nodes of page {page} of table {counts.name!r} do not lie side by side")
        return nodes

    def _leaf(self, counts: _Counts, page: int, data: bytes, nodes: list[_Node], bounds: _Bounds) -> Iterator[_Row]:
        keys = [node.key(data) for node in nodes]
        self._check_order(counts.name, page, keys, bounds)
        for key, node in zip(keys, nodes, strict=True):
            start = node.at + _NODE.size + node.key_length
            if node.flags & _BIG:
                yield page, key, self._big(counts, data, start, node.word), node.flags & ~_BIG
            else:
                yield page, key, data[start : start + node.word], node.flags

    def _big(self, counts: _Counts, data: bytes, start: int, size: int) -> bytes:
        """A value that lies on pages of its own."""
        name = counts.name
        (page,) = _NUMBER.unpack_from(data, start)
        at = page * self._size
        head = self._read(at, PAGE_HEADER.size) if page < len(self._used) else b""
        if len(head) != PAGE_HEADER.size:
            raise _Fault(f"a value of table {name!r} is said to begin on page {page}")
        number, _, flags, low, high = PAGE_HEADER.unpack(head)
        pages = low | high << 16
        if (number, flags) != (page, _OVERFLOW) or pages * self._size < PAGE_HEADER.size + size:
            raise _Fault(f"page {page} does not hold the value of {size} bytes of table {name!r} that it should")
        self._use(page, pages, f"a value of table {name!r}")
        counts.overflows += pages
        self._see(page, 0, 8, "page number", name)
        self._see(page, 10, PAGE_HEADER.size, "page header and pointers", name)
        self._see(page, PAGE_HEADER.size, PAGE_HEADER.size + size, "value", name)
        return self._read(at + PAGE_HEADER.size, size)

    def _check_order(self, name: bytes, page: int, keys: list[bytes], bounds: _Bounds) -> None:
        numbers = [_order(name, key) for key in keys]
        if any(one >= next_one for one, next_one in pairwise(numbers)):
            raise _Fault(f"the keys of page {page} of table {name!r} are out of order")
        is_below = bounds.low is not None and numbers and numbers[0] < _order(name, bounds.low)
        if is_below or (bounds.high is not None and numbers and numbers[-1] >= _order(name, bounds.high)):
            raise _Fault(f"page {page} of table {name!r} has keys that belong on another page")


def _order(name: bytes, key: bytes) -> bytes:
    """What LMDB compares: bytes, or the number that they are."""
    return key[::-1] if name == _FREE else key
