"""A tree of very many small files, pushed twice and pulled: time, and memory of both sides."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Final

from bench.capacity import Commands, need_space
from bench.processes import stored_bytes
from bench.scratch import discard, scratch_dir
from bench.server import BenchServer

_FILES_PER_DIRECTORY: Final = 1000
_DIRECTORIES_PER_DIRECTORY: Final = 50
_BYTES_ON_DISK: Final = 4096 + 512  # a block and a part of the inodes and directories


def run(count: int) -> None:
    """Push, push again, pull a tree of ``count`` files."""
    folder = scratch_dir()
    need_space(folder, 2 * count * _BYTES_ON_DISK)
    source, target = folder / "many-files", folder / "many-files-pulled"
    discard(source)
    discard(target)
    print(f"a tree of {count:,} small files", flush=True)
    try:
        size = _make(source, count)
        with BenchServer(folder / "server-many-files") as server:
            commands = Commands(server, size)
            pushed = commands.step("push", ["push", str(source)])
            if pushed["files"] != count:
                raise SystemExit(f"{pushed['files']} files were pushed, not {count}")
            commands.step("push again", ["push", str(source)])
            print(f"{'stored':28} {stored_bytes(server.store) / 1e6:.1f} MB for {size / 1e6:.1f} MB of content")
            pulled = commands.step("pull", ["pull", pushed["digest"], str(target)])
            if pulled["files"] != count:
                raise SystemExit(f"{pulled['files']} files were pulled, not {count}")
    finally:
        discard(source)
        discard(target)


def _make(root: Path, count: int) -> int:
    """Two levels of directories; each file says which it is.  Returns the bytes of content."""
    directories = -(-count // _FILES_PER_DIRECTORY)
    for number in range(-(-directories // _DIRECTORIES_PER_DIRECTORY)):
        (root / f"{number:03}").mkdir(parents=True)
    jobs = [
        (str(root), number, min(_FILES_PER_DIRECTORY, count - number * _FILES_PER_DIRECTORY))
        for number in range(directories)
    ]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return sum(pool.starmap(_fill, jobs, chunksize=4))


def _fill(root: str, number: int, count: int) -> int:
    where = os.path.join(root, f"{number // _DIRECTORIES_PER_DIRECTORY:03}", f"{number:04}")
    os.mkdir(where)
    total = 0
    for at in range(count):
        content = b"file %d of directory %d\n" % (at, number) * (1 + at % 8)
        descriptor = os.open(f"{where}/{at:04}.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        total += os.write(descriptor, content)
        os.close(descriptor)
    return total
