"""What the demo does to a copy of a store: flips single bits where they hurt."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple

from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind, PackDecoder


class DamagedPack(NamedTuple):
    """Where a bit was flipped: pack and object in hex, offset in bytes from the pack's start."""

    pack: str
    object: str
    offset: int


def flip_bit_in_pack(store: Path) -> DamagedPack:
    """Flip one bit in the middle of a chunk of the store's largest pack."""
    path = max((store / "packs").rglob("*.pack"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    chunks = [frame for frame in PackDecoder().feed(bytes(data)) if frame.kind is ObjectKind.CHUNK]
    frame = chunks[len(chunks) // 2]
    at = frame.offset + FRAME_HEADER_BYTES + len(frame.stored) // 2
    data[at] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(data)
    return DamagedPack(path.stem, frame.id.hex(), at)


def flip_bit_in_entry(store: Path, entry_b64: str) -> None:
    """Flip one bit in every copy of a log entry that the ledger's file holds (LMDB keeps old pages).

    Raises:
        ValueError: the entry does not lie in one piece in the file.
    """
    entry = base64.b64decode(entry_b64)
    path = store / "ledger" / "data.mdb"
    data = bytearray(path.read_bytes())
    found, at = 0, data.find(entry)
    while at >= 0:
        data[at + len(entry) // 2] ^= 0x01
        found += 1
        at = data.find(entry, at + 1)
    if not found:
        raise ValueError("the entry is not in the ledger's file")
    path.write_bytes(data)
