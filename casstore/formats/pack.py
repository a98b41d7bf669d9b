"""Packs: immutable files of many frames and a footer.

A pack can be read in two ways: frame by frame from its beginning, without the footer, and by its footer, which says
where every frame lies.  What a frame is, and how it is sealed and opened, is :mod:`casstore.formats.frame`.

Must not know where packs lie or what refers to them.

Invariants: a pack that decodes has a footer that says exactly what its frames say, nothing between frames, nothing
behind the trailer, and no frame above the bound of its kind.

Source: docs/formats/pack.md
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from casstore.errors import MalformedDocument, TooLarge
from casstore.formats.frame import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    PLAIN_MAX_BYTES,
    Codec,
    Frame,
    FrameHead,
    ObjectKind,
    decode_frame,
    encode_frame,
    open_frame,
    read_frame,
    read_frame_head,
    seal_frame,
    verify_lengths,
    verify_object,
)
from casstore.hashing import Buffer, blake3_256
from casstore.ids import PackId
from casstore.limits import (
    PACK_FRAMES_MAX,
    PACK_PLAIN_MAX_BYTES,
    PACK_SIZE_MAX_BYTES,
    PACK_STRUCTURE_MAX_BYTES,
)

__all__ = [
    "FOOTER_OVERHEAD_BYTES",
    "FOOTER_ROW_BYTES",
    "FRAME_HEADER_BYTES",
    "PACK_HEADER_BYTES",
    "PLAIN_MAX_BYTES",
    "TRAILER_BYTES",
    "Codec",
    "Frame",
    "ObjectKind",
    "PackDecoder",
    "PackEncoder",
    "PackRow",
    "PackSummary",
    "decode_footer",
    "decode_frame",
    "decode_trailer",
    "encode_pack",
    "open_frame",
    "seal_frame",
    "verify_object",
]

PACK_MAGIC: Final = b"CASPACK\x01"
FOOTER_MAGIC: Final = b"CASPIDX\x01"
TRAILER_MAGIC: Final = b"CASPEND\x01"

_HEADER: Final = struct.Struct(">8s16s")
_FOOTER: Final = struct.Struct(">8s16sI")
_ROW: Final = struct.Struct(">BBIII32s")
_TRAILER: Final = struct.Struct(">Q32s8s")

PACK_HEADER_BYTES: Final = _HEADER.size
TRAILER_BYTES: Final = _TRAILER.size
FOOTER_OVERHEAD_BYTES: Final = _FOOTER.size + TRAILER_BYTES
FOOTER_ROW_BYTES: Final = _ROW.size

_SMALL_PIECE_BYTES: Final = 4096
_STRUCTURE: Final = frozenset({ObjectKind.LAYOUT, ObjectKind.ROOT})
_LARGEST_BYTES: Final = max(PLAIN_MAX_BYTES.values())


class PackRow(NamedTuple):
    """What the footer says about one frame.

    ``stored_length`` is that of the whole frame, header included, in bytes.
    """

    kind: ObjectKind
    id: bytes
    offset: int
    stored_length: int
    plain_length: int
    codec: Codec


class _PlainBytes:
    """What the objects of one pack come to when they are decompressed."""

    __slots__ = ("structure", "total")

    def __init__(self) -> None:
        self.total = 0
        self.structure = 0

    def add(self, kind: ObjectKind, plain_length: int) -> None:
        self.total += plain_length
        if kind in _STRUCTURE:
            self.structure += plain_length

    def exceed(self, more: int = 0) -> bool:
        """Whether they are above the bounds, or would be with ``more`` bytes of any kind."""
        return self.total + more > PACK_PLAIN_MAX_BYTES or self.structure + more > PACK_STRUCTURE_MAX_BYTES


class PackSummary(NamedTuple):
    """A pack that was read to its end: its name, its size in bytes, its frames in order."""

    pack: PackId
    size: int
    rows: list[PackRow]


# --- writing ---------------------------------------------------------------------------------------------------------


class PackEncoder:
    """Makes the bytes of one pack, piece by piece: :meth:`header`, :meth:`add` for each object, :meth:`finish`.

    Args:
        pack: the pack's random name.
    """

    def __init__(self, pack: PackId) -> None:
        self.pack = pack
        self.size = 0
        """Bytes handed out so far."""
        self.frames: list[PackRow] = []
        """What was added so far, in order."""
        self._plain = _PlainBytes()
        self._finished = False

    def header(self) -> bytes:
        """The first ``PACK_HEADER_BYTES`` of the pack; to be called first and once."""
        assert self.size == 0, "the header comes first and once"
        self.size = PACK_HEADER_BYTES
        return _HEADER.pack(PACK_MAGIC, self.pack)

    def fits(self, stored_length: int) -> bool:
        """Whether an object of ``stored_length`` stored bytes can still be added."""
        rows = len(self.frames) + 1
        size = self.size + FRAME_HEADER_BYTES + stored_length + FOOTER_OVERHEAD_BYTES + rows * FOOTER_ROW_BYTES
        return rows <= PACK_FRAMES_MAX and size <= PACK_SIZE_MAX_BYTES and not self._plain.exceed(_LARGEST_BYTES)

    def add(self, kind: ObjectKind, id: bytes, codec: Codec, stored: Buffer, plain_length: int) -> bytes:
        """The bytes of the next frame, to be written behind what came before.

        Args:
            kind: what it is.
            id: its 32-byte id.
            codec: how ``stored`` is stored; :func:`seal_frame` gives both.
            stored: the bytes to store.
            plain_length: length of the plain bytes, at most ``PLAIN_MAX_BYTES[kind]``.

        Raises:
            TooLarge: the pack is full (see :meth:`fits`).
            MalformedDocument: lengths that no frame may have.
        """
        assert self.size, "frames come behind the header"
        assert not self._finished, "frames come before the footer"
        if not self.fits(len(stored)):
            raise TooLarge(f"the pack {self.pack} is full", limit=PACK_SIZE_MAX_BYTES)
        frame = encode_frame(kind, id, codec, stored, plain_length)
        self.frames.append(PackRow(kind, bytes(id), self.size, len(frame), plain_length, codec))
        self._plain.add(kind, plain_length)
        self.size += len(frame)
        return frame

    def finish(self) -> bytes:
        """Footer and trailer, the last bytes of the pack."""
        assert self.size, "a pack has a header"
        assert not self._finished, "a pack is finished once"
        self._finished = True
        footer = b"".join(
            (
                _FOOTER.pack(FOOTER_MAGIC, self.pack, len(self.frames)),
                *(
                    _ROW.pack(kind, codec, offset, stored_length - FRAME_HEADER_BYTES, plain_length, object_id)
                    for kind, object_id, offset, stored_length, plain_length, codec in self.frames
                ),
                self.size.to_bytes(8, "big"),
            )
        )
        data = b"".join((footer, blake3_256(footer), TRAILER_MAGIC))
        self.size += len(data)
        return data


# --- reading a footer ------------------------------------------------------------------------------------------------


def decode_trailer(trailer: Buffer, pack_size: int) -> int:
    """Where the footer begins, from the last ``TRAILER_BYTES`` of a pack of ``pack_size`` bytes.

    Raises:
        MalformedDocument: not the end of a pack of this size.
    """
    if len(trailer) != TRAILER_BYTES:
        raise MalformedDocument(f"a pack ends with a trailer of {TRAILER_BYTES} bytes")
    offset, _, magic = _TRAILER.unpack(trailer)
    if magic != TRAILER_MAGIC:
        raise MalformedDocument("a pack does not end with CASPEND 01")
    if pack_size > PACK_SIZE_MAX_BYTES or not PACK_HEADER_BYTES <= offset <= pack_size - FOOTER_OVERHEAD_BYTES:
        raise MalformedDocument(f"a pack of {pack_size} bytes has no footer at {offset}")
    return int(offset)


def decode_footer(tail: Buffer, pack_size: int) -> PackSummary:
    """Read footer and trailer.

    Args:
        tail: the last bytes of the pack, from the footer's offset (see :func:`decode_trailer`) or from before it.
        pack_size: size of the whole pack in bytes.

    Raises:
        MalformedDocument: not the end of a pack of this size, or ``tail`` begins behind the footer's offset.
    """
    view = memoryview(tail)
    footer_offset = decode_trailer(view[-TRAILER_BYTES:], pack_size)
    if len(view) < pack_size - footer_offset:
        raise MalformedDocument(f"the footer has {pack_size - footer_offset} bytes, {len(view)} are here")
    view = view[len(view) - (pack_size - footer_offset) :]
    checksum_at = len(view) - TRAILER_BYTES + 8
    if blake3_256(view[:checksum_at]) != view[checksum_at : checksum_at + 32]:
        raise MalformedDocument("a pack's footer does not match its checksum")
    magic, pack, count = _FOOTER.unpack_from(view)
    rows_end = len(view) - TRAILER_BYTES
    if magic != FOOTER_MAGIC or count > PACK_FRAMES_MAX or rows_end - _FOOTER.size != count * _ROW.size:
        raise MalformedDocument("a pack's footer does not begin with CASPIDX 01, or its size does not fit its rows")
    rows: list[PackRow] = []
    expected = PACK_HEADER_BYTES
    for kind, codec, offset, stored_length, plain_length, object_id in _ROW.iter_unpack(view[_FOOTER.size : rows_end]):
        known, how = verify_lengths(kind, codec, stored_length, plain_length)
        if offset != expected:
            raise MalformedDocument(f"a footer places a frame at {offset}, the one before it ends at {expected}")
        whole = FRAME_HEADER_BYTES + stored_length
        rows.append(PackRow(known, object_id, offset, whole, plain_length, how))
        expected += whole
    if expected != footer_offset:
        raise MalformedDocument(f"a footer's last frame ends at {expected}, the footer begins at {footer_offset}")
    return PackSummary(PackId(pack), pack_size, rows)


# --- reading a stream ------------------------------------------------------------------------------------------------


class PackDecoder:
    """Reads a pack as it arrives, whatever the pieces, and holds it against every rule of the format.

    Frames come out as soon as they are whole; their ``stored`` are views of what was fed (or of one copy, where a frame
    arrived in several pieces), so the bytes fed must not be changed afterwards.  Memory: the largest frame and one
    piece.

    Args:
        expected: the name that the pack must have; None takes any.
    """

    def __init__(self, expected: PackId | None = None) -> None:
        self._expected = expected
        self._pieces: list[Buffer] = []
        self._pending = 0
        self._needed = PACK_HEADER_BYTES
        self._offset = 0  # of the first pending byte
        self._rows: list[PackRow] = []
        self._summary: PackSummary | None = None
        self._plain = _PlainBytes()
        self.pack: PackId | None = None
        """The pack's name, once its header was read."""
        self.awaited: FrameHead | None = None
        """The frame that is still coming in, once its header was read."""

    def feed(self, data: Buffer) -> list[Frame]:
        """Take more bytes, return the frames that they complete; each frame's checksum holds.

        Raises:
            MalformedDocument: not a pack, or another one than expected.
            TooLarge: above ``PACK_SIZE_MAX_BYTES``, ``PACK_FRAMES_MAX`` frames, ``PACK_PLAIN_MAX_BYTES`` of plain bytes,
                or ``PACK_STRUCTURE_MAX_BYTES`` of them in layouts and roots.
        """
        if not len(data):
            return []
        if self._summary is not None:
            raise MalformedDocument("a pack goes on behind its trailer")
        self._pending += len(data)
        # LIMIT: a slow writer's crumbs are gathered in one array, not in one object each.
        if len(data) < _SMALL_PIECE_BYTES:
            if not self._pieces or not isinstance(self._pieces[-1], bytearray):
                self._pieces.append(bytearray())
            last = self._pieces[-1]
            assert isinstance(last, bytearray)
            last += data
        else:
            self._pieces.append(data)
        if self._pending < self._needed:
            return []
        only = self._pieces[0] if len(self._pieces) == 1 else None
        whole = b"".join(self._pieces) if only is None or isinstance(only, bytearray) else only
        view = memoryview(whole)
        frames: list[Frame] = []
        used = self._take(view, frames)
        self._offset += used
        self._pending -= used
        self._pieces = [view[used:]] if self._pending else []
        return frames

    def _take(self, view: memoryview, frames: list[Frame]) -> int:
        """Cut what is whole off the front of ``view``; returns how many bytes that is, and sets what is needed next."""
        size = len(view)
        used = 0
        self.awaited = None
        if self.pack is None:
            self._take_header(view)
            used = PACK_HEADER_BYTES
        while True:
            self._needed = FRAME_HEADER_BYTES
            if size - used < FRAME_HEADER_BYTES:
                return used
            if bytes(view[used : used + 2]) != FRAME_MAGIC:
                return used + self._take_footer(view[used:], self._offset + used)
            offset = self._offset + used
            head = read_frame_head(view, used)
            whole = FRAME_HEADER_BYTES + head.stored_length
            if len(self._rows) >= PACK_FRAMES_MAX or offset + whole > PACK_SIZE_MAX_BYTES:
                raise TooLarge(f"a pack has at most {PACK_FRAMES_MAX} frames and {PACK_SIZE_MAX_BYTES} bytes")
            if size - used < whole:
                self._needed = whole
                self.awaited = head
                return used
            # LIMIT: before anything is decompressed: frames come out when all of a piece were looked at.
            self._plain.add(head.kind, head.plain_length)
            if self._plain.exceed():
                raise TooLarge(
                    f"the objects of a pack have at most {PACK_PLAIN_MAX_BYTES} plain bytes, {PACK_STRUCTURE_MAX_BYTES} of "
                    "them in layouts and roots",
                    limit=PACK_PLAIN_MAX_BYTES,
                )
            frames.append(read_frame(head, view, used, offset))
            self._rows.append(PackRow(head.kind, head.id, offset, whole, head.plain_length, head.codec))
            used += whole

    def _take_header(self, view: memoryview) -> None:
        magic, name = _HEADER.unpack_from(view)
        if magic != PACK_MAGIC:
            raise MalformedDocument("not a pack: it does not begin with CASPACK 01")
        self.pack = PackId(name)
        if self._expected is not None and self.pack != self._expected:
            raise MalformedDocument(f"the pack that was announced as {self._expected} calls itself {self.pack}")

    def _take_footer(self, view: memoryview, offset: int) -> int:
        """Read the footer at ``offset`` if it is whole; its length is known from the frames that were seen."""
        if bytes(view[:8]) != FOOTER_MAGIC:
            raise MalformedDocument(f"neither a frame nor the footer begins at offset {offset} of a pack")
        length = FOOTER_OVERHEAD_BYTES + len(self._rows) * FOOTER_ROW_BYTES
        self._needed = length
        if len(view) < length:
            return 0
        if len(view) > length:
            raise MalformedDocument("a pack goes on behind its trailer")
        summary = decode_footer(view, offset + length)
        if summary.rows != self._rows or summary.pack != self.pack:
            raise MalformedDocument("a pack's footer says something else than its frames")
        self._summary = summary
        return length

    def finish(self) -> PackSummary:
        """Say that there is no more.

        Raises:
            MalformedDocument: the pack is not whole.
        """
        if self._summary is None:
            raise MalformedDocument(f"a pack ends at {self._offset + self._pending} bytes, before its trailer")
        return self._summary


def encode_pack(pack: PackId, objects: Sequence[tuple[ObjectKind, bytes, Buffer]]) -> bytes:
    """A whole pack of a few objects (kind, id, plain bytes) at once.

    Raises:
        TooLarge: they do not fit into one pack, or one is above the bound of its kind.
    """
    encoder = PackEncoder(pack)
    parts = [encoder.header()]
    for kind, object_id, plain in objects:
        codec, stored = seal_frame(kind, object_id, plain)
        parts.append(encoder.add(kind, object_id, codec, stored, len(plain)))
    parts.append(encoder.finish())
    return b"".join(parts)
