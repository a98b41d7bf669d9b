"""Tiles: the log tree and its entries as static files.

Owns the paths of tiles, which nodes a tile holds, and how entries lie in an entries tile.  It must not know where nodes
or entries are stored: a tile is a slice of what is.

Invariants: a path has one spelling, ``format_tile_path(*parse_tile_path(p)) == p``; a tile that is within the published
size never changes.

Source: https://c2sp.org/tlog-tiles
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from casstore.errors import InvalidInput, MalformedDocument, TooLarge
from casstore.limits import TILE_WIDTH
from casstore.merkle import HASH_BYTES, NodeId

ENTRIES: Final = "entries"
TILE_HEIGHT: Final = 8  # TILE_WIDTH is 2^8
TILE_LEVEL_MAX: Final = 63
ENTRY_MAX_BYTES: Final = 65_535  # u16 before each entry; our own entries stay below ENTRY_SIZE_MAX_BYTES

TileLevel = int | Literal["entries"]

_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([0-9]{1,3}))?\Z")
_LENGTH: Final = struct.Struct(">H")


class TilePath(NamedTuple):
    """One tile: a run of up to 256 hashes of one level, or of up to 256 entries."""

    level: TileLevel
    """From 0 to 63, or ``"entries"``."""
    n: int
    """Which tile of the level, from 0."""
    width: int
    """Hashes or entries in it, from 1 to 256; below 256 the tile is partial."""


def _check_tile(level: TileLevel, n: int, width: int) -> None:
    if level != ENTRIES and not (isinstance(level, int) and 0 <= level <= TILE_LEVEL_MAX):
        raise InvalidInput(f"{level!r} is not the level of a tile")
    if not 0 <= n < 1000**7 or not 1 <= width <= TILE_WIDTH:
        raise InvalidInput(f"there is no tile {n} of width {width}")


def format_tile_path(level: TileLevel, n: int, width: int) -> str:
    """The path of a tile below a log's prefix.

    Args:
        level: from 0 to 63, or ``"entries"``.
        n: which tile of the level, from 0.
        width: from 1 to 256.

    Raises:
        InvalidInput: there is no such tile.

    >>> format_tile_path(0, 1234067, 256)
    'tile/0/x001/x234/067'
    >>> format_tile_path("entries", 273, 112)
    'tile/entries/273.p/112'
    """
    _check_tile(level, n, width)
    groups = [f"{n % 1000:03d}"]
    while n >= 1000:
        n //= 1000
        groups.append(f"x{n % 1000:03d}")
    partial = "" if width == TILE_WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"


def parse_tile_path(path: str) -> TilePath:
    """Read a path in its one spelling.

    Args:
        path: below the log's prefix, so that it begins with ``tile/``.

    Raises:
        MalformedDocument: any other spelling, or a tile that no tree has.
    """
    match = _PATH.match(path)
    if not match:
        raise MalformedDocument(f"{path[:100]!r} is not the path of a tile")
    level_text, n_text, width_text = match.groups()
    level: TileLevel = ENTRIES if level_text == ENTRIES else int(level_text)
    n = int(n_text.replace("x", "").replace("/", ""))
    width = TILE_WIDTH if width_text is None else int(width_text)
    try:
        canonical = format_tile_path(level, n, width)
    except InvalidInput as error:
        raise MalformedDocument(error.detail) from error
    # Levels like 01, groups like x000/001 and widths like 007 or 256 are other spellings of a path that exists.
    if canonical != path:
        raise MalformedDocument(f"{path[:100]!r} is another spelling of {canonical!r}")
    return TilePath(level, n, width)


def available_width(level: TileLevel, n: int, size: int) -> int:
    """How much of a tile a tree has.

    Args:
        level: from 0 to 63, or ``"entries"``.
        n: which tile of the level.
        size: leaves in the tree.

    Returns:
        from 0 (no such tile: it is not found) to 256 (the tile is full).
    """
    height = 0 if level == ENTRIES else TILE_HEIGHT * int(level)
    return max(0, min(TILE_WIDTH, (size >> height) - n * TILE_WIDTH))


def is_published(tile: TilePath, size: int) -> bool:
    """Whether a tree of ``size`` leaves has the whole tile: what is beyond the published size is not found."""
    return tile.width <= available_width(tile.level, tile.n, size)


def tile_nodes(level: TileLevel, n: int, width: int) -> list[NodeId]:
    """The nodes of the log tree that a tile holds, in order.

    Args:
        level: from 0 to 63.
        n: which tile of the level.
        width: from 1 to 256.

    Raises:
        InvalidInput: there is no such tile.
    """
    _check_tile(level, n, width)
    if not isinstance(level, int):
        raise InvalidInput("an entries tile holds entries, not nodes")
    return [(TILE_HEIGHT * level, n * TILE_WIDTH + i) for i in range(width)]


def tiles_for_size(size: int) -> Iterator[TilePath]:
    """Every hash tile of a tree, level by level, the partial ones last in their level; then its entries tiles.

    Args:
        size: leaves in the tree.
    """
    level, width = 0, size
    while width:
        yield from _tiles_of(level, width)
        width >>= TILE_HEIGHT
        level += 1
    yield from _tiles_of(ENTRIES, size)


def _tiles_of(level: TileLevel, width: int) -> Iterator[TilePath]:
    for n in range(width // TILE_WIDTH):
        yield TilePath(level, n, TILE_WIDTH)
    if width % TILE_WIDTH:
        yield TilePath(level, width // TILE_WIDTH, width % TILE_WIDTH)


def encode_hash_tile(hashes: Sequence[bytes]) -> bytes:
    """The bytes of a hash tile.

    Raises:
        InvalidInput: none or more than 256 hashes, or one that has not 32 bytes.
    """
    if not 1 <= len(hashes) <= TILE_WIDTH or any(len(value) != HASH_BYTES for value in hashes):
        raise InvalidInput(f"a tile holds 1 to {TILE_WIDTH} hashes of {HASH_BYTES} bytes")
    return b"".join(hashes)


def decode_hash_tile(data: bytes, width: int) -> list[bytes]:
    """The hashes of a tile.

    Args:
        data: the tile's bytes.
        width: how many hashes its path promises.

    Raises:
        MalformedDocument: another length.
    """
    if not 1 <= width <= TILE_WIDTH or len(data) != width * HASH_BYTES:
        raise MalformedDocument(f"a tile of width {width} has {width * HASH_BYTES} bytes, this has {len(data)}")
    return [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]


def encode_entries_tile(entries: Sequence[bytes]) -> bytes:
    """The bytes of an entries tile: each entry after its length in two bytes.

    Raises:
        InvalidInput: none or more than 256 entries.
        TooLarge: an entry above 65,535 bytes.
    """
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise InvalidInput(f"a tile holds 1 to {TILE_WIDTH} entries")
    if any(len(entry) > ENTRY_MAX_BYTES for entry in entries):
        raise TooLarge(f"an entry in a tile has at most {ENTRY_MAX_BYTES} bytes", limit=ENTRY_MAX_BYTES)
    return b"".join(part for entry in entries for part in (_LENGTH.pack(len(entry)), entry))


def decode_entries_tile(data: bytes, width: int) -> list[bytes]:
    """The entries of a tile.

    Args:
        data: the tile's bytes, at most 256 * 65,537.
        width: how many entries its path promises.

    Raises:
        MalformedDocument: fewer or more entries, or one that is cut short.
    """
    if not 1 <= width <= TILE_WIDTH:
        raise MalformedDocument(f"there is no tile of width {width}")
    entries, position = [], 0
    for index in range(width):
        start = position + _LENGTH.size
        if start > len(data):
            raise MalformedDocument(f"the entries tile ends before entry {index} of {width}")
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise MalformedDocument(f"entry {index} of the entries tile is cut short")
        entries.append(data[start:position])
    if position != len(data):
        raise MalformedDocument(f"{len(data) - position} bytes follow the last entry of the tile")
    return entries
