"""Range and If-*: if these are wrong, a resumed download is stitched together from two different objects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import InvalidInput
from casstore_server.conditional import ByteRange, Unsatisfiable, is_not_modified, parse_tags, select_range

TAG = '"abc"'


def select(header: str | None, size: int = 100, if_range: str | None = None) -> ByteRange | Unsatisfiable | None:
    return select_range(header, size=size, if_range=if_range, etag=TAG)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=0-99", ByteRange(0, 100)),
        ("bytes=10-19", ByteRange(10, 10)),
        ("bytes=90-", ByteRange(90, 10)),
        ("bytes=90-1000", ByteRange(90, 10)),
        ("bytes=-7", ByteRange(93, 7)),
        ("bytes=-1000", ByteRange(0, 100)),
        ("BYTES = 1-2 ", ByteRange(1, 2)),
        ("bytes=100-", Unsatisfiable()),
        ("bytes=100-200", Unsatisfiable()),
        ("bytes=-0", Unsatisfiable()),
        ("bytes=9999999999999999999999-", Unsatisfiable()),
        ("bytes=5-9999999999999999999999", ByteRange(5, 95)),
        ("bytes=100-9999999999999999999999", Unsatisfiable()),
        ("bytes=-9999999999999999999999", ByteRange(0, 100)),
        # What RFC 9110 §14.2 lets a server ignore is ignored: the whole representation is always a right answer.
        ("bytes=20-10", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=1-2,5-6", None),
        ("bytes=+1-2", None),
        ("bytes=١-٢", None),
        ("lines=1-2", None),
        ("bytes 1-2", None),
    ],
)
def test_ranges(header: str | None, expected: object) -> None:
    assert select(header) == expected


def test_an_empty_representation_has_no_range() -> None:
    assert select("bytes=0-", size=0) == Unsatisfiable()
    assert select("bytes=-5", size=0) == Unsatisfiable()
    assert select("bytes=-9999999999999999999999", size=0) == Unsatisfiable()


@pytest.mark.parametrize("if_range", ['"other"', 'W/"abc"', "Sat, 29 Oct 1994 19:43:31 GMT", "abc", ""])
def test_if_range_of_anything_else_gets_the_whole_object(if_range: str) -> None:
    assert select("bytes=1-2", if_range=if_range) is None


def test_if_range_of_this_object_gets_the_range() -> None:
    assert select("bytes=1-2", if_range=' "abc" ') == ByteRange(1, 2)


@given(
    header=st.text(max_size=40) | st.from_regex(r"bytes=[0-9]{0,20}-[0-9]{0,20}", fullmatch=True),
    size=st.integers(0, 200),
)
def test_a_range_always_lies_inside(header: str, size: int) -> None:
    found = select(header, size=size)
    if isinstance(found, ByteRange):
        assert found.length > 0
        assert 0 <= found.offset < found.offset + found.length <= size


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("*", True),
        ('"abc"', True),
        ('W/"abc"', True),
        ('"x", "abc"', True),
        (' "x" ,W/"y", "abc" ', True),
        ('"x"', False),
        ("abc", False),
        ('"abc', False),
        ("", False),
    ],
)
def test_if_none_match(header: str | None, expected: bool) -> None:
    assert is_not_modified(header, TAG) is expected


@pytest.mark.parametrize("header", ["", " ", "abc", '"abc', '"a" "b"', '"a",,"b"', 'w/"abc"', '"a"b', '"\x00"'])
def test_a_malformed_if_match_is_refused(header: str) -> None:
    """Ignoring it would turn a compare-and-swap into an unconditional write."""
    with pytest.raises(InvalidInput):
        parse_tags(header)


def test_weak_tags_are_kept_apart() -> None:
    """If-Match compares strongly, so a weak tag must never match there."""
    tags = parse_tags('W/"a", "b"')
    assert tags.weak == {'"a"'}
    assert tags.strong == {'"b"'}


@given(st.lists(st.text(st.characters(min_codepoint=0x23, max_codepoint=0x7E), max_size=8), min_size=1, max_size=5))
def test_every_list_of_tags_is_read_back(values: list[str]) -> None:
    assert parse_tags(", ".join(f'"{value}"' for value in values)).strong == {f'"{value}"' for value in values}
