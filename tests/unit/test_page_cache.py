"""Pages that are kept: found again, never believed, never too many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casstore.formats.layout import decode_layout
from casstore.ids import PackId, PageDigest
from casstore.wire import ChunkAt, PageRecord
from casstore_client.page_cache import PageCache
from tests.support.treebuild import build_tree, some_files

URL = "http://127.0.0.1:7433"


def records() -> list[tuple[PageDigest, PageRecord]]:
    built = build_tree(some_files(2000))
    found = []
    for page in built.pages:
        layout = built.layouts[page.ref.digest]
        places = [ChunkAt(PackId(bytes(16)), 24 + n, 100) for n in range(len(decode_layout(layout).chunks))]
        found.append((page.ref.digest, PageRecord(page.data, layout, places)))
    assert len(found) > 2
    return found


RECORDS = records()


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def test_pages_are_found_again_and_by_server(tmp_path: Path) -> None:
    cache = PageCache(tmp_path, URL)
    assert not cache.has(RECORDS[0][0])
    assert cache.get(RECORDS[0][0]) is None
    cache.put(RECORDS)
    for digest, record in RECORDS:
        assert cache.has(digest)
        assert PageCache(tmp_path, URL).get(digest) == record
    assert not PageCache(tmp_path, URL + "1").has(RECORDS[0][0])
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*") if path.is_dir())


def test_every_damaged_byte_is_found_and_the_file_goes(tmp_path: Path) -> None:
    digest, record = RECORDS[-1]
    cache = PageCache(tmp_path, URL)
    cache.put([(digest, record)])
    (path,) = files_of(tmp_path)
    data = path.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 500)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert cache.get(digest) is None, at
        assert not path.exists()
        path.write_bytes(data[:at])
        assert cache.get(digest) is None, at
        assert not path.exists()


def test_another_page_under_the_name_is_refused(tmp_path: Path) -> None:
    cache = PageCache(tmp_path, URL)
    cache.put(RECORDS[:2])
    one, other = files_of(tmp_path)
    other.replace(one)
    assert cache.get(PageDigest(bytes.fromhex(one.name))) is None


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    size = len(RECORDS[0][1].page) * 3
    cache = PageCache(tmp_path, URL, size_max_bytes=size)
    cache.put(RECORDS)
    kept = RECORDS[0][0]
    for number, path in enumerate(files_of(tmp_path)):
        os.utime(path, (number, number))
    assert cache.get(kept) is not None  # used: so it is the newest now
    cache.trim()
    left = files_of(tmp_path)
    assert 0 < len(left) < len(RECORDS)
    assert sum(path.stat().st_size for path in left) <= size
    assert cache.has(kept)
    before = left
    cache.trim()
    assert files_of(tmp_path) == before


def test_a_cache_that_cannot_be_written_keeps_nothing_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    cache = PageCache(tmp_path / "file", URL)
    cache.put(RECORDS)
    cache.trim()
    assert cache.get(RECORDS[0][0]) is None
    assert files_of(tmp_path) == [tmp_path / "file"]


def test_a_pipe_in_a_pages_place_does_not_block(tmp_path: Path) -> None:
    """Whoever may write to the folder must not be able to stop every pull."""
    digest, record = RECORDS[0]
    cache = PageCache(tmp_path, URL)
    cache.put([(digest, record)])
    (path,) = files_of(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert cache.get(digest) is None
    cache.put([(digest, record)])
    assert cache.get(digest) == record
    kept = tmp_path / "kept"
    path.rename(kept)
    path.symlink_to(kept)
    assert cache.get(digest) is None
