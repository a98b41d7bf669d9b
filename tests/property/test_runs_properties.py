"""File runs under Hypothesis: round trips, rubbish, and hashing in whatever order chunks come in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.engine.file_runs import PackRuns, PushRuns, RunsRoom
from casstore.engine.proving import Bundles, LargeFile, Slice
from casstore.errors import InvalidInput
from casstore.formats.layout import Extent, Layout
from casstore.hashing import blake3_256
from casstore.ids import ChunkId, PackId
from casstore.storage.roles import Location
from casstore.wire import BundleRun, FileRun, Runs, decode_runs, encode_runs

IDS = st.integers(0, 40).map(lambda number: blake3_256(b"%d" % number))
BUNDLES = st.builds(BundleRun, IDS, st.lists(st.integers(0, 0xFFFF), max_size=9).map(tuple))
FILES = st.builds(
    FileRun, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans(), st.lists(IDS, min_size=1, max_size=9)
)
PLACE = Location(PackId(bytes(16)), 24, 1, 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(BUNDLES, max_size=5), st.lists(FILES, max_size=5))
def test_any_runs_round_trip(bundles: list[BundleRun], files: list[FileRun]) -> None:
    data = encode_runs(Runs(bundles, files))
    assert (data == b"") == (not bundles and not files)
    if data:
        assert decode_runs(data) == Runs(bundles, files)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120).map(lambda rest: b"CASU\x01" + rest) | st.binary(max_size=40))
def test_rubbish_is_refused_or_is_runs(data: bytes) -> None:
    try:
        runs = decode_runs(data)
    except InvalidInput:
        return
    assert encode_runs(runs) == data or (runs == Runs([], []) and data == b"CASU\x01" + bytes(8))


def test_runs_with_any_byte_changed_are_refused_or_are_others() -> None:
    runs = Runs([BundleRun(bytes(32), (3, 70))], [FileRun(1, 2, True, [bytes(32), b"\1" * 32])])
    data = encode_runs(runs)
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            try:
                assert decode_runs(bytes(changed)) != runs
            except InvalidInput:
                continue


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_the_order_only_the_truth_is_proven(data: st.DataObject) -> None:
    """Packs of a push come in side by side: an order that proves a wrong file would be worse than no proof."""
    files = data.draw(st.lists(st.lists(st.binary(min_size=1, max_size=9), min_size=2, max_size=6), max_size=4))
    small = data.draw(st.lists(st.binary(min_size=1, max_size=9), max_size=6))
    known: dict[bytes, bytes] = {blake3_256(chunk): chunk for file in files for chunk in file}
    bundle = b"".join(small)
    proven = PushRuns(RunsRoom())
    runs = Runs(
        [BundleRun(blake3_256(bundle), [len(part) for part in small])] if small else [],
        [FileRun(number, 0, True, [blake3_256(chunk) for chunk in file]) for number, file in enumerate(files)],
    )
    pack = PackRuns(proven, runs)
    arrivals = [*known.items(), *([(blake3_256(bundle), bundle)] if small else [])]
    for chunk, plain in data.draw(st.permutations(arrivals)):
        pack.take(chunk, plain)
    table = sorted(known)
    layout = Layout([(ChunkId(id), len(known[id])) for id in table], [])
    for file in files:
        content = b"".join(file)
        extents = [Extent(table.index(blake3_256(chunk)), 0, len(chunk)) for chunk in file]
        truth = LargeFile(b"f", blake3_256(content), extents, layout, [PLACE] * len(table))
        lie = truth._replace(digest=blake3_256(b"!" + content))
        other = truth._replace(extents=extents[:-1])
        assert not proven.has(lie)
        assert not proven.has(other) or any(b"".join(file[:-1]) == b"".join(longer) for longer in files)
        if len({chunk for file in files for chunk in file}) == sum(map(len, files)):
            assert proven.has(truth)
    offset, slices = 0, []
    for part in small:
        slices.append(Slice(offset, len(part), blake3_256(part), b"p"))
        offset += len(part)
    where = (blake3_256(bundle), PLACE)
    for start in range(len(slices)):
        assert proven.has(Bundles([where], [slices[start:]]))
        wrong = slices[start]._replace(digest=bytes(32))
        assert not proven.has(Bundles([where], [[wrong]]))
    proven.close()
    if slices:
        assert not proven.has(Bundles([where], [slices]))
