"""A checksum behind a row that nothing else vouches for.

What the log derives is recomputed by fsck, and where objects lie is held against the packs; but artifacts, tokens, pins, and the
times of what is condemned stand nowhere else, and LMDB has no checksums.  Such a row ends with ``0x00 ‖ u32be CRC-32`` over
its table, its key and its value, so that a flipped bit in any of them shows when the row is read.

Rows that an earlier version wrote end without it, and are taken as they are: they are JSON, in which no 0x00 stands, or empty.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from casstore.errors import DamagedObject
from casstore.storage.local.lmdb_env import REBUILD

_TAIL: Final = struct.Struct(">BI")
TAIL_BYTES: Final = _TAIL.size


def _checksum(table: bytes, key: bytes, value: bytes) -> int:
    # Lengths apart, or bytes could move between key and value unnoticed.
    head = table + b"\0" + len(key).to_bytes(2, "big") + key
    return zlib.crc32(value, zlib.crc32(head))


def seal_row(table: bytes, key: bytes, value: bytes) -> bytes:
    """The value as it is stored."""
    return value + _TAIL.pack(0, _checksum(table, key, value))


def open_row(table: bytes, key: bytes, stored: bytes, what: str, *, sealed_only: bool = False) -> bytes:
    """The value that was sealed.

    Args:
        table: its name.
        key: its key.
        stored: as :func:`seal_row` made it.
        what: "index" or "ledger", for the message.
        sealed_only: no version ever wrote this table without checksums.

    Raises:
        DamagedObject: a bit of table, key or value is another one.
    """
    if len(stored) >= TAIL_BYTES:
        value = stored[:-TAIL_BYTES]
        mark, checksum = _TAIL.unpack_from(stored, len(value))
        if mark == 0:
            if checksum == _checksum(table, key, value):
                return value
            raise _damaged(table, key, what)
    if sealed_only or (stored and not (stored[:1] == b"{" and stored[-1:] == b"}")):
        raise _damaged(table, key, what)
    return stored


def _damaged(table: bytes, key: bytes, what: str) -> DamagedObject:
    shown = key.decode("ascii", "replace")
    name = shown if shown.isprintable() and "\ufffd" not in shown else key.hex()
    return DamagedObject(
        f"a row of the {what} is damaged: {table.decode()} {name[:100]}",
        hint=REBUILD if what == "index" else f"restore {what}/ from a backup, and keep signed-heads",
        object=f"{table.decode()} {name[:100]}",
        where=f"{what}, table {table.decode()}",
        expected="a row that matches its checksum",
        found="another one",
    )
