"""Tile paths and entries tiles of any shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import MalformedDocument
from casstore.tiles import (
    ENTRIES,
    TileLevel,
    TilePath,
    available_width,
    decode_entries_tile,
    encode_entries_tile,
    format_tile_path,
    is_published,
    parse_tile_path,
    tiles_for_size,
)

LEVELS: st.SearchStrategy[TileLevel] = st.integers(0, 63) | st.just(ENTRIES)
TILES = st.builds(TilePath, LEVELS, st.integers(0, 1000**7 - 1) | st.integers(0, 1100), st.integers(1, 256))


@given(TILES)
def test_paths_round_trip(tile: TilePath) -> None:
    assert parse_tile_path(format_tile_path(*tile)) == tile


@given(
    st.from_regex(r"tile/(entries|[0-9+-]{1,3})/(x?[0-9]{1,4}/){0,3}x?[0-9]{1,4}(\.p/[0-9+]{0,4})?\n?", fullmatch=True)
)
def test_paths_have_one_spelling(path: str) -> None:
    try:
        tile = parse_tile_path(path)
    except MalformedDocument:
        return
    assert format_tile_path(*tile) == path


@given(TILES, st.data())
def test_changed_paths_are_other_tiles_or_none(tile: TilePath, data: st.DataObject) -> None:
    path = format_tile_path(*tile)
    position = data.draw(st.integers(0, len(path) - 1))
    changed = path[:position] + data.draw(st.text(max_size=2)) + path[position + data.draw(st.integers(0, 2)) :]
    try:
        other = parse_tile_path(changed)
    except MalformedDocument:
        return
    assert (other == tile) == (changed == path)


@given(st.integers(0, 200_000))
def test_listed_tiles_are_published_and_cover_the_tree(size: int) -> None:
    per_level: dict[TileLevel, int] = {}
    for tile in tiles_for_size(size):
        assert is_published(tile, size)
        assert available_width(tile.level, tile.n, size) == tile.width
        per_level[tile.level] = per_level.get(tile.level, 0) + tile.width
    expected: dict[TileLevel, int] = {level: size >> 8 * level for level in range(8) if size >> 8 * level}
    assert per_level == (expected | {ENTRIES: size} if size else {})


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_entries_tiles_round_trip(entries: list[bytes]) -> None:
    assert decode_entries_tile(encode_entries_tile(entries), len(entries)) == entries


@given(st.binary(max_size=400), st.integers(0, 300))
def test_entries_tiles_have_one_spelling(data: bytes, width: int) -> None:
    try:
        entries = decode_entries_tile(data, width)
    except MalformedDocument:
        return
    assert encode_entries_tile(entries) == data
