"""Objects by the names that people and requests give them."""

from __future__ import annotations

from casstore.errors import InvalidInput
from casstore.formats.pack import ObjectKind
from casstore.ids import BlobDigest
from casstore.wire import ObjectName

_KINDS = {kind.name.lower(): kind for kind in ObjectKind}


def parse_object_name(name: ObjectName) -> tuple[ObjectKind | None, bytes]:
    """Kind, where one is named, and id.

    Raises:
        InvalidDigest: not a digest.
    """
    return parse_kind(name.kind), bytes(BlobDigest.parse(name.id))


def parse_kind(text: str | None) -> ObjectKind | None:
    """A kind by its name; None for none.

    Raises:
        InvalidInput: no such kind.
    """
    if text is None:
        return None
    if text not in _KINDS:
        raise InvalidInput(f"{text[:40]!r} is no kind of object: {', '.join(_KINDS)}")
    return _KINDS[text]
