"""Room on the disk: how much is free, and how much of it packs must leave.

Owns the reserve.  A disk that pushes have filled to the last block could commit nothing any more, not even the rollback that
undoes the push: so packs are refused while less than the reserve is free, and what is left is for the ledger, for the index and for
the record of signed heads.  Others may fill the disk all the same; then a commit is refused, and nothing is lost.

Knows no formats; asks the file system each time, which costs a microsecond.

Threads: any.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from casstore.errors import StoreFull
from casstore.limits import GIB
from casstore.storage.local.files import Files, refusal

# LIMIT: a flip takes some tens of KiB at most, and gives most of it back: this is for ten thousand of them and more.
RESERVE_DEFAULT_MAX_BYTES: Final = GIB
RESERVE_DEFAULT_SHARE: Final = 50  # of a small file system the fiftieth part
RESERVE_FILES: Final = 64  # names that packs leave; the ledger needs two, and only while it compacts its heads


class DiskState(NamedTuple):
    """What the file system of the store has left."""

    free_bytes: int
    free_files: int | None
    """How many more files it takes; None where it does not count them."""
    reserve_bytes: int
    trouble: str | None
    """Why no pack is taken, as the end of a sentence; None if packs are taken."""


class DiskRoom:
    """The room of one store directory.

    Args:
        path: the directory.
        files: how it is asked.
        reserve_bytes: how much packs leave free; None for the fiftieth part of the file system, at most
            ``RESERVE_DEFAULT_MAX_BYTES``; 0 for nothing.
    """

    def __init__(self, path: str, files: Files, reserve_bytes: int | None = None) -> None:
        self._path = path
        self._files = files
        self._reserve_bytes = reserve_bytes

    def look(self, wanted_bytes: int = 0) -> DiskState:
        """What is free now, and whether a pack of so many bytes would be taken.

        Raises:
            Unavailable: the file system cannot be asked.
        """
        try:
            space = self._files.space(self._path)
        except OSError as error:
            raise refusal(error, "ask how much space is free") from error
        reserve = self._reserve_bytes
        if reserve is None:
            reserve = min(RESERVE_DEFAULT_MAX_BYTES, space.total_bytes // RESERVE_DEFAULT_SHARE)
        trouble: str | None = None
        if reserve and space.free_bytes - wanted_bytes < reserve:
            trouble = f"{space.free_bytes} bytes are free, and {reserve} are kept for flips and rollbacks"
        elif reserve and space.free_files is not None and space.free_files < RESERVE_FILES:
            trouble = f"the file system takes {space.free_files} more files, and {RESERVE_FILES} are kept"
        return DiskState(space.free_bytes, space.free_files, reserve, trouble)

    def demand(self, wanted_bytes: int) -> None:
        """Refuse a pack for which there is no room.

        Args:
            wanted_bytes: what is about to be written.

        Raises:
            StoreFull: the reserve would be touched; nothing was written.
            Unavailable: the file system cannot be asked.
        """
        trouble = self.look(wanted_bytes).trouble
        if trouble is not None:
            raise StoreFull(
                f"the store takes no more content: {trouble}",
                hint="free or add disk space, then push again; no restart is needed, and pulls and flips go on",
            )
