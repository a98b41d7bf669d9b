"""The bitmap that answers push step 1."""

from __future__ import annotations

from collections.abc import Sequence

from casstore.errors import MalformedDocument


def encode_bitmap(flags: Sequence[bool]) -> bytes:
    """One bit an id, least significant bit of byte 0 first; a set bit says *missing*."""
    digits = "".join("1" if flag else "0" for flag in reversed(flags))
    return int(digits or "0", 2).to_bytes((len(flags) + 7) // 8, "little")


def decode_bitmap(data: bytes, count: int) -> list[bool]:
    """Undo :func:`encode_bitmap` for ``count`` ids.

    Raises:
        MalformedDocument: wrong length, or a bit behind the last id is set.
    """
    if len(data) != (count + 7) // 8:
        raise MalformedDocument(f"a bitmap of {count} ids has {(count + 7) // 8} bytes, this has {len(data)}")
    number = int.from_bytes(data, "little")
    if number >> count:
        raise MalformedDocument(f"a bitmap of {count} ids has a bit set behind the last one")
    return [bit == "1" for bit in reversed(format(number, f"0{count}b"))] if count else []
