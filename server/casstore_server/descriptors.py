"""Open files of packs, kept open: opening a file for each range would cost more than sending it.

A descriptor that is in use is never closed: leaving the cache only marks it, and the last user closes it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import BinaryIO, Final

from casstore.errors import PackNotFound
from casstore.ids import PackId
from casstore.storage.roles import PackStore

# LIMIT: half of the usual 1024 descriptors of a process; sockets need the others.
DESCRIPTORS_MAX: Final = 256


class OpenPack:
    """One open pack.

    Args:
        path: where it lies.

    Threads: the constructor blocks, so it runs in a reader; the rest belongs to the event loop.
    """

    def __init__(self, path: str) -> None:
        self.file: BinaryIO = open(path, "rb")  # noqa: SIM115  (closed by the last user)
        self.size = os.fstat(self.file.fileno()).st_size
        self._users = 0
        self._dropped = False

    def __enter__(self) -> OpenPack:
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._close_if_unused()

    def drop(self) -> None:
        """Close it as soon as no one uses it."""
        self._dropped = True
        self._close_if_unused()

    @property
    def is_deleted(self) -> bool:
        """Whether the file has lost its name."""
        return os.fstat(self.file.fileno()).st_nlink == 0

    def drop_after_use(self) -> None:
        """Close it once its first user is done."""
        self._dropped = True

    def _close_if_unused(self) -> None:
        if self._dropped and not self._users:
            self.file.close()


class Descriptors:
    """The packs that are open, the least recently used one leaving first.

    Packs are immutable and their names are never used twice, so an open pack never goes stale.

    Threads: event loop only.
    """

    def __init__(self, limit: int = DESCRIPTORS_MAX) -> None:
        self._limit = limit
        self._open: OrderedDict[PackId, OpenPack] = OrderedDict()

    def find(self, pack: PackId) -> OpenPack | None:
        """The open pack, or None: then open it in a reader and :meth:`keep` it."""
        found = self._open.get(pack)
        if found is not None:
            self._open.move_to_end(pack)
        return found

    def keep(self, pack: PackId, opened: OpenPack) -> OpenPack:
        """Take over a pack that was opened; if another request was faster, that one's is used."""
        if opened.is_deleted:
            # Opened before collection removed its name, handed over after: it serves this reader and no other.
            opened.drop_after_use()
            return opened
        present = self._open.setdefault(pack, opened)
        if present is not opened:
            opened.drop()
        self._open.move_to_end(pack)
        while len(self._open) > self._limit:
            self._open.popitem(last=False)[1].drop()
        return present

    def forget(self, pack: PackId) -> None:
        """Close a pack that was deleted."""
        found = self._open.pop(pack, None)
        if found is not None:
            found.drop()

    def close(self) -> None:
        """Close everything."""
        for opened in self._open.values():
            opened.drop()
        self._open.clear()


def open_pack(store: PackStore, pack: PackId) -> OpenPack:
    """Open a pack; blocks.

    Raises:
        PackNotFound: no such pack.
    """
    path = store.path(pack)
    assert path is not None, "the packs of a local store are files"
    try:
        return OpenPack(path)
    except FileNotFoundError as error:
        raise PackNotFound(f"there is no pack {pack}") from error
