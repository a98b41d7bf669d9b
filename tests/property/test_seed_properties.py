"""Any mixture of seeds gives the tree that a pull without seeds gives."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.formats.tree import EntryType, TreeEntry
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId, PackId, PageDigest
from casstore.wire import ChunkAt
from casstore_client.fetch import Chunk
from casstore_client.restore import FileJob, Part, TreeWriter, mtime_ns
from casstore_client.seeds import PIECE_BYTES, SeedReader, open_seed
from tests.support.filetrees import read_tree

FILES = {
    b"a": (b"a", 0o644),
    b"d/b": (b"b" * 1000, 0o755),
    b"d/e/c": (b"c" * 70_000, 0o400),
    b"d/large": (b"large" + bytes(PIECE_BYTES) + b"end", 0o644),
    b"z": (b"z", 0o4755),
}
DIRECTORIES = [TreeEntry(path, EntryType.DIRECTORY, 0o755) for path in (b"", b"d", b"d/e")]
STATES = [
    "missing",
    "pulled",
    "other mode",
    "other time",
    "other content",
    "shorter",
    "longer",
    "link",
    "loop",
    "pipe",
    "directory",
]
Seeds = list[tuple[bool, dict[bytes, str]]]
seeds_strategy = st.lists(
    st.tuples(st.booleans(), st.fixed_dictionaries({path: st.sampled_from(STATES) for path in FILES})), max_size=3
)


def _make(path: Path, state: str, data: bytes, mode: int) -> None:
    if state == "missing":
        return
    if state in ("link", "loop"):
        aside = path.with_name(path.name + "-aside")
        aside.write_bytes(data)
        os.symlink(aside if state == "link" else path.name, path)
        return
    if state == "pipe":
        os.mkfifo(path)
        return
    if state == "directory":
        path.mkdir()
        return
    changed = {"other content": b"#" * len(data), "shorter": data[:-1], "longer": data + b"#"}
    path.write_bytes(changed.get(state, data))
    os.chmod(path, 0o666 if state == "other mode" else mode)
    time_ns = 10**18 if state == "other time" else mtime_ns(blake3_256(data))
    os.utime(path, ns=(time_ns, time_ns))


def _job(path: bytes, data: bytes, mode: int) -> FileJob:
    chunk = Chunk(ChunkId(blake3_256(data)), len(data), ChunkAt(PackId(bytes(16)), 24, 100), PageDigest(bytes(32)))
    chunk.plain = data
    return FileJob(path, mode, len(data), BlobDigest(blake3_256(data)), [Part(chunk, 0, len(data))])


def _restore(top: Path, seeds: list[tuple[bool, Path]]) -> list[bool]:
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    opened = [open_seed(os.fsencode(path), link=link) for link, path in seeds]
    writer = TreeWriter(fd)
    jobs = [_job(path, data, mode) for path, (data, mode) in FILES.items()]
    try:
        writer.make_directories(DIRECTORIES)
        taken = SeedReader(opened, fd).take(jobs)
        writer.write_files([job for job, is_taken in zip(jobs, taken, strict=True) if not is_taken])
        writer.set_directory_modes(DIRECTORIES)
    finally:
        for seed in opened:
            seed.close()
        os.close(fd)
    return taken


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seeds_strategy)
def test_any_mixture_of_seeds_gives_the_same_tree(seeds: Seeds) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        made: list[tuple[bool, Path]] = []
        for number, (link, states) in enumerate(seeds):
            seed = top / f"seed-{number}"
            (seed / "d" / "e").mkdir(parents=True)
            for path, state in states.items():
                _make(seed / os.fsdecode(path), state, *FILES[path])
            made.append((link, seed))
        before = [read_files(path) for _, path in made]
        taken = _restore(top / "with", made)
        _restore(top / "without", [])
        assert read_tree(top / "with") == read_tree(top / "without")
        times = [
            [os.stat(top / where / os.fsdecode(path)).st_mtime_ns for path in FILES] for where in ("with", "without")
        ]
        assert times[0] == times[1]
        # What has the content is used, whatever its mode and time; and no seed is changed.
        usable = {"pulled", "other mode", "other time"}
        assert taken == [any(states[path] in usable for _, states in seeds) for path in FILES]
        assert [read_files(path) for _, path in made] == before


def read_files(seed: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of the regular files."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(seed.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
