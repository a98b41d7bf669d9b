"""Keeps pages that were pulled, so that the next pull asks only for those that are new.

Owns the folder ``pages`` of the user's cache directory: in it a folder for each server, with a file for each page, named by its
digest, that holds the record as the server sent it: the page, its layout, and where the chunks lay then.  Anyone may empty it at any time.

# TRUST: a page is held against its digest, and the record against a checksum, each time it is read.  Layout and places are hints
wherever they come from: what they lead to is held against the digests of chunk and file, and where they have grown old the
server is asked again.

Threads: blocking; any number of threads and processes at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from casstore.errors import CasstoreError
from casstore.formats.tree import page_digest
from casstore.hashing import blake3_256
from casstore.ids import PageDigest
from casstore.limits import MIB
from casstore.wire import PageRecord, PageRecordDecoder, encode_page_record

# LIMIT: about five million entries.  More, and the oldest quarter goes.
SIZE_MAX_BYTES: Final = 512 * MIB
RECORD_MAX_BYTES: Final = 64 * MIB
_MAGIC: Final = b"CASC\x01"
_CHECKSUM_BYTES: Final = 32
_TOUCH_AFTER_S: Final = 3600.0


class PageCache:
    """The pages that came from one server.

    Args:
        cache_dir: the user's cache directory; folders are made when the first page comes.
        url: of the server: places are another server's own.
        size_max_bytes: what the pages of all servers may take after :meth:`trim`.
    """

    def __init__(self, cache_dir: Path, url: str, *, size_max_bytes: int = SIZE_MAX_BYTES) -> None:
        self._all = cache_dir / "pages"
        self._own = self._all / blake3_256(url.encode())[:8].hex()
        self._size_max_bytes = size_max_bytes

    def has(self, digest: PageDigest) -> bool:
        """Whether there seems to be such a page."""
        return self._path(digest).exists()

    def get(self, digest: PageDigest) -> PageRecord | None:
        """The record of a page; None if it is not here, or not whole."""
        path = self._path(digest)
        try:
            # TRUST: what lies there may be a pipe, or a link to one: neither blocks a pull.
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                data = file.read(RECORD_MAX_BYTES + 1)
                age_s = time.time() - os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        body = memoryview(data)[len(_MAGIC) + _CHECKSUM_BYTES :]
        if data[: len(_MAGIC)] == _MAGIC and blake3_256(body) == data[len(_MAGIC) : len(_MAGIC) + _CHECKSUM_BYTES]:
            with suppress(CasstoreError, ValueError):
                decoder = PageRecordDecoder()
                records = decoder.feed(bytes(body))
                decoder.finish()
                if len(records) == 1 and page_digest(records[0].page) == digest:
                    if age_s > _TOUCH_AFTER_S:
                        with suppress(OSError):
                            os.utime(path)
                    return records[0]
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, items: Iterable[tuple[PageDigest, PageRecord]]) -> None:
        """Keep records of pages that were verified.  A cache that cannot be written to keeps nothing, and that is all."""
        for digest, record in items:
            body = encode_page_record(record)
            if len(body) > RECORD_MAX_BYTES:
                continue
            path = self._path(digest)
            temporary = path.with_name(f".{path.name}-{os.urandom(6).hex()}")
            try:
                for directory in (self._all.parent, self._all, self._own):
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Not synced: after a power cut it may be short, and then its checksum does not hold.
                with temporary.open("xb") as file:
                    file.write(_MAGIC + blake3_256(body))
                    file.write(body)
                temporary.replace(path)
            except OSError:
                with suppress(OSError):
                    temporary.unlink()
                return

    def trim(self) -> None:
        """Remove the pages that were not used for longest, where there are too many."""
        found: list[tuple[float, int, str]] = []
        with suppress(OSError):
            for server in os.scandir(self._all):
                with suppress(OSError):
                    for entry in os.scandir(server.path):
                        with suppress(OSError):
                            info = entry.stat(follow_symlinks=False)
                            found.append((info.st_mtime, info.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total <= self._size_max_bytes:
            return
        for _, size, path in sorted(found):
            if total <= self._size_max_bytes * 3 // 4:
                return
            total -= size
            with suppress(OSError):
                os.unlink(path)

    def _path(self, digest: PageDigest) -> Path:
        return self._own / bytes(digest).hex()
