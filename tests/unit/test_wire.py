"""The wire's two binary codecs and its JSON front."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore import wire
from casstore.errors import CasstoreError, InvalidInput, MalformedDocument
from casstore.ids import PackId


@given(st.lists(st.booleans(), max_size=300))
def test_bitmap_round_trips(flags: list[bool]) -> None:
    assert wire.decode_bitmap(wire.encode_bitmap(flags), len(flags)) == flags


def test_bitmap_is_least_significant_bit_first() -> None:
    assert wire.encode_bitmap([True, False, False, False, False, False, False, False, True]) == b"\x01\x01"


@pytest.mark.parametrize(("data", "count"), [(b"", 1), (b"\x00\x00", 8), (b"\x02", 1), (b"\x01", 0)])
def test_bitmap_has_one_spelling(data: bytes, count: int) -> None:
    with pytest.raises(MalformedDocument):
        wire.decode_bitmap(data, count)


RECORDS = st.builds(
    wire.PageRecord,
    page=st.binary(max_size=50),
    layout=st.binary(max_size=50),
    chunks=st.lists(
        st.builds(
            wire.ChunkAt,
            pack=st.binary(min_size=16, max_size=16).map(PackId),
            offset=st.integers(0, 2**32 - 1),
            stored_length=st.integers(0, 2**32 - 1),
        ),
        max_size=4,
    ),
)


@given(st.lists(RECORDS, max_size=5), st.integers(1, 40))
def test_page_stream_survives_any_cut(records: list[wire.PageRecord], step: int) -> None:
    stream = b"".join(map(wire.encode_page_record, records))
    decoder = wire.PageRecordDecoder()
    found = [r for at in range(0, len(stream), step) for r in decoder.feed(stream[at : at + step])]
    decoder.finish()
    assert found == records


@given(st.binary(max_size=200))
def test_page_stream_refuses_noise_or_waits(noise: bytes) -> None:
    decoder = wire.PageRecordDecoder()
    try:
        records = decoder.feed(noise)
        decoder.finish()
    except CasstoreError:
        return
    assert b"".join(map(wire.encode_page_record, records)) == noise


def test_truncated_page_stream_is_an_error() -> None:
    decoder = wire.PageRecordDecoder()
    decoder.feed(wire.encode_page_record(wire.PageRecord(b"page", b"layout", []))[:-1])
    with pytest.raises(MalformedDocument, match="inside a record"):
        decoder.finish()


def test_unknown_fields_are_refused() -> None:
    """A misspelt field is an error and not a silence."""
    with pytest.raises(InvalidInput, match="lables"):
        wire.decode_json(b'{"kind":"tree","digest":"blake3:00","lables":[]}', wire.CommitRequest)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"kind":"tree"}', b'{"kind":"leaf","digest":""}']
)
def test_bad_json_is_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        wire.decode_json(body, wire.CommitRequest)


@given(st.integers(0, 4_102_444_800_000))
def test_times_round_trip(ms: int) -> None:
    assert wire.parse_time(wire.format_time(ms)) == ms


def test_times_read_offsets_and_bare_dates() -> None:
    assert wire.parse_time("2026-08-23T12:15:02.113+02:00") == wire.parse_time("2026-08-23T10:15:02.113Z")
    assert wire.format_time(wire.parse_time("2026-08-23")) == "2026-08-23T00:00:00.000Z"
    with pytest.raises(InvalidInput):
        wire.parse_time("yesterday")
