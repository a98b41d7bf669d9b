"""An index of many chunks: how long lookups and opening take, and what a chunk takes on the disk.

Filled as pushes fill it, pack by pack through :meth:`LocalChunkIndex.add_pack`, with random ids.  Where ``libeatmydata`` is, nothing is
synced while it is filled: that changes no byte of the result, and saves tens of gigabytes of writing.  What a durable commit takes at full
size is measured afterwards.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import lmdb
from blake3 import blake3

from bench.eatmydata import PRELOAD
from bench.processes import floor_bytes
from bench.scratch import discard, scratch_dir
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.roles import FrameRow, PackRecord

_FRAMES_PER_PACK: Final = 256  # between the packs of the Python corpus (140) and those of the JavaScript corpus (680)
_BATCH: Final = 10_000
_TIMES: Final = 15
_COMMITS: Final = 50
_REPORTS: Final = 10
_PAGE: Final = 4096


def run(count: int) -> None:
    """Fill an index with ``count`` chunks and print the figures."""
    home = scratch_dir() / "index-size"
    discard(home)
    home.mkdir()
    try:
        LocalChunkIndex.lay_out(str(home), Files())
        how = "nothing synced" if PRELOAD else "each pack synced"
        print(f"index of {count:,} chunks, {_FRAMES_PER_PACK} a pack, {how} while it is filled", flush=True)
        environ = os.environ | ({"LD_PRELOAD": PRELOAD} if PRELOAD else {})
        command = [sys.executable, "-m", "bench.index_size", str(home), str(count)]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as filling:
            assert filling.stdout is not None
            for line in filling.stdout:
                print(line, end="", flush=True)
        if filling.returncode != 0:
            raise SystemExit("the index was not filled")
        os.sync()
        _explain(home / "index", count)
        _time_open(home)
        _time_lookups(home, count, "in memory (goal: 30)")
        _forget(home / "index" / "data.mdb")
        _time_lookups(home, count, "first read from the disk", times=1)
        _time_commits(home, count)
        print(f"{'memory of this process, the map included':44} {floor_bytes() / 2**20:8.0f} MiB")
    finally:
        discard(home)


def _fill(home: Path, count: int) -> None:
    index = LocalChunkIndex(str(home), Files())
    began = last = time.perf_counter()
    report = max(_FRAMES_PER_PACK, count // _REPORTS)
    for done in range(0, count, _FRAMES_PER_PACK):
        rows = _rows(done, min(done + _FRAMES_PER_PACK, count))
        index.add_pack(_pack(done, rows), rows)
        if done // report != (done + len(rows)) // report:
            now = time.perf_counter()
            print(f"  {done + len(rows):>11,} chunks, {report / (now - last):9,.0f} chunks/s", flush=True)
            last = now
    seconds = time.perf_counter() - began
    index.close()
    print(f"{'build':44} {seconds:8.0f} s, {count / seconds:,.0f} chunks/s")


def _id(number: int) -> bytes:
    """The id of the chunk with this number: random, and known again."""
    return blake3(number.to_bytes(8, "big")).digest()


def _rows(begin: int, end: int) -> list[FrameRow]:
    return [
        FrameRow(ObjectKind.CHUNK, _id(number), 64 + 65_536 * at, 65_536, 262_144)
        for at, number in enumerate(range(begin, end))
    ]


def _pack(number: int, rows: list[FrameRow]) -> PackRecord:
    return PackRecord(PackId(_id(number)[:16]), 16 << 20, len(rows))


def _explain(path: Path, count: int) -> None:
    """Where the bytes are: pages of the table, how full they are, and what is free."""
    size = (path / "data.mdb").stat().st_size
    print(f"{'on the disk':44} {size / 1e6:8.0f} MB, {size / count:.1f} bytes a chunk (goal: 170)")
    environment = lmdb.open(str(path), readonly=True, lock=False, max_dbs=64)
    try:
        table = environment.open_db(b"chunk", create=False)
        with environment.begin(db=table) as transaction:
            found = transaction.stat(table)
            rows = found["entries"]
            cursor = transaction.cursor(table)
            cursor.first()
            row = (
                len(cursor.key()) + len(cursor.value()) + 8 + 2
            )  # LMDB: a node's header and its place in the page's index
        leaves = found["leaf_pages"]
        fill = rows * row / (leaves * (_PAGE - 16))
        print(f"  {leaves:,} leaves, {100 * fill:.0f} % full, of rows of {row} bytes")
        print(f"  {found['branch_pages']:,} branches, depth {found['depth']}")
        pages = leaves + found["branch_pages"]
        print(f"  {100 * (1 - pages * _PAGE / size):.0f} % of the file are other tables and free pages")
    finally:
        environment.close()


def _time_open(home: Path) -> None:
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        index = LocalChunkIndex(str(home), Files())
        times.append(1000 * (time.perf_counter() - began))
        index.close()
    print(f"{'open':44} {statistics.median(times):8.1f} ms, {min(times):.1f} to {max(times):.1f} (goal: 50)")


def _time_lookups(home: Path, count: int, how: str, times: int = _TIMES) -> None:
    index = LocalChunkIndex(str(home), Files())
    found = []
    for turn in range(times):
        step = max(1, count // (_BATCH // 2))
        numbers = range(turn % step, count, step)
        present = [_id(number) for number in numbers][: _BATCH // 2]
        absent = [_id(count + 1 + turn * _BATCH + number) for number in range(_BATCH - len(present))]
        wanted = [key for pair in zip(present, absent, strict=False) for key in pair]
        began = time.perf_counter()
        answer = index.has(ObjectKind.CHUNK, wanted)
        found.append(1000 * (time.perf_counter() - began))
        if sum(answer) * 2 != len(wanted):
            raise SystemExit(f"{sum(answer)} of {len(wanted)} were found where half are there")
    index.close()
    label = f"look up {len(wanted):,} ids, half there, {how}"
    print(f"{label:44} {statistics.median(found):8.1f} ms, {min(found):.1f} to {max(found):.1f}")


def _time_commits(home: Path, count: int) -> None:
    index = LocalChunkIndex(str(home), Files())
    times = []
    for number in range(count, count + _COMMITS * _FRAMES_PER_PACK, _FRAMES_PER_PACK):
        rows = _rows(number, number + _FRAMES_PER_PACK)
        began = time.perf_counter()
        index.add_pack(_pack(number, rows), rows)
        times.append(1000 * (time.perf_counter() - began))
    index.close()
    label = f"add a pack of {_FRAMES_PER_PACK} chunks, durable"
    print(f"{label:44} {statistics.median(times):8.1f} ms, at most {max(times):.1f}")


def _forget(path: Path) -> None:
    """Have the kernel drop what it holds of a file, as after a restart of the machine."""
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    _fill(Path(sys.argv[1]), int(sys.argv[2]))
