"""The stat cache: believed only where nothing can have changed unseen, and absent where it is not exactly what was written.

If it says too much, a push commits a tree that is not what the directory holds; if it breaks, a push fails for want of nothing.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from casstore.chunking import DEFAULT_PARAMETERS, Parameters
from casstore.hashing import blake3_256
from casstore.ids import ChunkId
from casstore_client import stat_cache
from casstore_client.listing import Fingerprint, Stamp, list_directory, look_again, stamp_of
from casstore_client.scan import walk
from casstore_client.stat_cache import (
    RACY_NS,
    CachePlace,
    CacheWriter,
    StatCache,
    Summary,
    bundle_key,
    locate_cache,
    prune_caches,
)
from tests.support.filetrees import make_tree, odd_tree

NOW_NS = 1_800_000_000_000_000_000
OLD: Stamp = (1, 2, 3, NOW_NS - 10 * RACY_NS, NOW_NS - 10 * RACY_NS)


def place(folder: Path, directory: bytes = b"/some/where") -> CachePlace:
    return CachePlace(folder / "stat", directory, DEFAULT_PARAMETERS)


def summary(marks: bytes = b"m" * 16, directory: bytes = b"/some/where") -> Summary:
    return Summary(directory, tuple(DEFAULT_PARAMETERS), marks, b"root", 1, 2, 3, 4, 5, 6)


def digest(number: int) -> bytes:
    return blake3_256(b"%d" % number)


def write(where: CachePlace, files: int = 3000) -> None:
    writer = CacheWriter(where, NOW_NS)
    for number in range(files):
        chunks = [(ChunkId(digest(-number)), 70_000), (ChunkId(digest(number + 1)), 1)] if number % 7 == 0 else []
        writer.add_file(b"%06d" % number, (*OLD[:2], number, *OLD[3:]), digest(number), chunks)
        writer.add_bundle(bundle_key([digest(number)]), digest(2 * number))
    writer.commit(summary())


def test_what_was_written_is_found(tmp_path: Path) -> None:
    write(place(tmp_path))
    cache = StatCache.open(place(tmp_path))
    assert cache is not None
    assert cache.summary == summary()
    for number in range(0, 3000, 3):
        path, stamp = b"%06d" % number, (*OLD[:2], number, *OLD[3:])
        assert cache.find_file(path, (*OLD[:2], number + 1, *OLD[3:])) is None, "another stamp is another file"
        known = cache.find_file(path, stamp)
        assert known is not None
        assert known.digest == digest(number)
        assert len(known.chunks) == (2 if number % 7 == 0 else 0)
        chunk = cache.find_bundle(bundle_key([digest(number)]))
        assert chunk == digest(2 * number)
        assert cache.find_file(path + b"-", stamp) is None
    assert cache.find_file(b"1", OLD) is None
    assert cache.find_bundle(bundle_key([digest(5000)])) is None
    cache.close()


@pytest.mark.parametrize("field", range(5))
def test_each_part_of_a_stamp_counts(tmp_path: Path, field: int) -> None:
    writer = CacheWriter(place(tmp_path), NOW_NS)
    writer.add_file(b"a", OLD, digest(1), [])
    writer.commit(summary())
    cache = StatCache.open(place(tmp_path))
    assert cache is not None
    other = list(OLD)
    other[field] += 1
    assert cache.find_file(b"a", tuple(other)) is None  # type: ignore[arg-type]
    assert cache.find_file(b"a", OLD) is not None
    cache.close()


@pytest.mark.parametrize(
    ("ctime_ns", "kept"),
    [
        (NOW_NS - RACY_NS - 1, True),
        (NOW_NS - RACY_NS, False),
        (NOW_NS - 1, False),
        (NOW_NS, False),
        (NOW_NS + 10**15, False),
    ],
)
def test_a_file_that_changed_when_the_walk_began_is_not_believed(tmp_path: Path, ctime_ns: int, kept: bool) -> None:
    """Its next change may have the same time.  The time of modification says nothing: anybody may set it."""
    writer = CacheWriter(place(tmp_path), NOW_NS)
    stamp = (*OLD[:4], ctime_ns)
    writer.add_file(b"a", stamp, digest(1), [])
    assert writer.young == (0 if kept else 1)
    writer.commit(summary())
    cache = StatCache.open(place(tmp_path))
    assert cache is not None
    assert (cache.find_file(b"a", stamp) is not None) is kept
    cache.close()


def test_nothing_that_is_damaged_is_believed(tmp_path: Path) -> None:
    """Every byte flipped, every length cut: what is still found is right, and nothing is raised."""
    where = place(tmp_path)
    write(where, 6)
    good = where.path.read_bytes()
    bytewise = [good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :] for at in range(len(good))]
    cut = [good[:at] for at in range(len(good))] + [good + b"x"]
    found = 0
    for data in bytewise + cut:
        where.path.write_bytes(data)
        cache = StatCache.open(where)
        if cache is None:
            continue
        assert cache.summary == summary()
        for number in range(6):
            known = cache.find_file(b"%06d" % number, (*OLD[:2], number, *OLD[3:]))
            assert known is None or known.digest == digest(number)
            chunk = cache.find_bundle(bundle_key([digest(number)]))
            assert chunk is None or chunk == digest(2 * number)
            found += known is not None
        cache.close()
    assert found > 0, "damage to the bundles leaves the files usable"


def test_a_cache_of_someone_else_is_not_believed(tmp_path: Path) -> None:
    where = place(tmp_path)
    write(where)
    for mode, believed in ((0o600, True), (0o644, True), (0o620, False), (0o602, False)):
        os.chmod(where.path, mode)
        cache = StatCache.open(where)
        assert (cache is not None) is believed
        if cache is not None:
            cache.close()
    os.chmod(where.path, 0o600)
    os.rename(where.path, place(tmp_path, b"/else/where").path)
    assert StatCache.open(place(tmp_path, b"/else/where")) is None, "moved from another directory's place"
    os.symlink(place(tmp_path, b"/else/where").path, where.path)
    assert StatCache.open(where) is None


def test_no_place_to_write_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "stat").write_bytes(b"a file where the folder should be")
    write(place(tmp_path))
    assert StatCache.open(place(tmp_path)) is None
    assert os.listdir(tmp_path) == ["stat"]


def test_a_push_that_is_not_committed_leaves_the_cache_that_was(tmp_path: Path) -> None:
    where = place(tmp_path)
    write(where)
    before = where.path.read_bytes()
    writer = CacheWriter(where, NOW_NS)
    writer.add_file(b"a", OLD, digest(1), [])
    writer.discard()
    assert where.path.read_bytes() == before
    assert os.listdir(where.folder) == [where.path.name]


def test_a_cache_that_grows_too_large_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stat_cache, "CACHE_MAX_BYTES", 100_000)
    write(place(tmp_path))
    assert os.listdir(tmp_path / "stat") == []


def test_old_caches_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_000_000_000.0
    for name, size, age_s in (
        ("new.stat", 10, 0),
        ("used.stat", 50, 100),
        ("less.stat", 50, 200),
        ("forgotten.stat", 1, stat_cache.UNUSED_MAX_S + 1),
        ("running.1-a.tmp", 1, 100),
        ("killed.1-a.tmp", 1, stat_cache.ABANDONED_S + 1),
        ("foreign", 1, 10**9),
    ):
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (now_s - age_s, now_s - age_s))
    monkeypatch.setattr(stat_cache, "CACHES_MAX_BYTES", 100)
    prune_caches(tmp_path, keep="new.stat", now_s=now_s)
    assert sorted(os.listdir(tmp_path)) == ["foreign", "new.stat", "running.1-a.tmp", "used.stat"]


def test_where_the_cache_is(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.symlink("tree", tmp_path / "link")
    environ = {"CASSTORE_CACHE_DIR": str(tmp_path / "cache")}
    found = locate_cache(os.fsencode(tmp_path / "link"), DEFAULT_PARAMETERS, environ)
    assert found is not None
    assert found.path.parent == tmp_path / "cache" / "stat"
    assert found == locate_cache(os.fsencode(tmp_path / "tree" / "."), DEFAULT_PARAMETERS, environ)
    others = [
        locate_cache(os.fsencode(tmp_path), DEFAULT_PARAMETERS, environ),
        locate_cache(os.fsencode(tmp_path / "tree"), Parameters(avg_bytes=131_072), environ),
    ]
    assert len({other.path for other in others if other} | {found.path}) == 3
    xdg = locate_cache(b"/", DEFAULT_PARAMETERS, {"XDG_CACHE_HOME": str(tmp_path)})
    assert xdg is not None
    assert xdg.folder == tmp_path / "casstore" / "stat"


# --- fingerprints ----------------------------------------------------------------------------------------------------


def take(top: Path) -> bytes:
    fd = os.open(top, os.O_RDONLY)
    fingerprint = Fingerprint(b"seed")
    list(walk(fd, None, fingerprint.add))
    os.close(fd)
    return fingerprint.finish()


def is_same(top: Path, marks: bytes, seed: bytes = b"seed") -> bool:
    fd = os.open(top, os.O_RDONLY)
    try:
        return look_again(fd, seed, marks, None)
    finally:
        os.close(fd)


def test_a_directory_is_the_same_until_something_is_touched(tmp_path: Path) -> None:
    top = odd_tree(tmp_path / "tree")
    make_tree(top, {b"wide/%d/f" % n: b"x" for n in range(100)})
    marks = take(top)
    assert is_same(top, marks)
    assert not is_same(top, marks, b"other")
    assert not is_same(top, b"")

    def touched(path: str) -> bool:
        nonlocal marks
        differs = not is_same(top, marks)
        marks = take(top)
        return differs and is_same(top, marks)

    (top / "wide" / "57" / "f").write_bytes(b"y")
    assert touched("content")
    os.utime(top / "a-b", ns=(0, 0))
    assert touched("time")
    os.chmod(top / "dir" / "x", 0o600)
    assert touched("mode")
    os.chmod(top / "dir", 0o700)
    assert touched("mode of a directory")
    (top / "dangling").unlink()
    assert touched("removed")
    os.rename(top / "dir" / "x", top / "dir" / "y")
    assert touched("renamed")
    os.mkdir(top / "wide" / "99" / "new")
    assert touched("new directory")


def test_times_that_no_clock_shows(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x")
    os.utime(tmp_path / "old", ns=(-(10**18), -(10**18)))
    stamps = {entry.path: entry.stamp for entry in walk(os.open(tmp_path, os.O_RDONLY))}
    assert stamps[b"old"] == stamp_of(os.stat(tmp_path / "old"))
    assert is_same(tmp_path, take(tmp_path))


def test_a_stamp_is_the_same_in_a_small_and_in_a_large_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from casstore_client import listing as module
    from casstore_client.beneath import Beneath

    chance = random.Random(1)
    names = {bytes(chance.choice(b"ab\xff\xc3\x9f\xee") for _ in range(chance.randrange(1, 6))) for _ in range(60)}
    make_tree(tmp_path, dict.fromkeys(names, b""))
    fd = os.open(tmp_path, os.O_RDONLY)
    with Beneath(fd) as below:
        small = list_directory(below, b"")
        assert small.names == sorted(names)
        monkeypatch.setattr(module, "EAGER_ENTRIES_MAX", 7)
        assert list_directory(below, b"") == small
    os.close(fd)
