"""One bit of what lies on the disk turns over, anywhere.

The promise under test: nothing wrong is ever handed out as right, and fsck names the damage.  Packs and log entries are hashed
from the first byte to the last, so every single bit shows.  The LMDB
files have tests of their own: :mod:`tests.crash.test_lmdb_flips`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from casstore.admin import create_store, fsck_directory
from casstore.clock import ManualClock
from casstore.engine.artifacts import decode_row
from casstore.engine.packs import PackService
from casstore.engine.quarantine import QuarantineService
from casstore.engine.records import MarkRecord, decode_record
from casstore.engine.scrub import Scrubber
from casstore.engine.submissions import decode_remembered
from casstore.engine.tokens import check_token_row
from casstore.errors import CasstoreError
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot
from casstore.ids import ComponentName
from casstore.storage.local.files import Files
from tests.crash.lifetime import Life, Script
from tests.support.treebuild import Content, Link, build_tree, check, open_local

Objects = dict[tuple[ObjectKind, bytes], bytes]


class Small(NamedTuple):
    """A store in which little lies, and everything that lies in it."""

    directory: Path
    objects: Objects
    packs: list[Path]


@pytest.fixture(scope="module")
def small(scratch: Path) -> Small:
    directory = scratch / "small"
    create_store(directory, clock=ManualClock())
    content, close = open_local(directory)
    tree = build_tree({b"a": b"some text " * 9, b"b": b"other", b"d/link": Link(b"../a")})
    content.push(tree, "app")
    content.snapshots.put(
        [encode_snapshot(Snapshot(components=(Component(ComponentName("app"), "tree", tree.digest),)))]
    )
    objects = read_all(content.packs)
    close()
    assert {kind for kind, _ in objects} == set(ObjectKind)
    return Small(directory, objects, sorted((directory / "packs").rglob("*.pack")))


def read_all(packs: PackService) -> Objects:
    """Every object that the index knows and that can be read."""
    found: Objects = {}
    for kind in ObjectKind:
        for id, _ in packs.index.objects(kind, limit=1000):
            try:
                found[kind, id] = packs.read_object(kind, id)
            except CasstoreError:
                continue
    return found


def flip_on_disk(path: Path, at: int, bit: int) -> None:
    """Turn one bit over, behind everyone's back."""
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def flip_packs(small: Small, bits: Iterator[tuple[Path, int, int]]) -> int:
    """Flip each bit, demand that it is found and that no read gives other bytes, and flip it back."""
    number = 0
    content, close = open_local(small.directory)
    try:
        for pack, at, bit in bits:
            flip_on_disk(pack, at, bit)
            report = check(content, full=True)
            assert report.findings, f"{pack.name} byte {at} bit {bit} was not found"
            # A frame that nothing names, such as a layout as a push brought it, is damage that harms nobody.
            assert not report.ok or {finding.code for finding in report.findings} == {"dead-frame"}
            assert any(pack.stem in finding.where for finding in report.findings)
            fresh = Content(content.store, content.index, content.ledger)
            assert read_all(fresh.packs).items() <= small.objects.items(), f"{pack.name} byte {at} bit {bit}"
            flip_on_disk(pack, at, bit)
            number += 1
        assert check(content, full=True).ok
    finally:
        close()
    return number


def test_a_flipped_bit_in_every_byte_of_the_packs_is_found(small: Small) -> None:
    """A disk that returns another byte than was written must not get it into a deploy."""
    bits = ((pack, at, (at * 5 + 3) % 8) for pack in small.packs for at in range(pack.stat().st_size))
    assert flip_packs(small, bits) > 1000


def scrub_packs(small: Small, bits: Iterator[tuple[Path, int, int]]) -> int:
    """Flip each bit, demand that a scrub finds it and takes out of use what it hit, and that it all comes back behind it."""
    number = 0
    content, close = open_local(small.directory)
    quarantine = QuarantineService(content.packs, content.presence, content.clock, pause=lambda seconds: None)
    scrubber = Scrubber(content.packs, quarantine, content.clock)
    try:
        for pack, at, bit in bits:
            flip_on_disk(pack, at, bit)
            run_pass(scrubber)
            found = scrubber.status(running=False)
            assert any(pack.stem in finding.where for finding in found.findings), f"{pack.name} byte {at} bit {bit}"
            # A bit of a frame takes its object out of use, unless nothing names the frame; one of header or footer takes none.
            named = any(
                finding.object.startswith("pack ") or finding.code == "dead-frame" for finding in found.findings
            )
            assert found.quarantined == (0 if named else 1), f"{pack.name} byte {at} bit {bit}"
            flip_on_disk(pack, at, bit)
            run_pass(scrubber)
            assert scrubber.status(running=False).quarantined == 0
            number += 1
        assert check(content, full=True).ok
        assert read_all(Content(content.store, content.index, content.ledger).packs) == small.objects
    finally:
        close()
    return number


def run_pass(scrubber: Scrubber) -> None:
    scrubber.begin(fresh=True)
    while scrubber.active:
        scrubber.record(scrubber.step())


def test_a_scrub_finds_flipped_bits_of_the_packs(small: Small) -> None:
    bits = ((pack, at, (at * 5 + 3) % 8) for pack in small.packs for at in range(0, pack.stat().st_size, 4))
    assert scrub_packs(small, bits) > 300


@pytest.mark.slow
def test_a_scrub_finds_every_flipped_bit_of_the_packs(small: Small) -> None:
    bits = ((pack, at, bit) for pack in small.packs for at in range(pack.stat().st_size) for bit in range(8))
    print(f"\n{scrub_packs(small, bits)} bits of packs, all found by a scrub")


@pytest.mark.slow
def test_every_flipped_bit_of_the_packs_is_found(small: Small) -> None:
    bits = ((pack, at, bit) for pack in small.packs for at in range(pack.stat().st_size) for bit in range(8))
    print(f"\n{flip_packs(small, bits)} bits of packs, all found")


# --- the ledger ----------------------------------------------------------------------------------------------------------


class Lived(NamedTuple):
    """A store that has lived, closed."""

    directory: Path
    life: Life
    entries: list[bytes]


@pytest.fixture(scope="module")
def lived(scratch: Path) -> Lived:
    directory = scratch / "lived"
    life = live(directory)
    with life.script.open(str(directory), Files(), seed=2) as store:
        entries = store.log_reader.raw_entries(0, 100)
    return Lived(directory, life, entries)


def live(directory: Path) -> Life:
    script = Script(str(directory))
    life = Life(script, str(directory), Files())
    assert not life.errors
    return life


def flip_entries(lived: Lived, step: int) -> int:
    """Flip a bit in every ``step``-th byte of the log's entries as they lie in the file."""
    path = lived.directory / "ledger" / "data.mdb"
    data = path.read_bytes()
    number = 0
    for index, entry in enumerate(lived.entries):
        # LMDB leaves earlier copies of a page in the file; the one that counts is among them, so all are flipped together.
        places = [at for at in range(len(data)) if data.startswith(entry, at)] if entry in data else []
        assert places, f"entry {index} lies in one piece"
        for offset in range(index % step, len(entry), step):
            for at in places:
                flip_on_disk(path, at + offset, offset % 8)
            report = fsck_directory(lived.directory)
            assert not report.ok, f"byte {offset} of entry {index} was not found"
            assert any(f"entry {index}" in f"{finding.object} {finding.where}" for finding in report.findings)
            for at in places:
                flip_on_disk(path, at + offset, offset % 8)
            number += 1
    assert fsck_directory(lived.directory).ok
    return number


def test_a_flipped_bit_in_an_entry_is_found(lived: Lived) -> None:
    """An entry is what an auditor is shown: another byte in it, and the log is no longer what was signed."""
    assert flip_entries(lived, 67) > 100


@pytest.mark.slow
def test_a_flipped_bit_in_every_byte_of_the_entries_is_found(lived: Lived) -> None:
    print(f"\n{flip_entries(lived, 1)} bytes of entries, all found")


@pytest.mark.parametrize("row", [b'{"na\xede":1}', b'{"name":"\xee"}', b"\xff", b""])
def test_a_row_that_is_not_text_any_more_is_damage(row: bytes) -> None:
    """A byte that no UTF-8 has, in a row beside the log, must end in a sentence and not in a traceback."""
    with pytest.raises(CasstoreError):
        decode_row(row)
    with pytest.raises(CasstoreError):
        decode_record(row, MarkRecord, "a mark")
    with pytest.raises(CasstoreError):
        decode_remembered(row)
    with pytest.raises(CasstoreError):
        check_token_row(b"0123456789abcdef", row)
