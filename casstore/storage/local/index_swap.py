"""How a new index takes the place of another one, so that a crash at any moment leaves a store that opens.

A new index is built beside the old one, in ``index.building``.  Four names say how far it came::

    index.building    unfinished; removed when the store is opened
    index.new         finished: it is the index; whoever opens the store puts it in its place
    index             in use
    index.old         replaced; removed when the store is opened

Owns these names.  Knows nothing of what an index holds; the store's lock is held by whoever calls.

# ORDER: building → new when it is whole and durable; index → old; new → index; old is removed.  Each step is durable before the
# next one.
# CRASH: wherever it stops, :func:`settle_index` goes on from the names that are there.
"""

from __future__ import annotations

import os
from typing import Final

from casstore.storage.local.files import Files, refusal
from casstore.storage.local.index import LocalChunkIndex

_INDEX: Final = "index"
_BUILDING: Final = "index.building"
_NEW: Final = "index.new"
_OLD: Final = "index.old"


def begin_index(directory: str, files: Files) -> LocalChunkIndex:
    """Begin a new index beside the one in use; the caller closes it, and then calls :func:`adopt_index` or nothing.

    Raises:
        StoreFull, ReadOnly, Unavailable: it cannot be made.
    """
    try:
        _remove(os.path.join(directory, _BUILDING), files)
    except OSError as error:
        raise refusal(error, f"remove {_BUILDING}") from error
    LocalChunkIndex.lay_out(directory, files, _BUILDING)
    return LocalChunkIndex(directory, files, _BUILDING)


def adopt_index(directory: str, files: Files) -> None:
    """Let the index that was built, and closed, be the one in use.

    Durability: durable when this returns.  CRASH: the store opens with the old index or with the new one.

    Raises:
        StoreFull, ReadOnly, Unavailable: the disk refused; opening the store says which of the two it is.
    """
    try:
        files.rename(os.path.join(directory, _BUILDING), os.path.join(directory, _NEW))
        files.fsync_dir(directory)
    except OSError as error:
        raise refusal(error, "put the new index in its place") from error
    settle_index(directory, files)


def settle_index(directory: str, files: Files) -> None:
    """Finish what a crash interrupted; without a crash there is nothing to do.

    Raises:
        ReadOnly, Unavailable: the disk refused.
    """
    index, new, old, building = (os.path.join(directory, name) for name in (_INDEX, _NEW, _OLD, _BUILDING))
    try:
        there = set(files.listdir(directory))
        if _NEW in there:
            if _INDEX in there:
                # CRASH: a swap before this one may have left its old index.
                _remove(old, files)
                files.rename(index, old)
                # ORDER: without this a power cut could keep the second rename and lose the first.
                files.fsync_dir(directory)
                there.add(_OLD)
            files.rename(new, index)
            files.fsync_dir(directory)
            there.add(_INDEX)
        if _OLD in there and _INDEX in there:
            _remove(old, files)
        if _BUILDING in there:
            _remove(building, files)
    except OSError as error:
        raise refusal(error, "put the new index in its place") from error


def _remove(path: str, files: Files) -> None:
    """Remove a directory of files, if it is there."""
    try:
        names = files.listdir(path)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        files.unlink(path)  # garbage stood where the index belongs
        return
    for name in names:
        files.unlink(os.path.join(path, name))
    files.rmdir(path)
