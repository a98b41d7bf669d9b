"""Query parameters and path parts: a second spelling is a second cache key, and a silence about a misspelt one is a wrong answer."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from casstore.errors import InvalidInput, InvalidName
from casstore_server.params import RESERVED_LAST_PARTS, Query, parse_number, parse_pointer


def query(text: str, *known: str) -> Query:
    return Query(make_mocked_request("GET", f"/x?{text}"), *known)


def test_known_parameters_are_read() -> None:
    found = query("name=a%20b&limit=5&proof=1", "name", "limit", "proof")
    assert (found.text("name"), found.limit(), found.flag("proof")) == ("a b", 5, True)
    assert (found.text("other"), found.number("other"), found.flag("other")) == (None, None, False)
    assert query("", "limit").limit() == 100


@pytest.mark.parametrize("text", ["nmae=a", "name=a&name=b", "name=a&x"])
def test_unknown_and_repeated_parameters_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        query(text, "name")


@pytest.mark.parametrize("text", ["", "+1", "-1", "01", " 1", "1_0", "1.0", "1e3", "٣", "9" * 19, "0x1", "1\n"])
def test_a_number_has_one_spelling(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_number("n", text)


@pytest.mark.parametrize("text", ["0", "7", "10", "9" * 18])
def test_numbers(text: str) -> None:
    assert str(parse_number("n", text)) == text


@pytest.mark.parametrize("text", ["limit=0", "limit=1001", "limit=", "limit=ten"])
def test_limits_are_bounded(text: str) -> None:
    with pytest.raises(InvalidInput):
        query(text, "limit").limit()


@pytest.mark.parametrize("text", ["proof=yes", "proof=", "proof=2", "proof=TRUE"])
def test_flags_are_yes_or_no(text: str) -> None:
    with pytest.raises(InvalidInput):
        query(text, "proof").flag("proof")


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(InvalidInput, match="'kind'"):
        query("", "kind").require("kind")


@pytest.mark.parametrize("last", sorted(RESERVED_LAST_PARTS))
def test_a_pointer_cannot_be_called_like_what_follows_it_in_a_path(last: str) -> None:
    """It could be flipped and never be read: GET /v1/pointers/prod/history is the history of prod."""
    for name in (last, f"prod/{last}"):
        with pytest.raises(InvalidName):
            parse_pointer(name)
    assert parse_pointer(f"{last}/prod") == f"{last}/prod"
