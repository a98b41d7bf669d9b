"""One flipped bit in an LMDB file, and what comes of it, each in a process of its own that may die of it.

Owns the small store whose files are flipped, the map of what each byte of a file is, and the judgement of one flip.  Run by
:mod:`tests.crash.test_lmdb_flips`, in processes that were spawned and hold no threads, so that they may fork.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from casstore.admin import fsck_directory
from casstore.clock import ManualClock
from casstore.errors import CasstoreError
from casstore.formats.pack import ObjectKind
from casstore.storage.local.files import Files
from casstore.storage.local.index_rows import TABLES
from casstore.storage.local.lmdb_pages import check_pages
from casstore.storage.roles import Table
from casstore.store import Store
from tests.crash.lifetime import Life, Script, send_pack, sending_of

NAMES: Final = ("index", "ledger")
WORKERS: Final = 2
HANG_S: Final = 20
DIED: Final = "found: the process died"
FOUND: Final = "found by fsck"
OPENED: Final = "found when opened"
REFUSED: Final = "refused with a sentence"
NO_EFFECT: Final = "without effect"
PROVEN_AGAIN: Final = "without effect but that something is proven again"
MEMOS: Final = frozenset({"memo", "file-memo"})
NOT_FOUND: Final = "not found"
WORSE: Final = "not found, and a commit made it worse"
Rows = dict[tuple[str, bytes], bytes]


class Flip(NamedTuple):
    """One bit of a data file."""

    name: str
    at: int
    bit: int


class Extent(NamedTuple):
    """A run of bytes that means something."""

    start: int
    stop: int
    what: str
    table: str


class Ended(NamedTuple):
    """How one flip ended: what was found, or which rows differ and nobody says so."""

    flip: Flip
    end: str
    detail: str


def make_store(directory: Path) -> None:
    """A store that has lived, with rows in every table that a store of today writes."""
    script = Script(str(directory))
    life = Life(script, str(directory), Files())
    assert not life.errors
    with script.open(str(directory), Files(), seed=7) as store:
        index, three = store.packs.index, sending_of("three")
        send_pack(store, three)
        ids = [bytes(id) for kind, id, _ in three.tree.objects() if kind is ObjectKind.CHUNK]
        index.condemn(
            ObjectKind.CHUNK, [id for id in ids if id not in script.sendings["push one"].tree.chunks], at_ms=9, mark=1
        )
        index.write_note("scrub", b"as far as here")


def map_of(path: Path) -> list[Extent]:
    """What the bytes of a sound data file mean; all others lie on free pages, in gaps, or mean nothing."""
    found: list[Extent] = []
    data = path.read_bytes()
    check_pages(
        lambda offset, length: data[offset : offset + length],
        len(data),
        str(path),
        path.parent.name,
        seen=lambda start, stop, what, table: found.append(Extent(start, stop, what, table.decode())),
    )
    return found


def data_of(directory: Path, name: str) -> Path:
    return directory / name / "data.mdb"


def judge_all(template: Path, scratch: Path, flips: Sequence[Flip]) -> list[Ended]:
    """Judge every flip, on a copy of the store a worker."""
    parts = [(template, scratch / f"worker-{number}", list(flips[number::WORKERS])) for number in range(WORKERS)]
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        return [ended for part in pool.map(judge_some, *zip(*parts, strict=True)) for ended in part]


def judge_some(template: Path, directory: Path, flips: Sequence[Flip]) -> list[Ended]:
    """The body of a worker."""
    shutil.copytree(template, directory)
    good = {name: data_of(directory, name).read_bytes() for name in NAMES}
    before = read_rows(directory)
    known = errors_of(directory)
    found = []
    for flip in flips:
        data = bytearray(good[flip.name])
        data[flip.at] ^= 1 << flip.bit
        data_of(directory, flip.name).write_bytes(data)
        found.append(Ended(flip, *judge_in_child(directory, before, known)))
        for name in NAMES:
            data_of(directory, name).write_bytes(good[name])
    shutil.rmtree(directory)
    return found


def errors_of(directory: Path) -> set[tuple[str, str]]:
    report = fsck_directory(directory, full=True)
    return {(finding.code, finding.object) for finding in report.findings if finding.severity == "error"}


def judge_in_child(directory: Path, before: Rows, known: set[tuple[str, str]]) -> tuple[str, str]:
    """Fork, judge there, and tell how it went; a child that dies has told so as well."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(HANG_S)
        try:
            told = "\0".join(judge(directory, before, known))
        except BaseException as error:  # noqa: BLE001  (told to the parent, which fails the test)
            told = f"traceback\0{error!r}"
        os.write(writer, told.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return DIED, signal.Signals(os.WTERMSIG(status)).name
    end, detail = told.split("\0", 1)
    return end, detail


def judge(directory: Path, before: Rows, known: set[tuple[str, str]]) -> tuple[str, str]:
    """What fsck, opening and reading make of it."""
    try:
        new = errors_of(directory) - known
        if new:
            return FOUND, sorted(new)[0][0]
        with Store.open(directory, clock=ManualClock(), randomness=random.Random(8).randbytes) as store:
            if store.read_only is not None:
                return OPENED, store.read_only
        after = read_rows(directory)
        if after == before:
            with Store.open(directory, clock=ManualClock(), randomness=random.Random(8).randbytes) as store:
                # A commit takes free pages into use.
                store.tokens.create("later", ["operate"])
                store.packs.index.write_note("later", b"note")
            new = errors_of(directory) - known
            later = {key: value for key, value in read_rows(directory).items() if key in before}
            later["notes", b"scrub"] = before["notes", b"scrub"]
            return (
                (NO_EFFECT, "")
                if not new and later == before
                else ("not found before a commit made it worse", str(new))
            )
    except CasstoreError as error:
        return REFUSED, error.code
    tables = {table for (table, _), _ in {*before.items()} ^ {*after.items()}}
    if tables <= MEMOS:
        return PROVEN_AGAIN, ""
    return NOT_FOUND, ", ".join(sorted(tables))


def read_rows(directory: Path) -> Rows:
    """Every row of every table."""
    found: Rows = {}
    with Store.open(directory, clock=ManualClock(), randomness=random.Random(8).randbytes) as store:
        with store._parts.ledger.read() as view:
            for table in Table:
                found |= {(table.value, key): value for key, value in view.scan(table, limit=1 << 20)}
        environment = store.packs.index._environment  # type: ignore[attr-defined]
        with environment.read() as transaction:
            for name in TABLES:
                with transaction.cursor(environment.tables[name]) as cursor:
                    found |= {(name.decode(), key): value for key, value in cursor}
    return found


def one_bit_of_each(extents: Sequence[Extent], name: str) -> Iterator[Flip]:
    """One bit of every byte that means something, another one from byte to byte."""
    for at in sorted({at for extent in extents for at in range(extent.start, extent.stop)}):
        yield Flip(name, at, (at * 5 + 3) % 8)
