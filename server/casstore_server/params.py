"""Query parameters and path parts, each with one spelling; an unknown or repeated parameter is an error, not a silence."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from casstore.errors import InvalidInput, InvalidName
from casstore.ids import PointerName
from casstore.limits import LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,17})\Z")
RESERVED_LAST_PARTS: Final = frozenset(
    {"history", "rollback", "rollback-target", "rollback-candidates", "hold", "release", "marks"}
)
"""What follows a pointer's name in a path; a name cannot end in one of them, or a path would have two meanings."""


class Query:
    """The query of one request.

    Args:
        request: being answered.
        *known: the parameters that the resource knows.

    Raises:
        InvalidInput: another parameter, or one that stands there twice.
    """

    def __init__(self, request: web.Request, *known: str) -> None:
        self._values: dict[str, str] = {}
        for name, value in request.query.items():
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                raise InvalidInput(f"this resource has no parameter {name[:60]!r}: {takes}")
            if name in self._values:
                raise InvalidInput(f"the parameter {name!r} stands there twice")
            self._values[name] = value

    def text(self, name: str) -> str | None:
        """The parameter, or None if it is not there."""
        return self._values.get(name)

    def require(self, name: str) -> str:
        """The parameter.

        Raises:
            InvalidInput: it is not there.
        """
        value = self._values.get(name)
        if value is None:
            raise InvalidInput(f"the parameter {name!r} is missing")
        return value

    def number(self, name: str) -> int | None:
        """The parameter as a decimal number, or None if it is not there.

        Raises:
            InvalidInput: not a number in its one spelling.
        """
        value = self._values.get(name)
        return None if value is None else parse_number(name, value)

    def limit(self, default: int = LIST_LIMIT_DEFAULT) -> int:
        """The parameter ``limit``.

        Raises:
            InvalidInput: not 1 to ``LIST_LIMIT_MAX``.
        """
        value = self.number("limit")
        if value is None:
            return default
        if not 1 <= value <= LIST_LIMIT_MAX:
            raise InvalidInput(f"limit is 1 to {LIST_LIMIT_MAX}, not {value}")
        return value

    def flag(self, name: str) -> bool:
        """The parameter as a flag: ``1`` or ``true``, ``0`` or ``false``; not there is false.

        Raises:
            InvalidInput: anything else.
        """
        value = self._values.get(name)
        if value in (None, "0", "false"):
            return False
        if value in ("1", "true"):
            return True
        raise InvalidInput(f"{name} is 1 or 0, not {str(value)[:60]!r}")


def parse_number(name: str, text: str) -> int:
    """A decimal number in its one spelling, below 10^18.

    Raises:
        InvalidInput: anything else.
    """
    if not _NUMBER.match(text):
        raise InvalidInput(f"{name} is a decimal number below 10^18, not {text[:60]!r}")
    return int(text)


def parse_pointer(text: str) -> PointerName:
    """A pointer's name that a path can hold.

    Raises:
        InvalidName: not a name, or its last part is reserved.
    """
    name = PointerName.parse(text)
    last = name.rpartition("/")[2]
    if last in RESERVED_LAST_PARTS:
        raise InvalidName(f"a pointer cannot end in {last!r}: it means something else in /v1/pointers/{name}")
    return name


def pointer_of(request: web.Request) -> PointerName:
    """The pointer that the path names.

    Raises:
        InvalidName: see :func:`parse_pointer`.
    """
    return parse_pointer(request.match_info["name"])
