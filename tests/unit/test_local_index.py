"""The index on disk: what its rows are, what it does with rows that are not, and opening."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import DamagedObject, DestinationExists, NotInitialised, StateError, StoreBusy
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.local.files import Files
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.local.index_rows import CHECKED_TABLES
from casstore.storage.memory import MemoryChunkIndex
from casstore.storage.roles import FileProof, FrameRow, PackRecord

PACK = PackId(b"\xab" * 16)


def id_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def make(directory: Path) -> LocalChunkIndex:
    LocalChunkIndex.lay_out(str(directory), Files())
    return LocalChunkIndex(str(directory), Files())


def raw(directory: Path) -> lmdb.Environment:
    return lmdb.open(str(directory / "index"), max_dbs=32, create=False, lib_version=0)


def test_rows_are_as_documented(tmp_path: Path) -> None:
    """A rebuild by another program, and the next version of this one, go by the documented rows."""
    index = make(tmp_path)
    index.add_pack(PackRecord(PackId(bytes(16)), 1, 0), [])
    index.add_pack(PackRecord(PACK, 1 << 33, 1), [FrameRow(ObjectKind.LAYOUT, id_of(1), 24, 300, 4000)])
    index.memo_add([id_of(2)])
    index.files_add([FileProof(id_of(3), id_of(4))])
    index.condemn(ObjectKind.LAYOUT, [id_of(1)], at_ms=1 << 40, mark=7)
    index.retire_pack(PackId(bytes(16)), at_ms=1 << 41)
    index.write_note("gc", b"state")
    index.close()
    with raw(tmp_path) as environment, environment.begin() as transaction:
        tables = {name: environment.open_db(name, transaction, create=False) for name in environment.dbs(transaction)}
        rows = {name.decode(): list(transaction.cursor(table)) for name, table in tables.items()}
    for table in CHECKED_TABLES:
        for position, (key, stored) in enumerate(rows[table.decode()]):
            whole = table + b"\0" + struct.pack(">H", len(key)) + key + stored[:-5]
            assert stored[-5:] == b"\0" + struct.pack(">I", zlib.crc32(whole)), "a checksum ends the row"
            rows[table.decode()][position] = (key, stored[:-5])
    assert rows == {
        "chunk": [],
        "page": [],
        "root": [],
        "layout": [],
        "document": [],
        "packs": [(PACK, struct.pack(">IQI", 2, 1 << 33, 1))],
        "pack-numbers": [(struct.pack(">I", 1), bytes(16)), (struct.pack(">I", 2), PACK)],
        "memo": [(id_of(2), b"")],
        "file-memo": [(id_of(3)[:16] + id_of(4), b"")],
        "condemned": [(b"\x04" + id_of(1), struct.pack(">IIIIQI", 2, 24, 300, 4000, 1 << 40, 7))],
        "quarantine": [],
        "retired": [(bytes(16), struct.pack(">IQIQ", 1, 1, 0, 1 << 41))],
        "notes": [(b"gc", b"state")],
    }


def test_opening_does_not_create(tmp_path: Path) -> None:
    """An index that is missing must be noticed and rebuilt, not replaced by an empty one that hides all content."""
    with pytest.raises(NotInitialised):
        LocalChunkIndex(str(tmp_path), Files())
    assert os.listdir(tmp_path) == []
    make(tmp_path).close()
    with pytest.raises(DestinationExists):
        LocalChunkIndex.lay_out(str(tmp_path), Files())


def test_a_second_opening_is_refused(tmp_path: Path) -> None:
    """LMDB's locks belong to the process: a second environment would corrupt the first."""
    index = make(tmp_path)
    with pytest.raises(StoreBusy):
        LocalChunkIndex(str(tmp_path), Files())
    assert index.count(ObjectKind.CHUNK) == 0
    index.close()


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    """An index of another program or of a later version must not half work."""
    make(tmp_path).close()
    with raw(tmp_path) as environment, environment.begin(write=True) as transaction:
        transaction.drop(environment.open_db(b"memo", transaction), delete=True)
    with pytest.raises(NotInitialised, match="memo"):
        LocalChunkIndex(str(tmp_path), Files())


@pytest.mark.parametrize("content", [b"", b"not an LMDB file" * 1000, bytes(8192)])
def test_what_is_not_an_index_is_damage(tmp_path: Path, content: bytes) -> None:
    """The operator must learn which file is broken and that it can be rebuilt."""
    make(tmp_path).close()
    (tmp_path / "index" / "data.mdb").write_bytes(content)
    with pytest.raises((DamagedObject, NotInitialised)) as caught:
        LocalChunkIndex(str(tmp_path), Files())
    assert "index" in caught.value.detail


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (b"chunk", id_of(1), b"\0" * 15),
        (b"chunk", id_of(1), b"\0" * 17),
        (b"chunk", id_of(1), struct.pack(">IIII", 77, 1, 1, 1)),
        (b"packs", PACK, b"\0" * 15),
        (b"pack-numbers", struct.pack(">I", 1), b"short"),
    ],
)
def test_a_wrong_row_is_damage(tmp_path: Path, table: bytes, key: bytes, value: bytes) -> None:
    """A location read out of a broken row would point into the wrong pack."""
    index = make(tmp_path)
    index.add_pack(PackRecord(PACK, 10, 1), [FrameRow(ObjectKind.CHUNK, id_of(1), 1, 2, 3)])
    index.close()
    with raw(tmp_path) as environment, environment.begin(write=True) as transaction:
        transaction.put(key, value, db=environment.open_db(table, transaction))
    index = LocalChunkIndex(str(tmp_path), Files())
    with pytest.raises(DamagedObject) as caught:
        assert (index.locate(ObjectKind.CHUNK, [id_of(1)]), index.pack(PACK)) == ([], None)
    assert caught.value.object == "index"
    index.close()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    """Waiting for oneself is a server that hangs."""
    index = make(tmp_path)
    with index._environment.write(), pytest.raises(StateError):
        index.memo_add([id_of(1)])
    index.memo_add([id_of(1)])
    index.close()


frames = st.lists(
    st.builds(
        FrameRow,
        st.sampled_from(list(ObjectKind)),
        st.integers(0, 12).map(id_of),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
    ),
    max_size=6,
    unique_by=lambda row: (row.kind, row.id),
)


@settings(max_examples=40, deadline=None)
@given(packs=st.lists(st.tuples(st.integers(0, 3), frames), max_size=6))
def test_disk_and_memory_agree(
    tmp_path_factory: pytest.TempPathFactory, packs: list[tuple[int, list[FrameRow]]]
) -> None:
    """Engine tests run on the index in memory; what they prove must hold for the one on disk."""
    local, memory = make(tmp_path_factory.mktemp("index")), MemoryChunkIndex()
    ids = [id_of(number) for number in range(13)]
    for number, rows in packs:
        record = PackRecord(PackId(bytes([number]) * 16), 100 + number, len(rows))
        local.add_pack(record, rows)
        memory.add_pack(record, rows)
    for kind in ObjectKind:
        assert local.has(kind, ids) == memory.has(kind, ids)
        assert local.locate(kind, ids) == memory.locate(kind, ids)
        assert local.objects(kind, limit=50) == memory.objects(kind, limit=50)
        assert local.count(kind) == memory.count(kind)
    assert local.packs(limit=50) == memory.packs(limit=50)
    local.close()


@pytest.mark.parametrize("table", CHECKED_TABLES)
def test_a_flipped_bit_in_a_checked_row_is_found(tmp_path: Path, table: bytes) -> None:
    """A time that became an earlier one would let what is condemned go before its grace is over."""
    index = make(tmp_path)
    index.add_pack(PackRecord(PackId(bytes(16)), 1, 0), [])
    index.add_pack(PackRecord(PACK, 1, 2), [FrameRow(ObjectKind.CHUNK, id_of(n), 24, 300, 4000) for n in (1, 2)])
    index.condemn(ObjectKind.CHUNK, [id_of(1)], at_ms=1 << 40, mark=7)
    [location] = index.locate(ObjectKind.CHUNK, [id_of(2)])
    assert location is not None
    assert index.quarantine(ObjectKind.CHUNK, id_of(2), location, at_ms=5, reason="a reason")
    index.retire_pack(PackId(bytes(16)), at_ms=1 << 41)
    index.write_note("gc", b"state")
    index.verify_storage()
    index.close()
    read: Callable[[LocalChunkIndex], object] = {
        b"condemned": lambda index: index.condemned(limit=1),
        b"quarantine": lambda index: index.quarantined(limit=1),
        b"retired": lambda index: index.retired(limit=1),
        b"notes": lambda index: index.read_note("gc"),
    }[table]
    with raw(tmp_path) as environment:
        database = environment.open_db(table, create=False)
        with environment.begin() as transaction:
            [(key, stored)] = list(transaction.cursor(database))
        for bit in range(8 * len(stored)):
            flipped = bytearray(stored)
            flipped[bit // 8] ^= 1 << bit % 8
            with environment.begin(write=True) as transaction:
                transaction.put(key, bytes(flipped), db=database)
            environment.close()
            index = LocalChunkIndex(str(tmp_path), Files())
            with pytest.raises(DamagedObject):
                read(index)
            with pytest.raises(DamagedObject):
                index.verify_storage()
            index.close()
            environment = raw(tmp_path)
            database = environment.open_db(table, create=False)


def test_a_pack_with_the_number_of_another_is_found(tmp_path: Path) -> None:
    """It would look as if no row pointed to it, and be deleted."""
    index = make(tmp_path)
    index.add_pack(PackRecord(PackId(bytes(16)), 1, 0), [])
    index.add_pack(PackRecord(PACK, 1, 0), [])
    index.close()
    with raw(tmp_path) as environment, environment.begin(write=True) as transaction:
        transaction.put(PACK, struct.pack(">IQI", 3, 1, 0), db=environment.open_db(b"packs", transaction, create=False))
    index = LocalChunkIndex(str(tmp_path), Files())
    with pytest.raises(DamagedObject, match="has the number 3"):
        index.verify_storage()
    index.close()


@pytest.mark.parametrize("how", ["condemn", "drop", "quarantine"])
def test_who_looks_while_something_goes_finds_another_count_later(tmp_path: Path, how: str) -> None:
    """Else a commit that looked in that moment would believe what is not live any more."""
    seen: list[tuple[int, bool]] = []

    class Looking(Files):
        def commit(self, transaction: lmdb.Transaction[bytes]) -> None:
            with index._environment.read() as before:
                seen.append((index.losses, before.get(id_of(1), None, index._kinds[ObjectKind.CHUNK]) is not None))
            super().commit(transaction)

    LocalChunkIndex.lay_out(str(tmp_path), Files())
    index = LocalChunkIndex(str(tmp_path), Looking())
    index.add_pack(PackRecord(PACK, 10, 1), [FrameRow(ObjectKind.CHUNK, id_of(1), 24, 5, 5)])
    place = index.locate(ObjectKind.CHUNK, [id_of(1)])[0]
    assert place is not None
    if how == "drop":
        index.condemn(ObjectKind.CHUNK, [id_of(1)], at_ms=1, mark=1)
    seen.clear()
    if how == "condemn":
        index.condemn(ObjectKind.CHUNK, [id_of(1)], at_ms=1, mark=1)
    elif how == "drop":
        index.drop(index.condemned(limit=1))
    else:
        index.quarantine(ObjectKind.CHUNK, id_of(1), place, at_ms=1, reason="rot")
    assert [there for _, there in seen] == [how != "drop"]
    assert seen[0][0] != index.losses
    index.close()
