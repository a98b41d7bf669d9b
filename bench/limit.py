"""The limit of this machine: the same work by the libraries alone, on all cores, without store, server or network.

What a push must do to every byte, whoever does it: read, cut, hash, compress what is new, write, sync; and what the server's proof
adds: decompress and hash again, each chunk and each file.  What a check must do: read what is stored, decompress it, hash chunks
and files.  What a pull must do at least: write the files.  Files that are smaller than a chunk go through together, as bundles do.

Each is done in several ways, with one thread a core, with one process a core, with the system's own commands; the quickest counts.
A limit is only worth comparing with when nothing simple beats it.

``python -m bench.limit WORK WAY SCRATCH SOURCE [EARLIER]`` does it once and prints the seconds; a process of its own, so that its
memory is not the bench's.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TypeAlias

import zstandard
from blake3 import blake3
from pyfastcdc import FastCDC

from bench.scratch import discard

_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_FILES = 400
_SMALL_BYTES = 64 * 1024
_BUNDLE_BYTES = 128 * 1024
_CHUNK_MAX_BYTES = 1024 * 1024
_CORES = os.cpu_count() or 1

Batch: TypeAlias = tuple[str, list[str]]
"""A directory, as a path below the source, and names of regular files in it."""

WORKS = ("push", "push-on", "walk", "verify", "write", "link")
WAYS = {"write": ("threads", "processes", "cp"), "link": ("threads", "processes", "cp"), "walk": ("threads",)}


def limit_s(
    work: str, scratch: Path, source: Path, earlier: Path | None = None, *, sync: bool = True
) -> tuple[float, str]:
    """Seconds that ``work`` takes at least, and the way that took least.

    Args:
        work: which.
        scratch: a folder that is not there and may be made; it is not there afterwards.
        source: the tree.
        earlier: for ``push-on``, the tree whose chunks are known.
        sync: whether all that was written before is written out first.
    """
    found = []
    for way in WAYS.get(work, ("threads", "processes")):
        discard(scratch)
        if sync:
            os.sync()
        words = [sys.executable, "-m", "bench.limit", work, way, str(scratch), str(source)]
        done = subprocess.run(
            [*words, *([str(earlier)] if earlier else [])], check=True, capture_output=True, text=True
        )
        found.append((float(done.stdout), way))
    discard(scratch)
    return min(found)


def main() -> None:
    """One work in one way."""
    work, way, scratch, source, *rest = sys.argv[1:]
    spread = _by_threads if way == "threads" else _by_processes
    if work in ("push", "push-on", "verify"):
        Path(scratch).mkdir()
    known = _chunks_of(rest[0]) if work == "push-on" else frozenset[bytes]()
    ranges: list[Batch] = []
    if work == "verify":
        _by_processes(lambda: _Pusher(source, scratch, proof=False), _walk(source, None))
        ranges = list(_ranges(scratch))
    began = time.perf_counter()
    if way == "cp":
        subprocess.run(["cp", "-rPl" if work == "link" else "-r", source, scratch], check=True)
    elif work == "walk":
        for _ in _walk(source, None):
            pass
    elif work == "write":
        spread(lambda: _Copier(source, scratch), _walk(source, scratch))
    elif work == "link":
        spread(lambda: _Linker(source, scratch), _walk(source, scratch))
    elif work in ("push", "push-on"):
        spread(lambda: _Pusher(source, scratch, known), _walk(source, None))
    elif work == "verify":
        spread(lambda: _Verifier(scratch), iter(ranges))
    else:
        raise SystemExit(f"there is no work {work!r}")
    print(time.perf_counter() - began)


# --- spreading over the cores ----------------------------------------------------------------------------------------


class _Worker:
    """What one thread or process does to batches."""

    def take(self, batch: Batch) -> None:
        """Do one."""
        raise NotImplementedError

    def close(self) -> None:
        """Bring to an end what was begun."""


def _by_threads(make: Callable[[], _Worker], batches: Iterator[Batch]) -> None:
    workers: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(_CORES):
        workers.put(make())

    def one(batch: Batch) -> None:
        worker = workers.get()
        try:
            worker.take(batch)
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(_CORES) as pool:
        for _ in pool.map(one, batches):
            pass
        for _ in pool.map(lambda _: workers.get().close(), range(_CORES)):
            pass


def _by_processes(make: Callable[[], _Worker], batches: Iterator[Batch]) -> None:
    """Forked, so that nothing is imported again; batches are handed out as the walk finds them."""
    context = multiprocessing.get_context("fork")
    batches_out: SimpleQueue[Batch | None] = context.SimpleQueue()

    def work() -> None:
        worker = make()
        while (batch := batches_out.get()) is not None:
            worker.take(batch)
        worker.close()

    processes: list[ForkProcess] = [context.Process(target=work) for _ in range(_CORES)]
    for process in processes:
        process.start()
    for batch in batches:
        batches_out.put(batch)
    for _ in processes:
        batches_out.put(None)
    for process in processes:
        process.join()
        if process.exitcode != 0:
            raise SystemExit("a process of the limit failed")


def _walk(source: str, target: str | None) -> Iterator[Batch]:
    """Every directory's regular files, in batches; with ``target``, directories and links are made there on the way."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        if target is not None:
            os.mkdir(os.path.join(target, below))
        names: list[str] = []
        size = 0
        with os.scandir(os.path.join(source, below)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(os.path.join(below, entry.name))
                elif entry.is_symlink():
                    if target is not None:
                        os.symlink(os.readlink(entry.path), os.path.join(target, below, entry.name))
                else:
                    names.append(entry.name)
                    size += entry.stat(follow_symlinks=False).st_size
                    if size >= _BATCH_BYTES or len(names) >= _BATCH_FILES:
                        yield below, names
                        names, size = [], 0
        if names:
            yield below, names


# --- what is done to a batch -----------------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size)
        while len(data) < size:  # more than one call gives
            data += os.read(descriptor, size - len(data))
        return data
    finally:
        os.close(descriptor)


class _Copier(_Worker):
    def __init__(self, source: str, target: str) -> None:
        self._source, self._target = source, target

    def take(self, batch: Batch) -> None:
        below, names = batch
        for name in names:
            where = os.open(os.path.join(self._source, below, name), os.O_RDONLY)
            found = os.fstat(where)
            there = os.open(
                os.path.join(self._target, below, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, found.st_mode & 0o777
            )
            written = 0
            while written < found.st_size:
                written += os.write(there, os.read(where, _BATCH_BYTES))
            os.close(there)
            os.close(where)


class _Linker(_Worker):
    def __init__(self, source: str, target: str) -> None:
        self._source, self._target = source, target

    def take(self, batch: Batch) -> None:
        below, names = batch
        for name in names:
            os.link(os.path.join(self._source, below, name), os.path.join(self._target, below, name))


class _Pusher(_Worker):
    """Cuts, hashes, compresses what is new, proves it, and writes it to a pack of its own, which it syncs at the end."""

    def __init__(self, source: str, scratch: str, known: frozenset[bytes] = frozenset(), *, proof: bool = True) -> None:
        self._source = source
        self._known = known
        self._proof = proof
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._decompressor = zstandard.ZstdDecompressor()
        self._pack, _ = tempfile.mkstemp(suffix=".pack", dir=scratch)

    def take(self, batch: Batch) -> None:
        for chunk in _chunks(self._source, batch):
            if blake3(chunk).digest() in self._known:
                continue
            stored = self._compressor.compress(chunk)
            os.write(self._pack, len(stored).to_bytes(4, "big") + stored)
            if self._proof:
                _prove(self._decompressor, stored)

    def close(self) -> None:
        os.fsync(self._pack)
        os.close(self._pack)


class _Verifier(_Worker):
    """Reads ranges of packs, decompresses and hashes."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._decompressor = zstandard.ZstdDecompressor()

    def take(self, batch: Batch) -> None:
        pack, (start, end) = batch
        with open(os.path.join(self._scratch, pack), "rb") as stream:
            stream.seek(int(start))
            data = stream.read(int(end) - int(start))
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            _prove(self._decompressor, data[at + 4 : at + 4 + size])
            at += 4 + size


def _prove(decompressor: zstandard.ZstdDecompressor, stored: bytes) -> None:
    plain = decompressor.decompress(stored, max_output_size=_CHUNK_MAX_BYTES)
    blake3(plain).digest()  # the chunk
    blake3(plain).digest()  # the file that it is a part of


def _chunks(source: str, batch: Batch) -> Iterator[bytes | memoryview]:
    """The chunks of a batch; each file is hashed as a whole, too."""
    below, names = batch
    chunker = FastCDC(262_144, min_size=65_536, max_size=_CHUNK_MAX_BYTES)
    bundle = bytearray()
    for name in names:
        with open(os.path.join(source, below, name), "rb", buffering=0) as stream:
            data = stream.readall()
        blake3(data).digest()
        if len(data) >= _SMALL_BYTES:
            for chunk in chunker.cut_buf(data):
                yield chunk.data
        else:
            bundle += data
            if len(bundle) > _BUNDLE_BYTES:
                yield bytes(bundle)
                bundle.clear()
    if bundle:
        yield bytes(bundle)


def _chunks_of(source: str) -> frozenset[bytes]:
    return frozenset(blake3(chunk).digest() for batch in _walk(source, None) for chunk in _chunks(source, batch))


def _ranges(scratch: str) -> Iterator[Batch]:
    """Where whole chunks lie, some megabytes of them at a time."""
    for pack in sorted(os.listdir(scratch)):
        with open(os.path.join(scratch, pack), "rb") as stream:
            start = at = 0
            while head := stream.read(4):
                at += 4 + int.from_bytes(head, "big")
                stream.seek(at)
                if at - start >= _BATCH_BYTES:
                    yield pack, [str(start), str(at)]
                    start = at
            if at > start:
                yield pack, [str(start), str(at)]


if __name__ == "__main__":
    main()
