"""Micro benches: the pieces that a push, a pull and a flip are made of.  ``make bench`` runs them; they never gate."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from casstore.chunking import FileChunker
from casstore.compression import zstd_compress, zstd_decompress
from casstore.formats.pack import ObjectKind, PackDecoder, PackEncoder, open_frame, seal_frame
from casstore.formats.tree import EntryType, TreeEntry, decode_page, encode_page
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, PackId
from casstore.merkle import Frontier, StaticTree, leaf_hash
from casstore.storage.local.files import Files
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.roles import FrameRow, PackRecord

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def text() -> bytes:
    """8 MiB of this project's own words, which compress like source code does."""
    words = b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("casstore/**/*.py"))).split()
    return b" ".join(random.Random(1).choices(words, k=2_000_000))[: 8 * MIB]


def test_cut_8_mib(benchmark: BenchmarkFixture, text: bytes) -> None:
    chunker = FileChunker()
    benchmark(chunker.cut, text)


def test_hash_8_mib(benchmark: BenchmarkFixture, text: bytes) -> None:
    benchmark(blake3_256, text)


def test_compress_1_mib(benchmark: BenchmarkFixture, text: bytes) -> None:
    benchmark(zstd_compress, text[:MIB])


def test_decompress_1_mib(benchmark: BenchmarkFixture, text: bytes) -> None:
    stored = zstd_compress(text[:MIB])
    benchmark(zstd_decompress, stored, MIB)


def test_verify_a_pack_of_8_chunks_of_1_mib(benchmark: BenchmarkFixture, text: bytes) -> None:
    encoder = PackEncoder(PackId(bytes(16)))
    pieces = [encoder.header()]
    for at in range(0, len(text), MIB):
        plain = text[at : at + MIB]
        codec, stored = seal_frame(ObjectKind.CHUNK, blake3_256(plain), plain)
        pieces.append(encoder.add(ObjectKind.CHUNK, blake3_256(plain), codec, stored, len(plain)))
    pack = b"".join([*pieces, encoder.finish()])

    def verify() -> None:
        decoder = PackDecoder()
        for frame in decoder.feed(pack):
            open_frame(frame)
        decoder.finish()

    benchmark(verify)


@pytest.fixture(scope="module")
def entries() -> list[TreeEntry]:
    """A page's worth of files."""
    names = sorted(f"a_module_with_a_name_of_some_length_{number}.py".encode() for number in range(4000))
    root = TreeEntry(b"", EntryType.DIRECTORY, 0o755)
    return [root, *(TreeEntry(name, EntryType.FILE, 0o644, 1000, BlobDigest(blake3_256(name))) for name in names)]


def test_encode_a_page_of_4001_entries(benchmark: BenchmarkFixture, entries: list[TreeEntry]) -> None:
    benchmark(encode_page, entries)


def test_decode_a_page_of_4001_entries(benchmark: BenchmarkFixture, entries: list[TreeEntry]) -> None:
    benchmark(decode_page, encode_page(entries))


def test_append_to_a_log_of_a_million(benchmark: BenchmarkFixture) -> None:
    frontier = Frontier()
    for number in range(1 << 16):
        frontier.append(leaf_hash(b"%d" % number))
    benchmark(frontier.append, leaf_hash(b"entry"))


def test_change_one_of_10000_state_leaves(benchmark: BenchmarkFixture) -> None:
    tree = StaticTree(b"%d" % number for number in range(10_000))
    benchmark(tree.set, 5000, b"changed")


def test_look_up_10000_missing_ids_among_200000(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    LocalChunkIndex.lay_out(str(tmp_path), Files())
    index = LocalChunkIndex(str(tmp_path), Files())
    for number in range(20):
        rows = [FrameRow(ObjectKind.CHUNK, os.urandom(32), 24 + 100 * at, 100, 200) for at in range(10_000)]
        index.add_pack(PackRecord(PackId(number.to_bytes(16, "big")), 2_000_000, len(rows)), rows)
    wanted = [os.urandom(32) for _ in range(10_000)]
    benchmark(index.has, ObjectKind.CHUNK, wanted)
    index.close()
