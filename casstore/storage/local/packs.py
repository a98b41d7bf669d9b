"""Packs as plain files: ``packs/<first two hex digits>/<id>.pack``, written in ``tmp/`` and named when complete.

Owns: the names of pack files and how one comes to be durable.  Knows nothing of what a pack holds.

Invariants: a named pack is whole and never changes; nothing is appended to it.  The order of a commit::

    write the bytes in tmp/  →  fsync the file  →  link it to its name  →  fsync the directory  →  unlink the tmp name

The link fails where the name is taken, in one step, so that put-once holds between racing writers too.  The 256
directories below ``packs/`` are made with the store: a directory made by the first pack in it would need its own fsync
above it, and a racing second pack could be acknowledged before that.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from casstore.errors import (
    CasstoreError,
    Conflict,
    DamagedObject,
    DestinationExists,
    NotInitialised,
    OutcomeUnknown,
    PackNotFound,
    StateError,
)
from casstore.ids import PackId
from casstore.storage.local.diskroom import DiskRoom
from casstore.storage.local.files import Files, is_full, refusal

_PACKS: Final = "packs"
_TMP: Final = "tmp"
_SUFFIX: Final = ".pack"
_NAME: Final = re.compile(r"([0-9a-f]{32})\.pack\Z")
_OPEN_PACKS_MAX: Final = 128  # descriptors kept for reading; far below the usual limit of 1,024 a process


class LocalPackStore:
    """Implements :class:`~casstore.storage.roles.PackStore`.

    Args:
        directory: the store directory; packs lie below it, in ``packs/`` and ``tmp/``.
        files: how bytes and names reach the disk.
        room: what packs must leave free; nothing by default.

    Raises:
        NotInitialised: the directories are not there.

    Threads: any.  After a failed fsync the store takes no more packs (:class:`OutcomeUnknown`); reading goes on, for
    what was committed before is not in doubt.
    """

    def __init__(self, directory: str, files: Files, room: DiskRoom | None = None) -> None:
        self.room = room or DiskRoom(directory, files, 0)
        self._packs = os.path.join(directory, _PACKS)
        self._tmp = os.path.join(directory, _TMP)
        self._files = files
        self._lock = threading.Lock()
        self._readers = _Descriptors(files)
        self._writers: set[LocalPackWriter] = set()
        self._numbers = itertools.count()
        self._closed = False
        self.sealed = False
        for path in (self._packs, self._tmp):
            if not os.path.isdir(path):
                raise NotInitialised(
                    f"there is no directory {path}", hint="was the store created with `casstore init`?"
                )

    @classmethod
    def lay_out(cls, directory: str, files: Files) -> None:
        """Make the empty directories in a store directory.

        Raises:
            DestinationExists: they are there.
            StoreFull, Unavailable: they cannot be made.

        Durability: all but the names ``packs`` and ``tmp``, which the caller makes durable with the directory.
        """
        packs = os.path.join(directory, _PACKS)
        try:
            files.mkdir(os.path.join(directory, _TMP))
            files.mkdir(packs)
            for number in range(256):
                files.mkdir(os.path.join(packs, f"{number:02x}"))
            files.fsync_dir(packs)
        except FileExistsError as error:
            raise DestinationExists(f"{error.filename} exists: new directories are never made over old ones") from error
        except OSError as error:
            raise refusal(error, "make the directories for packs") from error

    def create(self, pack: PackId) -> LocalPackWriter:
        """See the role.

        Raises:
            StoreFull, Unavailable: the file cannot be made.
            OutcomeUnknown: the store is sealed.
        """
        self._check()
        self.check_sealed()
        if os.path.lexists(self._path(pack)):
            raise _taken(pack)
        self.room.demand(0)
        # Two writers of one name get a file each; commit decides between them.
        temporary = os.path.join(self._tmp, f"{pack}.{next(self._numbers)}")
        try:
            descriptor = self._files.open_write(temporary)
        except OSError as error:
            raise refusal(error, "begin a pack") from error
        writer = LocalPackWriter(self, pack, descriptor, files=self._files, temporary=temporary, final=self._path(pack))
        with self._lock:
            self._writers.add(writer)
        return writer

    def read(self, pack: PackId, offset: int, length: int) -> bytes:
        """See the role."""
        self._check()
        with self._readers.lend(pack, self._path(pack)) as descriptor:
            try:
                data = self._files.pread(descriptor, length, offset)
            except OSError as error:
                raise DamagedObject(
                    f"pack {pack}: the disk cannot read {length} bytes at {offset}: {error.strerror}",
                    object=str(pack),
                    where=f"{self._path(pack)}:{offset}",
                ) from error
        if len(data) != length:
            raise DamagedObject(
                f"pack {pack} ends early: {length} bytes at {offset} expected, {len(data)} found",
                object=str(pack),
                where=f"{self._path(pack)}:{offset}",
                expected=str(length),
                found=str(len(data)),
            )
        return data

    def size(self, pack: PackId) -> int:
        """See the role."""
        self._check()
        try:
            return self._files.stat(self._path(pack)).st_size
        except FileNotFoundError as error:
            raise _missing(pack) from error
        except OSError as error:
            raise refusal(error, f"look at pack {pack}") from error

    def list(self, *, after: PackId | None = None, limit: int) -> list[PackId]:
        """See the role."""
        self._check()
        found: list[PackId] = []
        first = 0 if after is None else after[0]
        for number in range(first, 256):
            if len(found) >= limit:
                break
            try:
                names = self._files.listdir(os.path.join(self._packs, f"{number:02x}"))
            except OSError as error:
                raise refusal(error, "list its packs") from error
            for name in names:
                match = _NAME.match(name)
                if match and name.startswith(f"{number:02x}"):
                    pack = PackId.parse(match[1])
                    if after is None or pack > after:
                        found.append(pack)
        return found[: max(limit, 0)]

    def delete(self, pack: PackId) -> None:
        """See the role.

        Raises:
            Unavailable: the name cannot be removed.
            OutcomeUnknown: it was removed, perhaps not durably.

        Durability: the name is gone for good when this returns.
        """
        self._check()
        self.check_sealed()
        path = self._path(pack)
        self._readers.forget(pack)
        try:
            self._files.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise refusal(error, f"delete pack {pack}") from error
        # Once more: a reader may have opened it in between, and as long as it is open its space is not free.
        self._readers.forget(pack)
        try:
            self._files.fsync_dir(os.path.dirname(path))
        except OSError as error:
            raise self.seal(pack, error) from error

    def path(self, pack: PackId) -> str | None:
        """See the role."""
        self.size(pack)
        return self._path(pack)

    def close(self) -> None:
        """See the role; idempotent."""
        with self._lock:
            writers = list(self._writers)
        for writer in writers:
            writer.abort()
        self._closed = True
        self._readers.close()

    # --- for the writers ---------------------------------------------------------------------------------------------

    def forget(self, writer: LocalPackWriter) -> None:
        """A writer has ended."""
        with self._lock:
            self._writers.discard(writer)

    def check_sealed(self) -> None:
        """Refuse what would write.

        Raises:
            OutcomeUnknown: an fsync has failed since the store was opened.
        """
        if self.sealed:
            raise OutcomeUnknown("no pack is taken since an fsync failed", hint="restart the server; look at the disk")

    def seal(self, pack: PackId, error: OSError) -> OutcomeUnknown:
        """Take no more packs; the error to raise now."""
        self.sealed = True
        return OutcomeUnknown(
            f"pack {pack} may or may not be on disk: {error.strerror}; the store takes no more packs",
            hint="restart the server; look at the kernel log for a failing disk",
        )

    def _path(self, pack: PackId) -> str:
        name = str(pack)
        return os.path.join(self._packs, name[:2], name + _SUFFIX)

    def _check(self) -> None:
        if self._closed:
            raise StateError("the pack store is closed")


class LocalPackWriter:
    """Implements :class:`~casstore.storage.roles.PackWriter`: a file in ``tmp/`` until it is committed.

    Threads: one at a time.
    """

    def __init__(
        self, store: LocalPackStore, pack: PackId, descriptor: int, *, files: Files, temporary: str, final: str
    ) -> None:
        self._store = store
        self._files = files
        self._pack = pack
        self._temporary = temporary
        self._final = final
        self._descriptor: int | None = descriptor
        self._failed = False

    def write(self, data: bytes | memoryview) -> None:
        """See the role.

        Raises:
            Unavailable: the disk refused for another reason; the writer must be aborted.
            StateError: the writer has ended, or failed before.
        """
        descriptor = self._writable()
        try:
            # LIMIT: asked for each piece, because many packs come in at a time: each of them alone would fit.
            self._store.room.demand(memoryview(data).nbytes)
        except CasstoreError:
            self._failed = True
            raise
        try:
            self._files.write(descriptor, data)
        except OSError as error:
            # Some of the bytes may be there: what would be written next would lie in the wrong place.
            self._failed = True
            raise refusal(error, f"write pack {self._pack}") from error

    def commit(self) -> None:
        """See the role.

        Raises:
            StoreFull: no space was left when the bytes had to go to the disk; no name was given.
        """
        descriptor = self._writable()
        self._store.check_sealed()
        try:
            self._sync(descriptor)
            self._name()
        finally:
            self.abort()

    def _sync(self, descriptor: int) -> None:
        # ORDER: the bytes before the name.
        # CRASH: before the link the pack has no name; opening the store clears tmp/.
        try:
            self._files.fsync(descriptor)
        except OSError as error:
            # File systems that place blocks late report a full disk only now.  The file is dropped, nothing in doubt.
            raise refusal(error, f"write pack {self._pack}") if is_full(error) else self._seal(error) from error

    def _name(self) -> None:
        # ORDER: opened before the name is given: a process that has no descriptor left, because a thousand clients hold them,
        # must be told so now, when nothing is in doubt, and not between the name and its fsync.
        path = os.path.dirname(self._final)
        try:
            directory = self._files.open_dir(path)
        except OSError as error:
            raise refusal(error, f"write pack {self._pack}") from error
        try:
            self._link(path, directory)
        finally:
            with suppress(OSError):
                self._files.close(directory)

    def _link(self, path: str, directory: int) -> None:
        try:
            self._files.link_new(self._temporary, self._final)
        except FileExistsError as error:
            raise _taken(self._pack) from error
        except OSError as error:
            raise self._seal(error) from error
        # CRASH: after the link and before the fsync the name may or may not survive.  The pack is whole in both cases;
        # if it is there, the index does not know it, and collection adopts or removes it.
        try:
            self._files.fsync_dir(path, directory)
        except OSError as error:
            raise self._seal(error) from error

    def _seal(self, error: OSError) -> CasstoreError:
        return self._store.seal(self._pack, error)

    def abort(self) -> None:
        """See the role."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        self._store.forget(self)
        # What stays behind in tmp/ is cleared when the store is opened.
        with suppress(OSError):
            self._files.close(descriptor)
        with suppress(OSError):
            self._files.unlink(self._temporary)

    def _writable(self) -> int:
        if self._descriptor is None:
            raise StateError(f"the writer of pack {self._pack} has ended")
        if self._failed:
            raise StateError(f"pack {self._pack} failed to be written and must be aborted")
        return self._descriptor


class _Descriptor:
    __slots__ = ("evicted", "number", "users")

    def __init__(self, number: int) -> None:
        self.number = number
        self.users = 0
        self.evicted = False


class _Descriptors:
    """The packs that are open for reading, least recently used first.

    A descriptor is closed when it is evicted and its last user is done: a number that was closed too early could be
    another file's by the time it is read from.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._open: OrderedDict[PackId, _Descriptor] = OrderedDict()

    @contextmanager
    def lend(self, pack: PackId, path: str) -> Iterator[int]:
        entry = self._take(pack, path)
        try:
            yield entry.number
        finally:
            with self._lock:
                entry.users -= 1
                self._close_unused(entry)

    def _take(self, pack: PackId, path: str) -> _Descriptor:
        with self._lock:
            entry = self._open.get(pack)
            if entry is None:
                try:
                    entry = _Descriptor(self._files.open_read(path))
                except FileNotFoundError as error:
                    raise _missing(pack) from error
                except OSError as error:
                    raise refusal(error, f"open pack {pack}") from error
                self._open[pack] = entry
            self._open.move_to_end(pack)
            entry.users += 1
            if len(self._open) > _OPEN_PACKS_MAX:
                self._evict(next(iter(self._open)))
            return entry

    def forget(self, pack: PackId) -> None:
        """Evict one pack."""
        with self._lock:
            self._evict(pack)

    def close(self) -> None:
        """Evict all."""
        with self._lock:
            for pack in list(self._open):
                self._evict(pack)

    def _evict(self, pack: PackId) -> None:
        entry = self._open.pop(pack, None)
        if entry is not None:
            entry.evicted = True
            self._close_unused(entry)

    def _close_unused(self, entry: _Descriptor) -> None:
        if entry.evicted and entry.users == 0:
            with suppress(OSError):
                self._files.close(entry.number)


def _taken(pack: PackId) -> Conflict:
    return Conflict(f"pack {pack} exists, and a pack is put once")


def _missing(pack: PackId) -> PackNotFound:
    return PackNotFound(f"there is no pack {pack}")
