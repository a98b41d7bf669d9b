"""Frames: one object as it lies in a pack, and how it is sealed and opened.

A frame is one object (chunk, page, root, layout, document), compressed or not, with a checksum over its header and its
stored bytes, so that damage shows before anything is decompressed.  The checksum guards against accidents only; what
makes an object trustworthy is that its plain bytes hash to its id (:func:`open_frame`).

Others import these names from :mod:`casstore.formats.pack`.

Source: docs/formats/pack.md
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from casstore.compression import zstd_compress, zstd_decompress
from casstore.errors import CasstoreError, DamagedObject, DigestMismatch, MalformedDocument, TooLarge
from casstore.formats.layout import decode_layout
from casstore.hashing import CONTEXT_PAGE, CONTEXT_SNAPSHOT, CONTEXT_TREE, Blake3Hasher, Buffer, blake3_256, derive
from casstore.limits import (
    CHUNK_MAX_BYTES,
    LAYOUT_SIZE_MAX_BYTES,
    PAGE_SIZE_MAX_BYTES,
    ROOT_SIZE_MAX_BYTES,
    SNAPSHOT_SIZE_MAX_BYTES,
)

FRAME_MAGIC: Final = b"CF"
_FRAME: Final = struct.Struct(">2sBBII32s")
_CHECKSUM_BYTES: Final = 12
FRAME_HEADER_BYTES: Final = _FRAME.size + _CHECKSUM_BYTES


class ObjectKind(IntEnum):
    """What a frame holds."""

    CHUNK = 1
    PAGE = 2
    ROOT = 3
    LAYOUT = 4
    DOCUMENT = 5


class Codec(IntEnum):
    """How a frame's bytes are stored."""

    RAW = 0
    ZSTD = 1


PLAIN_MAX_BYTES: Final = {
    ObjectKind.CHUNK: CHUNK_MAX_BYTES,
    ObjectKind.PAGE: PAGE_SIZE_MAX_BYTES,
    ObjectKind.ROOT: ROOT_SIZE_MAX_BYTES,
    ObjectKind.LAYOUT: LAYOUT_SIZE_MAX_BYTES,
    ObjectKind.DOCUMENT: SNAPSHOT_SIZE_MAX_BYTES,
}
_KINDS: Final = {int(kind): (kind, limit) for kind, limit in PLAIN_MAX_BYTES.items()}
_CODECS: Final = {int(codec): codec for codec in Codec}
_CONTEXTS: Final = {
    ObjectKind.PAGE: CONTEXT_PAGE,
    ObjectKind.ROOT: CONTEXT_TREE,
    ObjectKind.DOCUMENT: CONTEXT_SNAPSHOT,
}


class Frame(NamedTuple):
    """One frame of a pack.

    ``stored`` may be a view of the bytes that were fed.  ``offset`` is that of the frame's header in the pack; the
    whole frame has ``FRAME_HEADER_BYTES + len(stored)`` bytes.
    """

    kind: ObjectKind
    codec: Codec
    id: bytes
    stored: Buffer
    plain_length: int
    offset: int


class FrameHead(NamedTuple):
    """A frame's header, checked but for the checksum.  ``stored_length`` counts the stored bytes, without the
    header."""

    kind: ObjectKind
    codec: Codec
    stored_length: int
    plain_length: int
    id: bytes


def verify_lengths(kind: int, codec: int, stored_length: int, plain_length: int) -> tuple[ObjectKind, Codec]:
    """The rules between the four numbers of a frame header, which are those of a footer row too.

    Raises:
        MalformedDocument: an unknown kind or codec, a plain length above the bound of its kind, a stored length that
            the codec does not allow.
    """
    known = _KINDS.get(kind)
    how = _CODECS.get(codec)
    if known is None or how is None:
        raise MalformedDocument(f"a frame of kind {kind} and codec {codec}: there is no such kind or codec")
    if plain_length > known[1]:
        raise MalformedDocument(
            f"a frame holds a {known[0].name} of {plain_length} bytes, above the bound of {known[1]}"
        )
    # One spelling: zstd only where it saves at least a byte.  So stored ≤ plain, and the bound above bounds both.
    if stored_length != plain_length if how is Codec.RAW else not 0 < stored_length < plain_length:
        raise MalformedDocument(f"a {how.name} frame stores {stored_length} bytes for {plain_length}")
    return known[0], how


def read_frame_head(data: Buffer, position: int) -> FrameHead:
    """The frame header at ``position`` of ``data``, all of which is there.

    Raises:
        MalformedDocument: no frame begins here.
    """
    magic, kind, codec, stored_length, plain_length, object_id = _FRAME.unpack_from(data, position)
    if magic != FRAME_MAGIC:
        raise MalformedDocument("no frame begins here: its first two bytes are not CF")
    known, how = verify_lengths(kind, codec, stored_length, plain_length)
    return FrameHead(known, how, stored_length, plain_length, object_id)


def _checksum(head: Buffer, stored: Buffer) -> bytes:
    """Over the frame header from ``kind`` to ``id``, and the stored bytes."""
    return Blake3Hasher(head).update(stored).digest(length=_CHECKSUM_BYTES)


def read_frame(head: FrameHead, data: memoryview, position: int, offset: int) -> Frame:
    """The frame at ``position`` of ``data``, all of which is there.  Its ``stored`` is a view of ``data``.

    Raises:
        MalformedDocument: it does not match its checksum.
    """
    body = position + FRAME_HEADER_BYTES
    stored = data[body : body + head.stored_length]
    covered = position + _FRAME.size
    if _checksum(data[position + 2 : covered], stored) != data[covered:body]:
        raise MalformedDocument(f"the {head.kind.name} frame {head.id.hex()} does not match its checksum")
    return Frame(head.kind, head.codec, head.id, stored, head.plain_length, offset)


def encode_frame(kind: ObjectKind, id: bytes, codec: Codec, stored: Buffer, plain_length: int) -> bytes:
    """``"CF" ‖ u8 kind ‖ u8 codec ‖ u32be stored ‖ u32be plain ‖ id32 ‖ checksum12 ‖ stored bytes``

    Raises:
        MalformedDocument: lengths that no frame may have.
    """
    assert len(id) == 32, "an object's id has 32 bytes"
    verify_lengths(kind, codec, len(stored), plain_length)
    head = _FRAME.pack(FRAME_MAGIC, kind, codec, len(stored), plain_length, id)
    return b"".join((head, _checksum(memoryview(head)[2:], stored), stored))


def decode_frame(data: Buffer, offset: int) -> Frame:
    """Read one frame that was fetched by its location.

    Args:
        data: exactly the bytes of the frame, header included.
        offset: where in its pack it lay, for the :class:`Frame` and for messages.

    Raises:
        DamagedObject: not a whole frame, or it does not match its checksum.
    """
    where = f"offset {offset}"
    try:
        if len(data) < FRAME_HEADER_BYTES:
            raise MalformedDocument("a frame ends inside its header")
        head = read_frame_head(data, 0)
        if len(data) != FRAME_HEADER_BYTES + head.stored_length:
            raise MalformedDocument(
                f"a frame says that it stores {head.stored_length} bytes, {len(data)} were fetched for it"
            )
        return read_frame(head, memoryview(data), 0, offset)
    except MalformedDocument as error:
        raise DamagedObject(f"damaged frame at {where}: {error.detail}", where=where) from error


def verify_object(kind: ObjectKind, id: bytes, plain: Buffer) -> None:
    """Hold plain bytes against the id that they go by.

    A layout has no hash of its own (its id is that of its page or blob): it must decode.

    Raises:
        DigestMismatch: they hash to something else.
        MalformedDocument: a layout that does not decode.
        TooLarge: a layout beyond its bound.
    """
    if kind is ObjectKind.LAYOUT:
        decode_layout(plain if not isinstance(plain, bytearray) else bytes(plain))
        return
    found = blake3_256(plain) if kind is ObjectKind.CHUNK else derive(_CONTEXTS[kind], plain)
    if found != id:
        raise DigestMismatch(
            f"a {kind.name} was to hash to {bytes(id).hex()}, it hashes to {found.hex()}",
            expected=bytes(id).hex(),
            found=found.hex(),
        )


def open_frame(frame: Frame) -> bytes:
    """Decompress a frame and prove that it holds the object that it names.

    Returns:
        The plain bytes, ``frame.plain_length`` of them.

    Raises:
        DamagedObject: it does not decompress to its plain length, or the plain bytes are another object.  Whoever
            received the frame from a client answers that the client's input is wrong instead.
    """
    try:
        # LIMIT: plain_length was bounded by kind when the header was read, so this allocates at most that.
        if frame.codec is Codec.RAW:
            plain = bytes(frame.stored)
        else:
            plain = zstd_decompress(frame.stored, frame.plain_length)
        verify_object(frame.kind, frame.id, plain)
    except CasstoreError as error:
        raise DamagedObject(
            f"damaged {frame.kind.name} {frame.id.hex()} at offset {frame.offset}: {error.detail}",
            object=frame.id.hex(),
            where=f"offset {frame.offset}",
            expected=frame.id.hex(),
            found=error.fields.get("found"),
        ) from error
    return plain


def seal_frame(kind: ObjectKind, id: bytes, plain: Buffer) -> tuple[Codec, Buffer]:
    """Compress an object for a frame: zstd, or raw where that is not larger.

    Returns:
        codec and stored bytes, for :meth:`PackEncoder.add`; raw ones are ``plain`` itself.

    Raises:
        TooLarge: above ``PLAIN_MAX_BYTES[kind]``.
    """
    if len(plain) > PLAIN_MAX_BYTES[kind]:
        limit = PLAIN_MAX_BYTES[kind]
        raise TooLarge(f"the {kind.name} {bytes(id).hex()} has {len(plain)} bytes, the bound is {limit}", limit=limit)
    squeezed = zstd_compress(plain) if len(plain) else b""
    if 0 < len(squeezed) < len(plain):
        return Codec.ZSTD, squeezed
    return Codec.RAW, plain
