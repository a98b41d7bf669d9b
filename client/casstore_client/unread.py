"""Content that the stat cache spares a push to read until the server lacks it.

Owns the promise about such content: before a byte of it is sent, the file still has the stamp that the walk took and the bytes
still have the digest that the cache promised.  Else the push ends as if the file had been read and had changed, or, where the
stamp is right and the digest is not, with :class:`CacheContradicted`: the cache was wrong, and the push begins again without it.

Threads: any.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId
from casstore_client.beneath import Beneath
from casstore_client.errors import show_path
from casstore_client.scan import Scanned, changed, source_fault
from casstore_client.source import open_scanned, read_rest, verify_unchanged


class CacheContradicted(Exception):
    """A file has the stamp that the cache has, and other bytes."""

    def __init__(self, path: bytes) -> None:
        super().__init__(f"{show_path(path)} is not what the stat cache says")


class Unread(Protocol):
    """The bytes of a chunk, which may be read if need be."""

    @property
    def length(self) -> int:
        """Their number."""
        ...

    @property
    def files(self) -> int:
        """How many files they lie in: what it costs to hold this."""
        ...

    def read(self) -> bytes:
        """Read and verify them.

        Raises:
            SourceChanged: a file is not as the walk saw it.
            InvalidInput: a file cannot be read.
            CacheContradicted: the bytes are not what the cache promised.
        """
        ...


class UnreadBundle(NamedTuple):
    """A bundle of small files."""

    root_fd: int
    chunk: ChunkId
    length: int
    members: Sequence[tuple[Scanned, BlobDigest]]

    @property
    def files(self) -> int:
        """How many files lie in it."""
        return len(self.members)

    def read(self) -> bytes:
        """As :meth:`Unread.read`."""
        data = b"".join(read_known(self.root_fd, self.members))
        if blake3_256(data) != self.chunk:
            raise CacheContradicted(self.members[0][0].path)
        return data


class UnreadRun(NamedTuple):
    """A chunk of a larger file."""

    root_fd: int
    chunk: ChunkId
    length: int
    scanned: Scanned
    offset: int

    @property
    def files(self) -> int:
        """One."""
        return 1

    def read(self) -> bytes:
        """As :meth:`Unread.read`."""
        scanned = self.scanned
        with Beneath(self.root_fd) as below:
            fd = open_scanned(below, scanned)
            try:
                data = os.pread(fd, self.length, self.offset)
                while 0 < len(data) < self.length:
                    piece = os.pread(fd, self.length - len(data), self.offset + len(data))
                    if not piece:
                        break
                    data += piece
                verify_unchanged(fd, scanned)
            except OSError as error:
                raise source_fault(scanned.path, error) from error
            finally:
                os.close(fd)
        if len(data) != self.length or blake3_256(data) != self.chunk:
            raise CacheContradicted(scanned.path)
        return data


def read_known(root_fd: int, members: Sequence[tuple[Scanned, BlobDigest]]) -> list[bytes]:
    """Read small files whose digests are known already, and hold each against its digest.

    Args:
        root_fd: the directory that they lie beneath.
        members: the files, in tree order.

    Raises:
        SourceChanged: one is not as the walk saw it.
        InvalidInput: one cannot be read.
        CacheContradicted: one has other bytes than the cache promised.
    """
    contents: list[bytes] = []
    with Beneath(root_fd) as below:
        for scanned, digest in members:
            fd = open_scanned(below, scanned)
            try:
                data = read_rest(fd, b"", scanned.size)
                verify_unchanged(fd, scanned)
            except OSError as error:
                raise source_fault(scanned.path, error) from error
            finally:
                os.close(fd)
            if len(data) != scanned.size:
                raise changed(scanned.path, "changed its size")
            if blake3_256(data) != digest:
                raise CacheContradicted(scanned.path)
            contents.append(data)
    return contents
