"""``signed-heads``: one spelling, torn ends dropped, damage refused."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import (
    DamagedObject,
    DestinationExists,
    NotInitialised,
    OutcomeUnknown,
    StateError,
    StoreFull,
    Unavailable,
)
from casstore.storage.local.files import Files
from casstore.storage.local.heads import RECORD_BYTES, Head, SignedHeads, decode_record, encode_record
from tests.crash.faulty import Effect, FaultyFiles

heads = st.builds(Head, st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32))


def root_of(size: int) -> bytes:
    return hashlib.sha256(b"%d" % size).digest()


def make(directory: Path, sizes: range = range(0)) -> SignedHeads:
    (directory / "tmp").mkdir()
    SignedHeads.lay_out(str(directory), Files())
    opened = SignedHeads(str(directory), Files())
    for size in sizes:
        opened.append(size, root_of(size))
    return opened


def reread(directory: Path) -> list[int]:
    opened = SignedHeads(str(directory), Files())
    try:
        return [head.size for head in opened.read_all()]
    finally:
        opened.close()


def test_a_record_is_as_documented() -> None:
    """The next version reads these bytes."""
    record = encode_record(Head(300, bytes(range(32))))
    assert record == (
        b"00000000000000000300 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f d087adf469c20be3\n"
    )
    assert len(record) == RECORD_BYTES


@given(head=heads)
def test_records_round_trip(head: Head) -> None:
    assert decode_record(encode_record(head)) == head


@given(data=st.binary(max_size=120) | st.from_regex(rb"[0-9]{20} [0-9a-f]{64} [0-9a-f]{16}\n", fullmatch=True))
def test_what_is_read_is_written_the_same(data: bytes) -> None:
    """A second spelling would be a second truth about what was signed."""
    head = decode_record(data)
    assert head is None or encode_record(head) == data


def test_no_changed_byte_goes_unnoticed() -> None:
    """A head with another root would make the server refuse its own log, or accept another's."""
    record = encode_record(Head(300, root_of(300)))
    for position in range(len(record)):
        for value in {record[position] ^ 1, record[position] ^ 0x20, 0, 0x30, 0x39, 0x61, 0xFF} - {record[position]}:
            assert decode_record(record[:position] + bytes([value]) + record[position + 1 :]) is None
    for size in range(len(record)):
        assert decode_record(record[:size]) is None
    assert decode_record(record + b"\n") is None


@pytest.mark.parametrize("head", [Head(-1, bytes(32)), Head(1 << 64, bytes(32)), Head(1, bytes(31))])
def test_what_is_no_head_is_not_recorded(tmp_path: Path, head: Head) -> None:
    opened = make(tmp_path)
    with pytest.raises(ValueError, match="not a head"):
        opened.append(head.size, head.root)
    assert opened.read_all() == []
    opened.close()


def test_heads_survive_and_are_in_order(tmp_path: Path) -> None:
    """The server reads them to learn what the world may have seen."""
    make(tmp_path, range(1, 4)).close()
    opened = SignedHeads(str(tmp_path), Files())
    opened.append(4, root_of(4))
    assert opened.read_all() == [Head(size, root_of(size)) for size in range(1, 5)]
    opened.close()
    assert os.path.getsize(tmp_path / "signed-heads") == 4 * RECORD_BYTES


def test_many_heads_are_read_in_blocks(tmp_path: Path) -> None:
    """A long-running server has more records than one read takes."""
    make(tmp_path).close()
    records = b"".join(encode_record(Head(size, root_of(size))) for size in range(5000))
    (tmp_path / "signed-heads").write_bytes(records + encode_record(Head(5000, root_of(5000)))[:50])
    assert reread(tmp_path) == list(range(5000))
    assert os.path.getsize(tmp_path / "signed-heads") == 5000 * RECORD_BYTES


@pytest.mark.parametrize("kept", [1, 20, 64, 102])
@pytest.mark.parametrize("filled", [False, True], ids=["short", "zeroed"])
def test_a_torn_last_record_is_dropped(tmp_path: Path, kept: int, filled: bool) -> None:
    """Nothing was signed for it, so it must not keep the server from starting."""
    make(tmp_path, range(1, 3)).close()
    torn = encode_record(Head(3, root_of(3)))[:kept]
    with open(tmp_path / "signed-heads", "ab") as file:
        file.write(torn.ljust(RECORD_BYTES, b"\0") if filled else torn)
    assert reread(tmp_path) == [1, 2]
    opened = SignedHeads(str(tmp_path), Files())
    opened.append(3, root_of(3))
    opened.close()
    assert reread(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("position", [0, 25, 90, RECORD_BYTES - 1, RECORD_BYTES + 25, 2 * RECORD_BYTES + 25])
def test_a_damaged_record_is_refused(tmp_path: Path, position: int) -> None:
    """Dropping it, even the last, would let the server sign a second history for the same size."""
    make(tmp_path, range(1, 4)).close()
    data = bytearray((tmp_path / "signed-heads").read_bytes())
    data[position] ^= 1
    (tmp_path / "signed-heads").write_bytes(data)
    with pytest.raises(DamagedObject) as caught:
        SignedHeads(str(tmp_path), Files())
    where = position // RECORD_BYTES * RECORD_BYTES
    assert caught.value.where == f"{tmp_path}/signed-heads:{where}"
    assert (tmp_path / "signed-heads").read_bytes() == data


def test_a_hole_in_the_middle_is_damage(tmp_path: Path) -> None:
    """Zeros are a torn end only at the end."""
    make(tmp_path, range(1, 4)).close()
    data = bytearray((tmp_path / "signed-heads").read_bytes())
    data[RECORD_BYTES : 2 * RECORD_BYTES] = bytes(RECORD_BYTES)
    (tmp_path / "signed-heads").write_bytes(data)
    with pytest.raises(DamagedObject):
        SignedHeads(str(tmp_path), Files())


def test_a_missing_file_is_never_made_up(tmp_path: Path) -> None:
    """A ledger that was restored without this file could be made to fork; the operator has to decide."""
    with pytest.raises(NotInitialised):
        SignedHeads(str(tmp_path), Files())
    make(tmp_path, range(1, 2)).close()
    with pytest.raises(DestinationExists):
        SignedHeads.lay_out(str(tmp_path), Files())
    assert reread(tmp_path) == [1]


def test_compacting_keeps_one_and_goes_on(tmp_path: Path) -> None:
    """The file must not grow forever."""
    opened = make(tmp_path, range(1, 50))
    (tmp_path / "tmp" / "signed-heads.new").write_bytes(b"left by a crash")
    opened.compact(Head(49, root_of(49)))
    opened.append(50, root_of(50))
    assert [head.size for head in opened.read_all()] == [49, 50]
    opened.close()
    assert reread(tmp_path) == [49, 50]
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("name", ["write", "fsync"])
@pytest.mark.parametrize("effect", list(Effect))
def test_a_failed_append_seals(tmp_path: Path, name: str, effect: Effect) -> None:
    """A record behind a torn one could never be read again."""
    make(tmp_path, range(1, 2)).close()
    files = FaultyFiles(str(tmp_path))
    opened = SignedHeads(str(tmp_path), files)
    files.fail_next(name, effect)
    with pytest.raises(OutcomeUnknown):
        opened.append(2, root_of(2))
    for call in (lambda: opened.append(3, root_of(3)), opened.read_all, lambda: opened.compact(Head(1, root_of(1)))):
        with pytest.raises(OutcomeUnknown):
            call()
    opened.close()
    assert reread(tmp_path) in ([1], [1, 2])


def test_compacting_on_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """Compaction is housekeeping: its failure must not stop the log."""
    make(tmp_path, range(1, 4)).close()
    files = FaultyFiles(str(tmp_path))
    opened = SignedHeads(str(tmp_path), files)
    files.fail_next("write", Effect.HALF, errno.ENOSPC)
    with pytest.raises(StoreFull):
        opened.compact(Head(3, root_of(3)))
    opened.append(4, root_of(4))
    opened.compact(Head(4, root_of(4)))
    opened.close()
    assert reread(tmp_path) == [4]


def test_an_unreadable_file_is_not_an_empty_one(tmp_path: Path) -> None:
    """A disk that cannot read must not make the server believe it has signed nothing."""
    make(tmp_path, range(1, 4)).close()
    files = FaultyFiles(str(tmp_path))
    files.fail_next("pread")
    with pytest.raises(Unavailable):
        SignedHeads(str(tmp_path), files)


def test_a_closed_file_refuses(tmp_path: Path) -> None:
    opened = make(tmp_path)
    opened.close()
    opened.close()
    with pytest.raises(StateError):
        opened.append(1, root_of(1))
    with pytest.raises(StateError):
        opened.read_all()
