"""The pushing side without a server: reading, cutting, bundling, pages, layouts, packs.

The judge is :mod:`tests.support.treebuild`, which does all of it in memory and in one pass.  Where the two differ, a tree's
digest depends on how it was read, or files come back as other files.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.chunking import DEFAULT_PARAMETERS, Parameters
from casstore.errors import InvalidInput, SourceChanged, Unsupported
from casstore.formats.pack import ObjectKind, PackDecoder, open_frame
from casstore.formats.tree import EntryType
from casstore.hashing import blake3_256
from casstore.wire import Chunking
from casstore_client.assemble import BlobAssembler, TreeAssembler
from casstore_client.push import open_source, parameters_of
from casstore_client.scan import Scanned, stamp_of, walk
from casstore_client.source import (
    BATCH_BYTES,
    BATCH_FILES,
    LARGE_FILE_BYTES,
    WINDOW_BYTES,
    Batch,
    FileReader,
    StreamReader,
    gather_batches,
)
from casstore_client.upload import PackBuilder
from casstore_client.workers import Budget, Workers, finish_cleanup, first_fault
from tests.support.filetrees import make_tree, odd_tree, run_as_nobody
from tests.support.treebuild import BuiltTree, build_blob, build_tree, read_directory

SMALL = Parameters(64, 256, 1024, 0, 1, 64, 64, 128)


class Result:
    """What the pipeline made of a directory."""

    def __init__(self, top: Path, parameters: Parameters = DEFAULT_PARAMETERS) -> None:
        fd = os.open(top, os.O_RDONLY)
        seen: set[bytes] = set()
        assembler = TreeAssembler(parameters, seen)
        reader = FileReader(fd, parameters, seen)
        self.chunks: dict[bytes, bytes] = {}
        self.layouts: dict[bytes, bytes] = {}
        self.pages: dict[bytes, bytes] = {}
        held = 0
        for batch in gather_batches(walk(fd)):
            held += batch.bytes
            if batch.is_large:
                stream = reader.open_large(batch)
                digest = None
                while digest is None:
                    window = stream.read_window()
                    digest = window.digest
                    held += self._take(assembler.add_window(batch.items[0], window))
                stream.close()
            else:
                held += self._take(assembler.add_batch(reader.read_batch(batch)))
        out, self.root, self.digest = assembler.finish()
        assert held + self._take(out) == 0, "bytes that were read are given back exactly once"
        os.close(fd)
        self.totals = assembler.totals

    def _take(self, out: object) -> int:
        for chunk in out.chunks:
            assert chunk.id not in self.chunks, "a chunk is handed out once"
            self.chunks[chunk.id] = chunk.data
        for page in out.pages:
            self.pages[page.digest] = page.data
            self.layouts[page.digest] = page.layout
        return -out.spent - sum(len(chunk.data) for chunk in out.chunks)


def assert_same(found: Result, built: BuiltTree) -> None:
    assert found.digest == built.digest
    assert found.root == built.root
    assert found.chunks == built.chunks
    assert found.pages == {page.ref.digest: page.data for page in built.pages}
    assert found.layouts == built.layouts


def with_root_mode(top: Path) -> dict[bytes, object]:
    os.chmod(top, 0o755)
    return read_directory(top)


def test_a_directory_becomes_the_tree_that_it_is(tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    files = with_root_mode(top)
    found = Result(top)
    assert_same(found, build_tree(files))
    assert found.totals.files == sum(1 for item in files.values() if type(item).__name__ == "File")
    assert found.totals.links == 5


def test_many_pages_whose_bundles_cross_their_borders(tmp_path: Path) -> None:
    chance = random.Random(5)
    files = {b"d%d/%d" % (n % 40, n): chance.randbytes(chance.choice((0, 1, 10, 900, 30_000))) for n in range(6000)}
    top = make_tree(tmp_path / "tree", files)
    found = Result(top)
    built = build_tree(with_root_mode(top))
    assert len(built.pages) > 5
    assert_same(found, built)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tree_with_small_parameters(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With small parameters every rule of bundles and chunks meets every other."""
    sizes = st.one_of(st.integers(0, 80), st.sampled_from([0, 63, 64, 65, 1023, 1024, 1025, 5000]))
    paths = st.sampled_from([b"a", b"a-b", b"b/x", b"b/y", b"b-c", b"c/d/e", b"c/d/f", b"d", b"e", b"f", b"g"])
    chosen = data.draw(st.dictionaries(paths, st.tuples(sizes, st.integers(0, 3)), max_size=11))
    top = tmp_path_factory.mktemp("any") / "tree"
    make_tree(top, {path: random.Random(seed).randbytes(size) for path, (size, seed) in chosen.items()})
    assert_same(Result(top, SMALL), build_tree(with_root_mode(top), parameters=SMALL))


def test_the_same_content_twice_is_one_chunk(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(LARGE_FILE_BYTES + 1)
    found = Result(make_tree(tmp_path / "tree", {b"one": data, b"two": data}))
    assert found.totals.bytes == 2 * len(data)
    assert found.totals.chunk_bytes == len(data) == sum(map(len, found.chunks.values()))


# --- reading ---------------------------------------------------------------------------------------------------------


def stream_of(path: Path, seen: set[bytes], scanned: Scanned | None = None) -> StreamReader:
    return StreamReader(lambda: os.open(path, os.O_RDONLY), DEFAULT_PARAMETERS, seen, scanned)


@pytest.mark.parametrize(
    "size", [0, 1, 65_535, 65_536, WINDOW_BYTES - 1, WINDOW_BYTES, WINDOW_BYTES + 1, 3 * WINDOW_BYTES]
)
@pytest.mark.parametrize("known", [True, False])
def test_a_stream_is_cut_like_the_whole(tmp_path: Path, size: int, known: bool) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "blob").write_bytes(data)
    fd, scanned = open_source(os.fsencode(tmp_path / "blob"))
    os.close(fd)
    reader = stream_of(tmp_path / "blob", set(), scanned if known else None)
    assembler = BlobAssembler(reader._seen)  # type: ignore[arg-type]
    chunks: dict[bytes, bytes] = {}
    digest = None
    while digest is None:
        window = reader.read_window()
        digest = window.digest
        chunks.update((chunk.id, chunk.data) for chunk in assembler.add_window(window).chunks)
    reader.close()
    built = build_blob(data)
    assert (digest, chunks, assembler.finish()) == (built.digest, built.chunks, built.layout)


def scan_one(path: Path) -> Scanned:
    info = os.lstat(path)
    return Scanned(os.fsencode(path.name), EntryType.FILE, 0o644, info.st_size, b"", stamp_of(info))


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"!")


def _rewrite(path: Path) -> None:
    info = os.stat(path)
    path.write_bytes(b"\xaa" * info.st_size)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))  # hides it from those who look at mtime alone


def _swap(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.rename(other, path)


def _become_a_link(path: Path) -> None:
    path.unlink()
    os.symlink("/etc/passwd", path)


def _become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("how", [_append, _rewrite, _swap, _become_a_link, _become_a_pipe, os.unlink])
@pytest.mark.parametrize("size", [100, 100_000, 6_000_000])
def test_a_file_that_does_not_hold_still_is_named(tmp_path: Path, how: Callable[[Path], None], size: int) -> None:
    """Else a tree is committed that never existed."""
    path = tmp_path / "moving"
    path.write_bytes(bytes(size))
    scanned = scan_one(path)
    how(path)
    fd = os.open(tmp_path, os.O_RDONLY)
    reader = FileReader(fd, DEFAULT_PARAMETERS, set())
    batch = Batch([scanned], size, 1)
    read = reader.open_large(batch).read_window if batch.is_large else partial(reader.read_batch, batch)
    with pytest.raises(SourceChanged, match="moving") as caught:
        read()
    assert caught.value.path == "moving"
    os.close(fd)


@pytest.mark.parametrize("how", [_append, _rewrite, lambda path: os.truncate(path, 5_000_000)])
def test_a_large_file_that_changes_between_windows(tmp_path: Path, how: Callable[[Path], None]) -> None:
    path = tmp_path / "moving"
    path.write_bytes(random.Random(1).randbytes(2 * WINDOW_BYTES))
    fd = os.open(tmp_path, os.O_RDONLY)
    reader = FileReader(fd, DEFAULT_PARAMETERS, set()).open_large(Batch([scan_one(path)], 2 * WINDOW_BYTES, 1))
    reader.read_window()
    how(path)
    with pytest.raises(SourceChanged, match="moving"):
        reader.read_window()
    reader.close()
    os.close(fd)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    os.chmod(tmp_path / "secret", 0)
    scanned = scan_one(tmp_path / "secret")
    fd = os.open(tmp_path, os.O_RDONLY)

    def work() -> None:
        with pytest.raises(InvalidInput, match="cannot read secret: Permission denied"):
            FileReader(fd, DEFAULT_PARAMETERS, set()).read_batch(Batch([scanned], 1, 1))

    run_as_nobody(work)
    os.close(fd)


def test_batches_are_bounded(tmp_path: Path) -> None:
    sizes = [1] * (BATCH_FILES + 5) + [BATCH_BYTES - 1, 2, 0, LARGE_FILE_BYTES + 1, 0, LARGE_FILE_BYTES]
    walked = [Scanned(b"%d" % n, EntryType.FILE, 0o644, size, b"", None) for n, size in enumerate(sizes)]
    batches = list(gather_batches(walked))
    assert [item for batch in batches for item in batch.items] == walked
    for batch in batches:
        assert len(batch.items) <= BATCH_FILES
        assert batch.bytes <= BATCH_BYTES or batch.is_large
    assert sum(batch.is_large for batch in batches) == 1


@pytest.mark.parametrize("path", ["missing", "pipe", "/dev/null"])
def test_what_cannot_be_pushed_is_named(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput, match=os.path.basename(path)):
        open_source(os.fsencode(tmp_path / path))


# --- packs -----------------------------------------------------------------------------------------------------------


def test_packs_hold_what_was_put_in() -> None:
    chance = random.Random(3)
    plains = [chance.randbytes(chance.randrange(1, 1 << 20)) for _ in range(60)] + [bytes(1 << 20), b"x"]
    objects = [(ObjectKind.CHUNK, blake3_256(plain), plain) for plain in plains]
    builder = PackBuilder()
    packs = [sealed for start in range(0, len(objects), 5) for sealed in builder.put(objects[start : start + 5])]
    packs += builder.finish()
    assert builder.finish() == []
    assert len(packs) > 1
    found = []
    for sealed in packs:
        decoder = PackDecoder(sealed.pack)
        frames = [frame for part in sealed.parts for frame in decoder.feed(part)]
        assert decoder.finish().size == sealed.size
        assert len(frames) == sealed.frames
        found += [(frame.kind, frame.id, open_frame(frame)) for frame in frames]
    assert found == objects


# --- threads and budgets ---------------------------------------------------------------------------------------------


async def test_a_budget_lets_through_what_fits() -> None:
    budget = Budget(100)
    await budget.acquire(60)
    second = asyncio.create_task(budget.acquire(60))
    await asyncio.sleep(0)
    assert not second.done()
    budget.release(30)
    await second
    budget.release(90)
    await asyncio.wait_for(budget.acquire(1000), 5)  # more than there is: gets all there is, rather than none for ever


async def test_when_the_workers_end_nothing_runs_any_more() -> None:
    """Whoever closes a descriptor afterwards must not pull it away from under a thread."""
    running: list[bool] = []
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        running.append(True)
        loop.call_soon_threadsafe(begun.set)
        sum(i * i for i in range(300_000))
        running.pop()

    async def operation() -> None:
        async with Workers() as workers:
            await workers.run(work)

    task = asyncio.create_task(operation())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running == []


async def test_cleaning_up_is_finished_before_a_cancellation_goes_on() -> None:
    done: list[bool] = []
    gate = asyncio.Event()

    async def cleanup() -> None:
        await gate.wait()
        done.append(True)

    task = asyncio.create_task(finish_cleanup(cleanup()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


def test_the_first_fault_of_a_group_of_groups() -> None:
    fault = InvalidInput("this")
    assert first_fault(ExceptionGroup("", [ExceptionGroup("", [fault, ValueError()]), TypeError()])) is fault


# --- how the store wants content cut ---------------------------------------------------------------------------------


def chunking(**changes: object) -> Chunking:
    values: dict[str, object] = {
        "algorithm": "fastcdc-2020",
        "min_bytes": 65_536,
        "avg_bytes": 262_144,
        "max_bytes": 1_048_576,
        "seed": 0,
        "normalization": 1,
        "small_file_bytes": 65_536,
        "bundle_cut_min_bytes": 65_536,
        "bundle_cut_divisor_bytes": 131_072,
        "compression": "zstd",
    }
    return Chunking(**{**values, **changes})  # type: ignore[arg-type]


def test_parameters_of_a_store() -> None:
    assert parameters_of(chunking()) == DEFAULT_PARAMETERS
    assert parameters_of(chunking(avg_bytes=131_072)).avg_bytes == 131_072


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "rabin"},
        {"compression": "lz4"},
        {"max_bytes": 1_048_577},
        {"min_bytes": 0},
        {"small_file_bytes": 1_048_577},
    ],
)
def test_parameters_that_this_client_cannot_follow(changes: dict[str, object]) -> None:
    with pytest.raises(Unsupported):
        parameters_of(chunking(**changes))
