"""File runs: which pieces of the chunks of a pack are files, told in front of the pack.

A server must hash every file before it acknowledges a tree, and every chunk when it comes in.  With the runs it does both while
it has the chunk's plain bytes in its hands; without them it reads and decompresses the chunk once more at commit.  Runs say
lengths and orders, never digests: a wrong run costs time and proves nothing wrong.

Bytes (all numbers big-endian)::

    "CASU" 0x01 ‖ u32 bundles ‖ bundle* ‖ u32 files ‖ file*
    bundle = chunk id32 ‖ u32 count ‖ u16 length*      the files that lie in the chunk, in order; they fill it
    file   = u32 number ‖ u32 ordinal ‖ u8 last ‖ u32 count ‖ chunk id32*
             chunks ordinal, ordinal + 1, … of the large file ``number`` of this push; last: it ends with them

Source: docs/formats/wire.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from casstore.errors import MalformedDocument, TooLarge
from casstore.hashing import Buffer
from casstore.limits import RUNS_SIZE_MAX_BYTES

_MAGIC: Final = b"CASU\x01"
_U32: Final = struct.Struct(">I")
_BUNDLE: Final = struct.Struct(">32sI")
_FILE: Final = struct.Struct(">IIBI")
_ID_BYTES: Final = 32
LENGTH_MAX_BYTES: Final = 0xFFFF


class BundleRun(NamedTuple):
    """The lengths, in bytes, of the files that lie in a chunk one behind the other."""

    chunk: bytes
    lengths: Sequence[int]


class FileRun(NamedTuple):
    """Some consecutive chunks of a large file, the first of which is its ``ordinal``-th, counted from 0."""

    file: int
    ordinal: int
    last: bool
    chunks: Sequence[bytes]


class Runs(NamedTuple):
    """What stands in front of a pack."""

    bundles: Sequence[BundleRun]
    files: Sequence[FileRun]


def encode_runs(runs: Runs) -> bytes:
    """The bytes of ``runs``; nothing at all if there are none, or more than ``RUNS_SIZE_MAX_BYTES`` of them."""
    if not runs.bundles and not runs.files:
        return b""
    parts = [_MAGIC, _U32.pack(len(runs.bundles))]
    for chunk, lengths in runs.bundles:
        parts += (_BUNDLE.pack(chunk, len(lengths)), struct.pack(f">{len(lengths)}H", *lengths))
    parts.append(_U32.pack(len(runs.files)))
    for file, ordinal, last, chunks in runs.files:
        parts += (_FILE.pack(file, ordinal, last, len(chunks)), *chunks)
    data = b"".join(parts)
    return data if len(data) <= RUNS_SIZE_MAX_BYTES else b""


def decode_runs(data: Buffer) -> Runs:
    """Read ``data``, all of it.

    Raises:
        TooLarge: above ``RUNS_SIZE_MAX_BYTES``.
        MalformedDocument: not runs.
    """
    if len(data) > RUNS_SIZE_MAX_BYTES:
        raise TooLarge(f"file runs have at most {RUNS_SIZE_MAX_BYTES} bytes", limit=RUNS_SIZE_MAX_BYTES)
    view = bytes(data)
    if view[: len(_MAGIC)] != _MAGIC:
        raise MalformedDocument("these are not file runs: they do not begin with CASU 01")
    try:
        runs, end = _take(view)
    except struct.error as error:
        raise MalformedDocument("file runs end before they should") from error
    if end != len(view):
        raise MalformedDocument(f"file runs end after {end} of {len(view)} bytes")
    return runs


def _take(view: bytes) -> tuple[Runs, int]:
    at = len(_MAGIC)
    (count,) = _U32.unpack_from(view, at)
    at += _U32.size
    bundles: list[BundleRun] = []
    for _ in range(count):
        chunk, files = _BUNDLE.unpack_from(view, at)
        at += _BUNDLE.size
        # LIMIT: a count is believed only as far as its bytes are there.
        if files * 2 > len(view) - at:
            raise MalformedDocument("a bundle's run ends before its last length")
        bundles.append(BundleRun(chunk, struct.unpack_from(f">{files}H", view, at)))
        at += 2 * files
    (count,) = _U32.unpack_from(view, at)
    at += _U32.size
    files_: list[FileRun] = []
    for _ in range(count):
        file, ordinal, last, chunks = _FILE.unpack_from(view, at)
        at += _FILE.size
        if last > 1 or not 0 < chunks <= (len(view) - at) // _ID_BYTES:
            raise MalformedDocument("a file's run says neither yes nor no, or ends before its last chunk")
        ids = [view[at + i * _ID_BYTES : at + (i + 1) * _ID_BYTES] for i in range(chunks)]
        files_.append(FileRun(file, ordinal, bool(last), ids))
        at += chunks * _ID_BYTES
    return Runs(bundles, files_), at
