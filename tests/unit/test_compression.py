"""Compression: what a hostile frame may cost, and that nothing but the stated bytes comes out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from casstore.compression import zstd_compress, zstd_decompress
from casstore.errors import MalformedDocument
from casstore.limits import MIB

TEXT = b"All content lies in packs. " * 4000


def test_what_goes_in_comes_out() -> None:
    for plain in (b"x", TEXT, os.urandom(MIB), bytes(MIB)):
        assert zstd_decompress(zstd_compress(plain), len(plain)) == plain
        assert zstd_decompress(memoryview(zstd_compress(memoryview(plain))), len(plain)) == plain


@pytest.mark.parametrize("claim", [0, 1, len(TEXT) - 1, len(TEXT) + 1])
def test_another_length_than_promised_is_refused(claim: int) -> None:
    with pytest.raises(MalformedDocument):
        zstd_decompress(zstd_compress(TEXT), claim)


def test_a_bomb_is_refused_before_it_is_opened() -> None:
    """A few KiB that would swell to 256 MiB: refused by what the frame says about itself, or does not say."""
    compressor = zstandard.ZstdCompressor(level=3)
    bomb = compressor.compressobj(size=-1)
    block = bytes(4 * MIB)
    silent = b"".join(bomb.compress(block) for _ in range(64)) + bomb.flush()
    with pytest.raises(MalformedDocument):  # it does not say how large it is
        zstd_decompress(silent, MIB)
    loud = bytearray(compressor.compress(bytes(64 * MIB)))
    with pytest.raises(MalformedDocument):
        zstd_decompress(bytes(loud), MIB)
    # A frame that lies: it says 1 MiB (u32 behind magic and descriptor), its blocks hold 64.
    at = bytes(loud).index((64 * MIB).to_bytes(4, "little"))
    loud[at : at + 4] = MIB.to_bytes(4, "little")
    with pytest.raises(MalformedDocument):
        zstd_decompress(bytes(loud), MIB)


def test_a_window_above_the_bound_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24, compression_level=3)
    data = zstandard.ZstdCompressor(compression_params=parameters).compress(os.urandom(20 * MIB))
    assert zstandard.get_frame_parameters(data).window_size > 8 * MIB
    with pytest.raises(MalformedDocument):
        zstd_decompress(data, 20 * MIB)


def test_a_dictionary_is_refused() -> None:
    dictionary = zstandard.train_dictionary(2048, [b"line %d of a sample of a dictionary" % n for n in range(2000)])
    data = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT)
    with pytest.raises(MalformedDocument):
        zstd_decompress(data, len(TEXT))


def test_only_one_whole_frame_is_taken() -> None:
    data = zstd_compress(TEXT)
    for other in (data + b"\0", data + data, data[:-1], b"\0" + data, b"", data[:4], b"not zstd at all"):
        with pytest.raises(MalformedDocument):
            zstd_decompress(other, len(TEXT))
    skippable = b"\x50\x2a\x4d\x18" + len(TEXT).to_bytes(4, "little") + TEXT
    with pytest.raises(MalformedDocument):
        zstd_decompress(skippable, len(TEXT))


def test_a_frame_without_its_content_size_is_refused() -> None:
    data = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    with pytest.raises(MalformedDocument):
        zstd_decompress(data, len(TEXT))


def test_threads_do_not_disturb_each_other() -> None:
    """Every pool thread compresses at once; a shared context would crash the interpreter."""
    plains = [os.urandom(1000) * 50 + bytes([n]) for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda plain: zstd_decompress(zstd_compress(plain), len(plain)), plains)
        assert list(results) == plains
