"""Who may have what a store has lost: files as they were pushed, packs, another server.

Owns finding wanted objects at a holder.  A holder is believed for hashes alone: every object that it gives was held against its id
here, and is again where it goes; a layout has no hash, and whoever takes it proves it.

Memory: places of wanted objects, one pack's footer, one object.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

from casstore.errors import CasstoreError, InvalidInput, MalformedDocument, NotFound
from casstore.formats.pack import (
    FOOTER_OVERHEAD_BYTES,
    PACK_MAGIC,
    TRAILER_BYTES,
    ObjectKind,
    decode_footer,
    decode_frame,
    decode_trailer,
    open_frame,
    verify_object,
)
from casstore.ids import BlobDigest
from casstore.limits import CHUNK_MAX_BYTES, OBJECTS_REQUEST_MAX
from casstore.wire import FilePiece, WantedObject
from casstore_client.blocking import Client

Object: TypeAlias = tuple[ObjectKind, bytes, bytes]
"""Kind, id, plain bytes."""
_Key: TypeAlias = tuple[ObjectKind, bytes]

# LIMIT: copies of one layout that are tried: each push of a page may have brought another.
_COPIES_MAX: Final = 8
_WAYS_MAX: Final = 4


class Holder(Protocol):
    """Somebody who may have wanted objects."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def get(self, wanted: Sequence[WantedObject]) -> Iterator[Object]:
        """Those of ``wanted`` that the holder has; a layout perhaps several times, in several versions.

        Raises:
            CasstoreError: the holder cannot be asked.
        """
        ...


def key_of(wanted: WantedObject) -> _Key:
    """Kind and id of a wanted object."""
    return ObjectKind[wanted.kind.upper()], bytes(BlobDigest.parse(wanted.id))


class _Place(NamedTuple):
    path: str
    offset: int
    length: int


class PackFiles:
    """Packs as files: of a store, a backup, or a single one.

    Args:
        path: a pack, or a directory below which all files named ``*.pack`` are looked at.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """See the protocol."""
        return f"packs in {self._path}"

    def get(self, wanted: Sequence[WantedObject]) -> Iterator[Object]:
        """See the protocol."""
        keys = {key_of(one) for one in wanted}
        places: dict[_Key, list[_Place]] = {}
        for path in self._packs():
            with suppress(MalformedDocument, OSError):
                self._look(path, keys, places)
        # In the order in which they lie: one pass over each pack.
        for (kind, id), found in sorted(places.items(), key=lambda item: item[1][0]):
            for place in found:
                with suppress(CasstoreError, OSError):
                    yield kind, id, _read_frame(place, kind, id)
                    if kind is not ObjectKind.LAYOUT:
                        break

    def _packs(self) -> Iterator[str]:
        if os.path.isfile(self._path):
            yield self._path
            return
        for directory, _, names in os.walk(self._path):
            yield from (os.path.join(directory, name) for name in sorted(names) if name.endswith(".pack"))

    def _look(self, path: str, keys: set[_Key], places: dict[_Key, list[_Place]]) -> None:
        with open(path, "rb") as file:
            # A pack of git ends with the same letters.
            if file.read(len(PACK_MAGIC)) != PACK_MAGIC:
                return
            size = os.fstat(file.fileno()).st_size
            if size < FOOTER_OVERHEAD_BYTES:
                return
            file.seek(size - TRAILER_BYTES)
            footer = decode_trailer(file.read(TRAILER_BYTES), size)
            file.seek(footer)
            rows = decode_footer(file.read(size - footer), size).rows
        for row in rows:
            if (row.kind, row.id) in keys:
                known = places.setdefault((row.kind, row.id), [])
                if len(known) < _COPIES_MAX:
                    known.append(_Place(path, row.offset, row.stored_length))


def _read_frame(place: _Place, kind: ObjectKind, id: bytes) -> bytes:
    """The object at a place.

    Raises:
        DamagedObject: it is not whole there.
        MalformedDocument: it is another one.
    """
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        frame = decode_frame(file.read(place.length), place.offset)
    if (frame.kind, frame.id) != (kind, id):
        raise MalformedDocument("another object lies there")
    return open_frame(frame)


class OriginalFiles:
    """Files as they were pushed: a tree's directory, or a blob's file.

    Args:
        path: the directory that was pushed, or the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def name(self) -> str:
        """See the protocol."""
        return f"files in {self._path}"

    def get(self, wanted: Sequence[WantedObject]) -> Iterator[Object]:
        """See the protocol: chunks only; what else a directory makes comes back when it is pushed again."""
        for one in wanted:
            kind, id = key_of(one)
            if kind is not ObjectKind.CHUNK or not one.pieces or not 0 < (one.plain_bytes or 0) <= CHUNK_MAX_BYTES:
                continue
            for way in range(_WAYS_MAX):
                plain = self._put_together(one, way)
                with suppress(CasstoreError):
                    if plain is not None:
                        verify_object(kind, id, plain)
                        yield kind, id, plain
                        break

    def _put_together(self, one: WantedObject, way: int) -> bytes | None:
        """The chunk from its pieces, each from the ``way``-th file that may have it; None if one cannot be read."""
        by_place: dict[int, list[FilePiece]] = {}
        for piece in one.pieces:
            by_place.setdefault(piece.at, []).append(piece)
        plain = b""
        while len(plain) < (one.plain_bytes or 0):
            ways = by_place.get(len(plain))
            if not ways:
                return None
            data = self._read(ways[way % len(ways)])
            if not data:
                return None
            plain += data
        return plain

    def _read(self, piece: FilePiece) -> bytes | None:
        path = os.fsencode(self._path)
        relative = base64.b64decode(piece.path_b64)
        # TRUST: the paths come from a store that is damaged: none of them leads out of the directory.
        if relative.startswith(b"/") or b".." in relative.split(b"/") or b"\0" in relative:
            return None
        for candidate in [path if not relative else os.path.join(path, relative)]:
            try:
                descriptor = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    continue
                data = os.pread(descriptor, min(piece.length, CHUNK_MAX_BYTES), piece.offset)
            finally:
                os.close(descriptor)
            if len(data) == piece.length:
                return data
        return None


class OtherServer:
    """Another casstore server.

    Args:
        client: connected to it.
        url: for people.
    """

    def __init__(self, client: Client, url: str) -> None:
        self._client = client
        self._url = url

    @property
    def name(self) -> str:
        """See the protocol."""
        return self._url

    def get(self, wanted: Sequence[WantedObject]) -> Iterator[Object]:
        """See the protocol."""
        left = [key_of(one) for one in wanted]
        while left:
            asked = left[:OBJECTS_REQUEST_MAX]
            try:
                found = self._client.objects(asked)
            except NotFound:
                left = left[len(asked) :]
                continue
            yield from found
            had = {(kind, id) for kind, id, _ in found}
            # The answer ends where it is full: what stands in front of the last one that came is not there.
            last = max(number for number, key in enumerate(asked) if key in had)
            left = left[last + 1 :]


def open_holders(source: str, client: Client | None = None) -> list[Holder]:
    """The holders that a person names.

    Args:
        source: a directory, a file, or a server's URL.
        client: connected to that server.

    Raises:
        InvalidInput: there is no such file or directory.
    """
    if client is not None:
        return [OtherServer(client, source)]
    if not Path(source).exists():
        raise InvalidInput(f"{source}: there is no such file, directory or server")
    return [PackFiles(source), OriginalFiles(source)]
