"""Chunking: the same bytes must be cut at the same places however they arrive, or nothing deduplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.chunking import DEFAULT_PARAMETERS, BundleCutter, FileChunker, Parameters, StreamCutter
from casstore.hashing import Blake3Hasher, blake3_256
from casstore.ids import BlobDigest
from casstore.limits import MIB

TINY = Parameters(min_bytes=64, avg_bytes=256, max_bytes=1024)


def noise(seed: bytes, length: int) -> bytes:
    """Bytes that look random and are the same on every machine."""
    return Blake3Hasher(seed).digest(length=length)


NOISE = noise(b"chunking", 6 * MIB)


def stream(data: bytes, pieces: Sequence[int], parameters: Parameters) -> Iterator[bytes]:
    """The chunks of ``data`` fed in pieces of these sizes, over and over."""
    cutter = StreamCutter(FileChunker(parameters))
    position = 0
    turn = 0
    while True:
        size = pieces[turn % len(pieces)]
        turn += 1
        final = position + size >= len(data)
        yield from map(bytes, cutter.feed(data[position : position + size], final))
        position += size
        if final:
            return


def test_chunks_keep_their_bounds_and_cover_the_file() -> None:
    lengths = FileChunker().cut(NOISE)
    assert sum(lengths) == len(NOISE)
    assert all(DEFAULT_PARAMETERS.min_bytes <= length <= MIB for length in lengths[:-1])
    assert 0 < lengths[-1] <= MIB
    assert len(lengths) > 8


def test_a_sparse_file_is_cut_into_equal_chunks() -> None:
    """Five gigabytes of zeros are one chunk stored once."""
    assert FileChunker().cut(bytes(3 * MIB + 5)) == [MIB, MIB, MIB, 5]


def test_a_file_of_any_length_is_covered() -> None:
    chunker = FileChunker()
    assert chunker.cut(b"") == []
    for length in (1, 63, 65_535, 65_536, 65_537):
        assert sum(chunker.cut(NOISE[:length])) == length


def test_an_insertion_disturbs_only_the_chunks_near_it() -> None:
    chunker = FileChunker()

    def ids(data: bytes) -> set[bytes]:
        found, position = set(), 0
        for length in chunker.cut(data):
            found.add(blake3_256(data[position : position + length]))
            position += length
        return found

    before = ids(NOISE)
    after = ids(NOISE[: 3 * MIB] + b"inserted" + NOISE[3 * MIB :])
    assert len(after - before) <= 2


@pytest.mark.parametrize("piece", [64 * 1024, MIB - 1, MIB, MIB + 1, 2 * MIB, 100 * MIB])
def test_a_stream_is_cut_where_the_whole_file_is(piece: int) -> None:
    lengths = FileChunker().cut(NOISE)
    chunks = list(stream(NOISE, [piece], DEFAULT_PARAMETERS))
    assert b"".join(chunks) == NOISE
    assert list(map(len, chunks)) == lengths


@settings(max_examples=150, deadline=None)
@given(
    seed=st.binary(max_size=4),
    length=st.integers(0, 20_000),
    pieces=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    period=st.integers(1, 5000),
)
def test_any_stream_is_cut_where_the_whole_file_is(seed: bytes, length: int, pieces: list[int], period: int) -> None:
    data = (noise(seed, min(period, length)) * (length // period + 1))[:length] if length else b""
    chunks = list(stream(data, pieces, TINY))
    assert b"".join(chunks) == data
    assert list(map(len, chunks)) == FileChunker(TINY).cut(data)


def test_a_window_gives_only_the_cuts_that_later_bytes_cannot_move() -> None:
    chunker = FileChunker()
    lengths = chunker.cut(NOISE)
    for size in (0, 100, MIB - 1, MIB, 2 * MIB, 3 * MIB + 7):
        front = chunker.cut_front(memoryview(NOISE)[:size], final=False)
        assert front == lengths[: len(front)]
        assert size - sum(front) < MIB or size < MIB
    assert chunker.cut_front(NOISE, final=True) == lengths
    assert chunker.cut_front(b"", final=True) == []


def test_chunkers_of_several_threads_agree() -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: FileChunker().cut(NOISE), range(8)))
    assert all(result == results[0] for result in results)


# --- bundles ---------------------------------------------------------------------------------------------------------


def bundles(files: Sequence[tuple[BlobDigest, int]]) -> list[list[int]]:
    """Sizes of the files of each bundle."""
    cutter = BundleCutter()
    done: list[list[int]] = [[]]
    for digest, size in files:
        before, after = cutter.add(digest, size)
        if before:
            done.append([])
        done[-1].append(size)
        if after:
            done.append([])
    return [bundle for bundle in done if bundle]


def small_files(count: int, seed: bytes = b"bundle") -> list[tuple[BlobDigest, int]]:
    digests = [blake3_256(seed + b"%d" % number) for number in range(count)]
    return [(BlobDigest(digest), int.from_bytes(digest[-2:], "big") // 8 + 1) for digest in digests]


def test_bundles_follow_the_rule() -> None:
    """Held against the rule written out in the plainest way."""
    expected: list[list[int]] = []
    bundle: list[int] = []
    files = small_files(3000)
    for digest, size in files:
        if sum(bundle) + size > MIB:
            expected.append(bundle)
            bundle = []
        bundle.append(size)
        if sum(bundle) >= 64 * 1024 and int.from_bytes(digest[:8], "big") < 2**64 * size // 131_072:
            expected.append(bundle)
            bundle = []
    assert bundles(files) == expected + ([bundle] if bundle else [])


def test_bundles_are_neither_tiny_nor_above_a_chunk() -> None:
    sizes = [sum(bundle) for bundle in bundles(small_files(20_000))]
    assert max(sizes) <= MIB
    assert min(sizes[:-1]) >= 64 * 1024
    assert 100 * 1024 < sum(sizes) / len(sizes) < 400 * 1024


def test_a_bundle_is_cut_before_it_exceeds_a_chunk() -> None:
    never = BlobDigest(b"\xff" * 32)
    cutter = BundleCutter()
    for _ in range(16):
        assert cutter.add(never, 65_535) == (False, False)
    assert cutter.size == 16 * 65_535
    assert cutter.add(never, 17) == (True, False)
    assert cutter.size == 17
    full = BundleCutter()
    for _ in range(16):
        full.add(never, 65_535)
    assert full.add(never, 16) == (False, False)
    assert full.size == MIB


def test_a_bundle_is_not_cut_behind_a_file_before_64_kib() -> None:
    always = BlobDigest(bytes(32))
    cutter = BundleCutter()
    assert cutter.add(always, 65_535) == (False, False)
    assert cutter.add(always, 1) == (False, True)
    assert cutter.size == 0


def test_a_changed_small_file_disturbs_its_bundle_and_few_others() -> None:
    files = small_files(5000)

    def ids(listing: list[tuple[BlobDigest, int]]) -> set[tuple[bytes, ...]]:
        cutter, current, done = BundleCutter(), list[bytes](), set[tuple[bytes, ...]]()
        for digest, size in listing:
            before, after = cutter.add(digest, size)
            if before:
                done.add(tuple(current))
                current = []
            current.append(digest)
            if after:
                done.add(tuple(current))
                current = []
        done.add(tuple(current))
        return done

    before = ids(files)
    total = 0
    for at in range(100, 5000, 100):
        changed = list(files)
        changed[at] = (BlobDigest(blake3_256(b"changed %d" % at)), files[at][1] + 1)
        total += len(ids(changed) - before)
    assert total / 49 < 3
