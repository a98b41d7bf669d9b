"""Tiles.  What breaks here makes a log that foreign programs cannot read, or that has two addresses for one tile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import InvalidInput, MalformedDocument, TooLarge
from casstore.merkle import Frontier, NodeId, leaf_hash, node_hash, root_at
from casstore.tiles import (
    ENTRIES,
    TileLevel,
    TilePath,
    available_width,
    decode_entries_tile,
    decode_hash_tile,
    encode_entries_tile,
    encode_hash_tile,
    format_tile_path,
    is_published,
    parse_tile_path,
    tile_nodes,
    tiles_for_size,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "golden" / "tile-path.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["good"], ids=lambda case: case["path"])
def test_path_vectors(case: dict[str, Any]) -> None:
    tile = TilePath(case["level"], case["n"], case["width"])
    assert format_tile_path(*tile) == case["path"]
    assert parse_tile_path(case["path"]) == tile


@pytest.mark.parametrize("path", GOLDEN["bad"])
def test_other_spellings_are_refused(path: str) -> None:
    with pytest.raises(MalformedDocument):
        parse_tile_path(path)


@pytest.mark.parametrize(
    ("level", "n", "width"),
    [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), ("data", 0, 1), (0, 10**21, 1)],
)
def test_tiles_that_no_tree_has(level: TileLevel, n: int, width: int) -> None:
    with pytest.raises(InvalidInput):
        format_tile_path(level, n, width)
    with pytest.raises(InvalidInput):
        tile_nodes(level, n, width)


def test_tiles_of_the_specifications_example() -> None:
    example = GOLDEN["size_70000"]
    tiles = list(tiles_for_size(70_000))
    full = [tile for tile in tiles if tile.width == 256]
    assert sum(tile.level == 0 for tile in full) == example["full_level_0"]
    assert sum(tile.level == 1 for tile in full) == example["full_level_1"]
    assert [list(tile) for tile in tiles if tile.width < 256 and tile.level != ENTRIES] == example["partial"]
    assert [(tile.n, tile.width) for tile in tiles if tile.level == ENTRIES] == [
        (tile.n, tile.width) for tile in tiles if tile.level == 0
    ]
    assert all(is_published(tile, 70_000) for tile in tiles)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, []),
        (1, [(0, 0, 1), (ENTRIES, 0, 1)]),
        (255, [(0, 0, 255), (ENTRIES, 0, 255)]),
        (256, [(0, 0, 256), (1, 0, 1), (ENTRIES, 0, 256)]),
        (257, [(0, 0, 256), (0, 1, 1), (1, 0, 1), (ENTRIES, 0, 256), (ENTRIES, 1, 1)]),
    ],
)
def test_tiles_of_small_trees(size: int, expected: list[tuple[TileLevel, int, int]]) -> None:
    assert [tuple(tile) for tile in tiles_for_size(size)] == expected


def test_nothing_beyond_the_published_size() -> None:
    for size in (1, 255, 256, 257, 300, 65_535, 65_536, 65_537, 70_000):
        listed = {(tile.level, tile.n): tile.width for tile in tiles_for_size(size)}
        for level in (0, 1, 2, 3, 63, ENTRIES):
            for n in (0, 1, 2, 255, 256, 273, 10**9):
                assert available_width(level, n, size) == listed.get((level, n), 0)
    assert is_published(TilePath(0, 1, 43), 300)
    assert is_published(TilePath(0, 1, 44), 300)
    assert not is_published(TilePath(0, 1, 45), 300)
    assert not is_published(TilePath(0, 1, 256), 300)
    assert not is_published(TilePath(0, 2, 1), 300)


def test_the_tree_can_be_rebuilt_from_its_tiles() -> None:
    # An auditor has nothing but tiles: every node it needs lies in one or is hashed from one.
    size = 70_000
    frontier = Frontier()
    nodes: dict[NodeId, bytes] = {}
    for number in range(size):
        nodes.update(frontier.append(leaf_hash(b"%d" % number)))
    from_tiles: dict[NodeId, bytes] = {}
    for level, n, width in tiles_for_size(size):
        if level != ENTRIES:
            ids = tile_nodes(level, n, width)
            data = encode_hash_tile([nodes[node] for node in ids])
            assert len(data) == 32 * width
            from_tiles.update(zip(ids, decode_hash_tile(data, width), strict=True))
    assert {level for level, _ in from_tiles} == {0, 8, 16}

    def node(level: int, position: int) -> bytes:
        found = from_tiles.get((level, position))
        return found or node_hash(node(level - 1, 2 * position), node(level - 1, 2 * position + 1))

    assert root_at(size, lambda ids: [node(*wanted) for wanted in ids]) == frontier.root


# --- the two codecs --------------------------------------------------------------------------------------------------


def test_entries_tile_to_the_byte() -> None:
    assert encode_entries_tile([b"a", b"", b"bc"]) == b"\x00\x01a\x00\x00\x00\x02bc"
    assert decode_entries_tile(b"\x00\x01a\x00\x00\x00\x02bc", 3) == [b"a", b"", b"bc"]


def test_entries_up_to_the_lengths_two_bytes() -> None:
    largest = bytes(65_535)
    assert decode_entries_tile(encode_entries_tile([largest]), 1) == [largest]
    with pytest.raises(TooLarge):
        encode_entries_tile([largest + b"\x00"])


@pytest.mark.parametrize("count", [0, 257])
def test_tiles_are_never_empty_nor_wider_than_256(count: int) -> None:
    with pytest.raises(InvalidInput):
        encode_entries_tile([b""] * count)
    with pytest.raises(InvalidInput):
        encode_hash_tile([bytes(32)] * count)
    with pytest.raises(MalformedDocument):
        decode_entries_tile(b"\x00\x00" * count, count)
    with pytest.raises(MalformedDocument):
        decode_hash_tile(bytes(32 * count), count)


def test_every_truncation_extension_and_wrong_width_is_refused() -> None:
    entries = [b"entry %d" % number * number for number in range(9)]
    data = encode_entries_tile(entries)
    for length in range(len(data)):
        with pytest.raises(MalformedDocument):
            decode_entries_tile(data[:length], 9)
    for other in (data + b"\x00", data + b"\x00\x00", b"\x00\x00" + data):
        with pytest.raises(MalformedDocument):
            decode_entries_tile(other, 9)
    for width in (1, 8, 10, 256):
        with pytest.raises(MalformedDocument):
            decode_entries_tile(data, width)
    for length in (0, 31, 33, 64, 96):
        with pytest.raises(MalformedDocument):
            decode_hash_tile(bytes(length), 1)


def test_hashes_of_other_lengths_are_not_written() -> None:
    with pytest.raises(InvalidInput):
        encode_hash_tile([bytes(32), bytes(31)])
