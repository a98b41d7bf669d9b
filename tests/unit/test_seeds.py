"""Seeds: what is taken is what was wanted, whatever a seed holds and whoever writes to it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import CapacityError, InvalidInput
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId, PackId, PageDigest
from casstore.wire import ChunkAt
from casstore_client import seeds as seeds_module
from casstore_client.fetch import Chunk
from casstore_client.restore import FileJob, mtime_ns
from casstore_client.seeds import PIECE_BYTES, Seed, SeedReader, open_seed
from tests.support.filetrees import make_tree, run_as_nobody

SMALL, LARGE = b"small", b"large" * PIECE_BYTES
BOTH = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


def job_of(path: bytes, data: bytes, mode: int = 0o644) -> FileJob:
    return FileJob(path, mode, len(data), BlobDigest(blake3_256(data)), [])


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "dest" / "d").mkdir(parents=True)
    return tmp_path / "dest"


def take(dest: Path, *jobs: FileJob, seeds: list[Path], link: bool = False) -> list[bool]:
    opened = [open_seed(os.fsencode(path), link=link) for path in seeds]
    fd = os.open(dest, os.O_RDONLY)
    try:
        return SeedReader(opened, fd).take(jobs)
    finally:
        os.close(fd)
        for seed in opened:
            seed.close()


def as_pulled(path: Path, data: bytes, mode: int = 0o644) -> Path:
    """A file as a pull makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.chmod(path, mode)
    os.utime(path, ns=(mtime_ns(blake3_256(data)),) * 2)
    return path


@BOTH
def test_a_file_is_copied_with_the_mode_and_time_of_a_pull(tmp_path: Path, dest: Path, data: bytes) -> None:
    make_tree(tmp_path / "seed", {b"d/f": data})
    assert take(dest, job_of(b"d/f", data, 0o4750), seeds=[tmp_path / "seed"]) == [True]
    info = os.stat(dest / "d" / "f")
    assert (dest / "d" / "f").read_bytes() == data
    assert stat.S_IMODE(info.st_mode) == 0o4750
    assert info.st_mtime_ns == mtime_ns(blake3_256(data))
    assert info.st_ino != os.stat(tmp_path / "seed" / "d" / "f").st_ino


def test_holes_of_a_seed_stay_holes(tmp_path: Path, dest: Path) -> None:
    data = b"begin" + bytes(20 * PIECE_BYTES) + b"end" + bytes(PIECE_BYTES)
    make_tree(tmp_path / "seed", {b"f": data})
    assert take(dest, job_of(b"f", data), seeds=[tmp_path / "seed"]) == [True]
    assert (dest / "f").read_bytes() == data
    assert os.stat(dest / "f").st_blocks * 512 < 4 * PIECE_BYTES


@BOTH
@pytest.mark.parametrize("link", [False, True])
def test_what_is_not_the_file_is_left_alone(tmp_path: Path, dest: Path, data: bytes, link: bool) -> None:
    """Same size and even the time that a pull gives, but other bytes; shorter; longer; nothing."""
    seed = tmp_path / "seed"
    wanted = {b"other": data, b"short": data, b"long": data, b"missing": data, b"d/missing": data, b"directory": data}
    make_tree(seed, {b"short": data[:-1], b"long": data + b"x", b"directory/x": data})
    as_pulled(seed / "other", data[:-1] + b"?")
    os.utime(seed / "other", ns=(mtime_ns(blake3_256(data)),) * 2)
    jobs = [job_of(path, content) for path, content in wanted.items()]
    assert take(dest, *jobs, seeds=[seed], link=link) == [False] * len(jobs)
    assert sorted(os.listdir(dest)) == ["d"]


def test_links_and_special_files_of_a_seed_are_not_followed_or_waited_for(tmp_path: Path, dest: Path) -> None:
    seed = tmp_path / "seed"
    make_tree(tmp_path / "outside", {b"f": SMALL})
    make_tree(seed, {b"real/f": SMALL})
    os.symlink(tmp_path / "outside" / "f", seed / "link")
    os.symlink(tmp_path / "outside", seed / "d")
    os.mkfifo(seed / "pipe")
    jobs = [job_of(path, SMALL) for path in (b"link", b"d/f", b"pipe")]
    assert take(dest, *jobs, seeds=[seed], link=True) == [False] * 3
    assert os.listdir(dest) == ["d"]
    assert os.listdir(dest / "d") == []


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    seed, dest = tmp_path / "seed", tmp_path / "dest"
    make_tree(seed, {b"secret": SMALL, b"closed/f": SMALL, b"open": SMALL})
    (seed / "secret").chmod(0)
    (seed / "closed").chmod(0)
    (dest / "closed").mkdir(parents=True)
    for directory in (dest, dest / "closed"):
        directory.chmod(0o777)
    spool, source = os.open(dest, os.O_RDONLY), os.open(seed, os.O_RDONLY)

    def work() -> None:
        jobs = [job_of(path, SMALL) for path in (b"closed/f", b"open", b"secret")]
        assert SeedReader([Seed(source, link=True)], spool).take(jobs) == [False, True, False]

    run_as_nobody(work)
    os.close(spool)
    os.close(source)
    (seed / "closed").chmod(0o700)


def test_the_first_seed_that_has_a_file_gives_it(tmp_path: Path, dest: Path) -> None:
    make_tree(tmp_path / "one", {b"a": SMALL, b"d/b": b"wrong"})
    make_tree(tmp_path / "two", {b"a": SMALL, b"d/b": SMALL})
    jobs = [job_of(b"a", SMALL), job_of(b"d/b", SMALL), job_of(b"d/c", SMALL)]
    assert take(dest, *jobs, seeds=[tmp_path / "one", tmp_path / "two"]) == [True, True, False]


# --- links -----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_link_is_made_only_of_what_a_pull_would_make(tmp_path: Path, dest: Path, data: bytes) -> None:
    seed = tmp_path / "seed"
    as_pulled(seed / "same", data)
    as_pulled(seed / "mode", data, 0o600)
    as_pulled(seed / "time", data)
    os.utime(seed / "time")
    jobs = [job_of(path, data) for path in (b"mode", b"same", b"time")]
    assert take(dest, *jobs, seeds=[seed], link=True) == [True] * 3
    linked = [name for name in ("mode", "same", "time") if os.path.samefile(seed / name, dest / name)]
    assert linked == ["same"]
    for name in ("mode", "same", "time"):
        info = os.stat(dest / name)
        assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o644, mtime_ns(blake3_256(data)))
    assert stat.S_IMODE(os.stat(seed / "mode").st_mode) == 0o600


def test_no_link_without_asking(tmp_path: Path, dest: Path) -> None:
    as_pulled(tmp_path / "seed" / "f", SMALL)
    assert take(dest, job_of(b"f", SMALL), seeds=[tmp_path / "seed"]) == [True]
    assert os.stat(tmp_path / "seed" / "f").st_nlink == 1


def test_another_users_file_is_copied_not_linked(tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could change it later."""
    file = as_pulled(tmp_path / "seed" / "f", SMALL)
    monkeypatch.setattr(seeds_module.os, "geteuid", lambda: file.stat().st_uid + 1)
    assert take(dest, job_of(b"f", SMALL), seeds=[tmp_path / "seed"], link=True) == [True]
    assert file.stat().st_nlink == 1


@BOTH
@pytest.mark.parametrize("how", ["replaced", "written"])
def test_a_file_that_changes_between_hash_and_link(
    tmp_path: Path, dest: Path, data: bytes, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is taken back; a small file was hashed in memory and comes from there, a large one is read again."""
    file = as_pulled(tmp_path / "seed" / "f", data)
    real = os.link

    def meddle(*arguments: Any, **options: Any) -> None:
        if how == "replaced":
            file.rename(tmp_path / "seed" / "before")
            file.write_bytes(b"#" * len(data))
        else:
            file.write_bytes(b"#" * len(data))
        real(*arguments, **options)

    monkeypatch.setattr(seeds_module.os, "link", meddle)
    taken = take(dest, job_of(b"f", data), seeds=[tmp_path / "seed"], link=True)
    if taken == [True]:
        assert (dest / "f").read_bytes() == data
        assert not os.path.samefile(dest / "f", file)
    else:
        assert (data, how) == (LARGE, "written")
        assert not (dest / "f").exists()


@pytest.mark.parametrize("code", [errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOENT])
def test_where_no_link_can_be_made_it_is_a_copy(
    tmp_path: Path, dest: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_pulled(tmp_path / "seed" / "f", SMALL)
    as_pulled(tmp_path / "seed" / "large", LARGE)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(seeds_module.os, "link", refuse)
    jobs = [job_of(b"f", SMALL), job_of(b"large", LARGE)]
    assert take(dest, *jobs, seeds=[tmp_path / "seed"], link=True) == [True, True]
    assert (dest / "large").read_bytes() == LARGE


def test_a_full_disk_is_not_taken_for_a_seed_without_the_file(
    tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_pulled(tmp_path / "seed" / "f", SMALL)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(seeds_module.os, "link", refuse)
    with pytest.raises(CapacityError, match="cannot write f"):
        take(dest, job_of(b"f", SMALL), seeds=[tmp_path / "seed"], link=True)


# --- reading that goes wrong -----------------------------------------------------------------------------------------


@pytest.fixture
def meddle_with_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bytes | None]], None]:
    """Replace reads of seeds: the function gets the offset, and returns what is read, or None for the truth."""
    real = os.pread

    def install(answer: Callable[[int], bytes | None]) -> None:
        def pread(fd: int, size: int, offset: int) -> bytes:
            found = answer(offset)
            return real(fd, size, offset) if found is None else found[:size]

        monkeypatch.setattr(seeds_module.os, "pread", pread)

    return install


def _fail(offset: int) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@BOTH
@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    "answer",
    [_fail, lambda offset: b"", lambda offset: b"#" * PIECE_BYTES, lambda offset: None if not offset else b""],
    ids=["unreadable", "empty", "other", "truncated"],
)
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path,
    dest: Path,
    data: bytes,
    link: bool,
    answer: Callable[[int], bytes | None],
    meddle_with_reads: Callable[[Callable[[int], bytes | None]], None],
) -> None:
    as_pulled(tmp_path / "seed" / "f", data)
    meddle_with_reads(answer)
    truncated_is_whole = data is SMALL and answer(0) is None if answer is not _fail else False
    assert take(dest, job_of(b"f", data), seeds=[tmp_path / "seed"], link=link) == [truncated_is_whole]
    assert (dest / "f").exists() is truncated_is_whole


# --- clones ----------------------------------------------------------------------------------------------------------


def _pretend_clone(out: int, _: int, source: int) -> int:
    """What FICLONE does, on a file system that lacks it."""
    os.sendfile(out, source, 0, os.fstat(source).st_size)
    return 0


def test_a_clone_is_hashed_after_it_was_made(tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So whoever writes to the seed between is found out."""
    file = as_pulled(tmp_path / "seed" / "f", LARGE)
    monkeypatch.setattr(seeds_module.fcntl, "ioctl", _pretend_clone)
    assert take(dest, job_of(b"f", LARGE), seeds=[tmp_path / "seed"]) == [True]
    assert (dest / "f").read_bytes() == LARGE
    assert os.stat(dest / "f").st_mtime_ns == mtime_ns(blake3_256(LARGE))
    (dest / "f").unlink()

    def meddle(out: int, request: int, source: int) -> int:
        file.write_bytes(b"#" * len(LARGE))
        return _pretend_clone(out, request, source)

    monkeypatch.setattr(seeds_module.fcntl, "ioctl", meddle)
    assert take(dest, job_of(b"f", LARGE), seeds=[tmp_path / "seed"]) == [False]
    assert not (dest / "f").exists()


def test_a_file_system_without_clones_is_asked_once(
    tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_pulled(tmp_path / "seed" / "a", LARGE)
    as_pulled(tmp_path / "seed" / "b", LARGE)
    asked: list[int] = []

    def refuse(out: int, *_: int) -> int:
        asked.append(out)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(seeds_module.fcntl, "ioctl", refuse)
    assert take(dest, job_of(b"a", LARGE), job_of(b"b", LARGE), seeds=[tmp_path / "seed"]) == [True, True]
    assert len(asked) == 1


# --- chunks ----------------------------------------------------------------------------------------------------------


def chunk_of(data: bytes, path: bytes, offset: int) -> Chunk:
    chunk = Chunk(ChunkId(blake3_256(data)), len(data), ChunkAt(PackId(bytes(16)), 24, 100), PageDigest(bytes(32)))
    chunk.hint = (path, offset)
    return chunk


def test_chunks_are_found_at_their_offset_only_if_they_are_there(tmp_path: Path) -> None:
    make_tree(tmp_path / "one", {b"d/f": b"aaaaXXXXcccc", b"short": b"aaaab"})
    make_tree(tmp_path / "two", {b"d/f": b"....bbbb"})
    os.mkfifo(tmp_path / "two" / "pipe")
    os.symlink(tmp_path / "one" / "short", tmp_path / "two" / "link")
    there = [chunk_of(b"aaaa", b"d/f", 0), chunk_of(b"bbbb", b"d/f", 4), chunk_of(b"cccc", b"d/f", 8)]
    absent = [
        chunk_of(b"cccc", b"d/f", 9),
        chunk_of(b"dddd", b"d/f", 1 << 40),
        chunk_of(b"bbbb", b"short", 4),
        chunk_of(b"aaaa", b"pipe", 0),
        chunk_of(b"aaaa", b"link", 0),
        chunk_of(b"aaaa", b"d", 0),
        chunk_of(b"aaaa", b"no/such", 0),
    ]
    seeds = [open_seed(os.fsencode(tmp_path / name), link=False) for name in ("one", "two")]
    assert SeedReader(seeds, -1).find_chunks(there + absent) == absent
    assert [chunk.plain for chunk in there] == [b"aaaa", b"bbbb", b"cccc"]
    assert {chunk.plain for chunk in absent} == {b""}
    for seed in seeds:
        seed.close()


def test_a_seed_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(InvalidInput, match="open the seed"):
            open_seed(os.fsencode(path), link=False)
    with pytest.raises(InvalidInput, match="open the seed"):
        open_seed(b"", link=False)
