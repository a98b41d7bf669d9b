"""One large file, half of it compressible, pushed and pulled: time, and memory of both sides."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Final

from blake3 import blake3

from bench.capacity import Commands, need_space
from bench.processes import stored_bytes
from bench.scratch import discard, scratch_dir
from bench.server import BenchServer

_PIECE: Final = 512 * 1024
_SLICE: Final = 2048


def run(size: int) -> None:
    """Push a file of ``size`` bytes, remove it, pull it, and compare digests."""
    folder = scratch_dir()
    need_space(folder, int(1.8 * size))  # the store beside the file, and later beside what was pulled
    source, target = folder / "big-file", folder / "big-file-pulled"
    discard(source)
    discard(target)
    print(f"one file of {size / 1e9:.1f} GB, half of it compressible", flush=True)
    try:
        digest = _make(source, size)
        with BenchServer(folder / "server-big-file") as server:
            commands = Commands(server, size)
            pushed = commands.step("push", ["push", str(source)])
            if pushed["digest"] != f"blake3:{digest}":
                raise SystemExit(f"pushed {pushed['digest']}, not {digest}")
            commands.step("push again", ["push", str(source)])
            source.unlink()
            print(f"{'stored':28} {stored_bytes(server.store) / 1e9:.2f} GB")
            commands.step("pull", ["pull", pushed["digest"], str(target)])
            if _digest(target) != digest:
                raise SystemExit("what was pulled is not what was pushed")
    finally:
        discard(source)
        discard(target)


def _make(path: Path, size: int) -> str:
    """Pieces of noise and pieces of words in turn; no piece twice, so nothing is deduplicated away."""
    draw = random.Random(1)
    words = b"".join(p.read_bytes() for p in sorted(Path(__file__).parents[1].glob("casstore/**/*.py")))
    hasher = blake3()
    with path.open("wb") as stream:
        left = size
        turn = 0
        while left:
            if turn % 2:
                places = [draw.randrange(len(words) - _SLICE) for _ in range(_PIECE // _SLICE)]
                piece = b"".join([words[at : at + _SLICE] for at in places])
            else:
                piece = os.urandom(_PIECE)
            piece = piece[:left]
            stream.write(piece)
            hasher.update(piece)
            left -= len(piece)
            turn += 1
    return hasher.hexdigest()


def _digest(path: Path) -> str:
    hasher = blake3()
    hasher.update_mmap(path)
    return hasher.hexdigest()
