"""The limit of this machine: the same work by the libraries alone, on all cores, without store, server or network.

What a push must do to every byte, whoever does it: read, cut, hash, compress, write; and what the server's proof adds: decompress and hash
again.  What a pull must do: read, decompress, hash, write files.  Files that are smaller than a chunk go through together, as bundles do.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zstandard
from blake3 import blake3
from pyfastcdc import FastCDC

_BATCH_BYTES = 4 * 1024 * 1024
_SMALL_BYTES = 64 * 1024


def push_limit_s(source: Path, scratch: Path, *, proof: bool = True) -> float:
    """Seconds to read, cut, hash, compress, write and sync; with ``proof`` also to decompress and hash it all again."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool, (scratch / "packs").open("wb") as out:
        for stored in pool.map(lambda batch: _push_batch(batch, proof), _batches(source)):
            for piece in stored:
                out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    seconds = time.perf_counter() - began
    shutil.rmtree(scratch)
    return seconds


def write_limit_s(source: Path, scratch: Path) -> float:
    """Seconds for a plain parallel copy of the same files, without a sync."""
    shutil.rmtree(scratch, ignore_errors=True)
    began = time.perf_counter()
    shutil.copytree(source, scratch, symlinks=True, ignore=lambda _, names: [], copy_function=lambda *_: None)
    files = [p for p in source.rglob("*") if p.is_file() and not p.is_symlink()]

    def copy(batch: list[Path]) -> None:
        for path in batch:
            target = scratch / path.relative_to(source)
            data = path.read_bytes()
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, path.stat().st_mode & 0o777)
            os.write(descriptor, data)
            os.close(descriptor)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(copy, [files[at : at + 200] for at in range(0, len(files), 200)]))
    seconds = time.perf_counter() - began
    shutil.rmtree(scratch)
    return seconds


def _batches(source: Path) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for directory, names, files in os.walk(source):
        names.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if path.is_symlink():
                continue
            batch.append(path)
            size += path.stat().st_size
            if size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _push_batch(batch: list[Path], proof: bool) -> list[bytes]:
    compressor, chunker = zstandard.ZstdCompressor(level=3), FastCDC(262_144, min_size=65_536, max_size=1_048_576)
    decompressor = zstandard.ZstdDecompressor()
    stored, bundle = [], bytearray()

    def keep(chunk: bytes | memoryview) -> None:
        blake3(chunk).digest()
        piece = compressor.compress(chunk)
        stored.append(piece)
        if proof:
            plain = decompressor.decompress(piece)
            blake3(plain).digest()

    for path in batch:
        data = path.read_bytes()
        blake3(data).digest()
        if len(data) < _SMALL_BYTES:
            bundle += data
            if len(bundle) > 128 * 1024:
                keep(bytes(bundle))
                bundle.clear()
        else:
            for chunk in chunker.cut_buf(data):
                keep(chunk.data)
    if bundle:
        keep(bytes(bundle))
    return stored
