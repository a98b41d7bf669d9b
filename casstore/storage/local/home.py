"""The store directory: what lies in it, who may open it, and which version made it.

::

    format          {"casstore": "<version that made it>", "format": 1}; written last: where it is, all else is
    lock            flock of the one process that has the store open; its content is that process's number
    packs/          content, see casstore.storage.local.packs
    tmp/            files without a name yet; emptied when the store is opened
    index/          where content lies (LMDB), rebuildable; index.building, index.new, index.old: while it is rebuilt
    ledger/         log, pointers, tokens (LMDB)
    signed-heads    what the server was about to sign
    keys/           the server's keys, readable by its user only

Owns: creation, the lock, the format version, and the key files as bytes.  Knows nothing of what keys are for.

Invariants: ``open`` never creates and ``create`` never opens; a directory without ``format`` is not a store; at most
one process has a store open.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from casstore import __version__
from casstore.errors import (
    CasstoreError,
    DamagedObject,
    DestinationExists,
    InvalidName,
    NotFound,
    NotInitialised,
    StateError,
    StoreBusy,
    StoreNotFound,
    StoreTooNew,
    StoreTooOld,
)
from casstore.limits import FORMAT_VERSION, KIB
from casstore.storage.local.diskroom import DiskRoom
from casstore.storage.local.files import Files, read_file, refusal, write_new_file
from casstore.storage.local.heads import SignedHeads
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.local.index_swap import adopt_index, begin_index, settle_index
from casstore.storage.local.ledger import LocalLedger
from casstore.storage.local.packs import LocalPackStore

FORMAT: Final = "format"
PARTS: Final = ("ledger", "index")
"""Folders of the two LMDB environments."""
_LOCK: Final = "lock"
_KEYS: Final = "keys"
_TMP: Final = "tmp"
_FORMAT_MAX_BYTES: Final = 4 * KIB
_KEY_MAX_BYTES: Final = 64 * KIB
_PID_MAX_BYTES: Final = 32
_KEY_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_FOREIGN: Final = frozenset({"lost+found"})  # what a freshly made file system has in its top directory


class Home:
    """An open store directory; holds its lock until :meth:`close`.

    Build with :meth:`open`.

    Threads: any, but :meth:`close` after all else has ended.  Open it after ``fork``, never before: a child would share
    the lock.
    """

    def __init__(self, path: str, files: Files, lock: int, reserve_bytes: int | None = None) -> None:
        self.path = path
        self.files = files
        self.room = DiskRoom(path, files, reserve_bytes)
        self._lock: int | None = lock

    @classmethod
    def create(
        cls, directory: str | os.PathLike[str], files: Files, initialise: Callable[[Home], None] | None = None
    ) -> None:
        """Make an empty store in a directory that is empty or not there.

        Args:
            directory: where; its parent must exist.
            files: how.
            initialise: called with the laid-out directory before it becomes a store, to write what a store must not be
                without (keys, the first log entry).

        Raises:
            DestinationExists: something is there.
            StoreFull, ReadOnly, Unavailable: it cannot be made.

        Durability: all of it, its own name included, when this returns.  After an error or a crash what is there is not
            a store: nothing in it was acknowledged, and it can be removed.
        """
        path = os.path.abspath(os.fspath(directory))
        try:
            cls._make_directory(path, files)
            lock = _take_lock(path, files)
        except OSError as error:
            raise refusal(error, f"make {path}") from error
        home = cls(path, files, lock)
        try:
            home._lay_out()
            if initialise is not None:
                initialise(home)
            home._write_format(encode_format(FORMAT_VERSION))
        finally:
            home.close()

    @staticmethod
    def _make_directory(path: str, files: Files) -> None:
        try:
            files.mkdir(path)
        except FileExistsError as error:
            if not os.path.isdir(path) or set(files.listdir(path)) - _FOREIGN:
                hint = "a store is made only in an empty directory"
                if os.path.isdir(path) and not os.path.lexists(os.path.join(path, FORMAT)):
                    hint += "; if an earlier attempt was interrupted, remove what it left: nothing in it is a store"
                raise DestinationExists(f"{path} exists and is not empty", hint=hint) from error

    @classmethod
    def receive(
        cls, directory: str | os.PathLike[str], files: Files, fill: Callable[[Home, Callable[[bytes], None]], None]
    ) -> None:
        """Make a directory that is empty or not there a store, out of the parts of another one.

        Args:
            directory: where; its parent must exist.
            files: how.
            fill: called with the directory in which all folders are there, and nothing else, and with a function that
                makes it a store: that takes the bytes of ``format``, and is called last.

        Raises:
            DestinationExists: something is there.
            StoreFull, ReadOnly, Unavailable: it cannot be made.
        """
        path = os.path.abspath(os.fspath(directory))
        try:
            cls._make_directory(path, files)
            lock = _take_lock(path, files)
        except OSError as error:
            raise refusal(error, f"make {path}") from error
        home = cls(path, files, lock)
        try:
            LocalPackStore.lay_out(path, files)
            for name in (*PARTS, _KEYS):
                files.mkdir(os.path.join(path, name), 0o700 if name == _KEYS else 0o750)
            files.fsync_dir(path)
            fill(home, home._write_format)
        except OSError as error:
            raise refusal(error, f"make {path}") from error
        finally:
            home.close()

    def _lay_out(self) -> None:
        LocalPackStore.lay_out(self.path, self.files)
        LocalChunkIndex.lay_out(self.path, self.files)
        LocalLedger.lay_out(self.path, self.files)
        SignedHeads.lay_out(self.path, self.files)
        try:
            self.files.mkdir(os.path.join(self.path, _KEYS), 0o700)
            self.files.fsync_dir(self.path)
        except OSError as error:
            raise refusal(error, f"make {self.path}") from error

    def _write_format(self, document: bytes) -> None:
        temporary = os.path.join(self.path, _TMP, FORMAT)
        try:
            # ORDER: the file that makes the directory a store comes last; all other names are durable since _lay_out.
            with suppress(FileNotFoundError):
                self.files.unlink(temporary)
            write_new_file(self.files, temporary, document)
            self.files.rename(temporary, os.path.join(self.path, FORMAT))
            self.files.fsync_dir(self.path)
            self.files.fsync_dir(os.path.dirname(self.path))
        except OSError as error:
            raise refusal(error, f"make {self.path}") from error

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        files: Files,
        *,
        reserve_bytes: int | None = None,
        any_format: bool = False,
    ) -> Self:
        """Open a store directory: take its lock, check its format, empty ``tmp/``.

        Args:
            directory: where.
            files: how.
            reserve_bytes: see :class:`~casstore.storage.local.diskroom.DiskRoom`.
            any_format: take an older format too; only an upgrade does.

        Raises:
            StoreNotFound: there is no such directory.
            NotInitialised: the directory is not a store.
            StoreBusy: another process has it open; the message names it.
            StoreTooNew: a newer casstore made it.
            StoreTooOld: it has an older format.
            DamagedObject: ``format`` cannot be read.
            ReadOnly, Unavailable: the lock or ``tmp/`` cannot be used.
        """
        path = os.path.abspath(os.fspath(directory))
        if not os.path.isdir(path):
            raise StoreNotFound(f"there is no store at {path}", hint="create one with `casstore init`")
        check_format(path, files, any_format=any_format)
        try:
            lock = _take_lock(path, files)
        except OSError as error:
            raise refusal(error, f"lock {path}") from error
        home = cls(path, files, lock, reserve_bytes)
        try:
            # ORDER: once more under the lock: an upgrade may have ended in between.
            check_format(path, files, any_format=any_format)
            home._empty_tmp()
            settle_index(path, files)
        except BaseException:
            home.close()
            raise
        return home

    def _empty_tmp(self) -> None:
        # The lock is held: whoever wrote these has died, and none of them was acknowledged.
        tmp = os.path.join(self.path, _TMP)
        try:
            for name in self.files.listdir(tmp):
                self.files.unlink(os.path.join(tmp, name))
        except OSError as error:
            raise refusal(error, f"empty {tmp}") from error

    # --- what lies inside --------------------------------------------------------------------------------------------

    def open_packs(self) -> LocalPackStore:
        """Open the packs; the caller closes them."""
        return LocalPackStore(self._checked_path(), self.files, self.room)

    def open_index(self) -> LocalChunkIndex:
        """Open the index; the caller closes it."""
        return LocalChunkIndex(self._checked_path(), self.files)

    def begin_index(self) -> LocalChunkIndex:
        """Begin an index beside the one in use; see :func:`casstore.storage.local.index_swap.begin_index`."""
        return begin_index(self._checked_path(), self.files)

    def adopt_index(self) -> None:
        """Put the index that was begun, and closed, in use."""
        adopt_index(self._checked_path(), self.files)

    def open_ledger(self) -> LocalLedger:
        """Open the ledger; the caller closes it."""
        return LocalLedger(self._checked_path(), self.files)

    def verify_environments(self) -> list[CasstoreError]:
        """Look at the pages of index and ledger while nobody has them open.

        Returns:
            What is wrong with them, an error each; empty if nothing is.
        """
        found: list[CasstoreError] = []
        for verify in (LocalChunkIndex.verify_closed, LocalLedger.verify_closed):
            try:
                verify(self._checked_path(), self.files)
            except CasstoreError as error:
                found.append(error)
        return found

    def open_heads(self) -> SignedHeads:
        """Open the record of signed heads; the caller closes it."""
        return SignedHeads(self._checked_path(), self.files)

    def read_key(self, name: str) -> bytes:
        """Read a key file.

        Args:
            name: ``[a-z0-9][a-z0-9._-]*``, at most 63 characters.

        Raises:
            NotFound: there is no such key.
            Unavailable: it cannot be read.
        """
        path = self._key_path(name)
        try:
            return read_file(self.files, path, _KEY_MAX_BYTES)
        except FileNotFoundError as error:
            raise NotFound(f"there is no key {name!r} in {os.path.dirname(path)}") from error
        except OSError as error:
            raise refusal(error, f"read the key {name!r}") from error

    def key_names(self) -> list[str]:
        """Names of the key files, ascending.

        Raises:
            Unavailable: the folder cannot be read.
        """
        folder = os.path.join(self._checked_path(), _KEYS)
        try:
            return [name for name in self.files.listdir(folder) if _KEY_NAME.match(name)]
        except OSError as error:
            raise refusal(error, f"read {folder}") from error

    def set_format(self, version: int) -> None:
        """Say which format the store has from now on.

        Raises:
            StoreFull, ReadOnly, Unavailable: it cannot be said; the old version stands.

        Durability: durable when this returns.
        """
        self._checked_path()
        self._write_format(encode_format(version))

    def write_key(self, name: str, data: bytes) -> None:
        """Write a key file that does not exist yet, readable by its owner only.

        Raises:
            DestinationExists: there is one of that name: a key is never overwritten.
            StoreFull, ReadOnly, Unavailable: it cannot be written.

        Durability: durable when this returns.
        """
        path = self._key_path(name)
        temporary = os.path.join(self.path, _TMP, f"key.{name}")
        try:
            with suppress(FileNotFoundError):
                self.files.unlink(temporary)
            write_new_file(self.files, temporary, data, 0o600)
            self.files.link_new(temporary, path)
            self.files.fsync_dir(os.path.dirname(path))
            self.files.unlink(temporary)
        except FileExistsError as error:
            raise DestinationExists(f"the key {name!r} exists, and a key is never overwritten") from error
        except OSError as error:
            raise refusal(error, f"write the key {name!r}") from error

    def close(self) -> None:
        """Release the lock; idempotent."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            with suppress(OSError):
                self.files.close(lock)

    def _key_path(self, name: str) -> str:
        if not _KEY_NAME.match(name):
            raise InvalidName(f"{name[:100]!r} is not the name of a key: [a-z0-9][a-z0-9._-]{{0,62}}")
        return os.path.join(self._checked_path(), _KEYS, name)

    def _checked_path(self) -> str:
        if self._lock is None:
            raise StateError(f"the store at {self.path} is closed")
        return self.path


def _take_lock(path: str, files: Files) -> int:
    """Take the store's lock and leave this process's number in it.

    Raises:
        StoreBusy: another process holds it.
        OSError: it cannot be used.
    """
    descriptor = files.open_lock(os.path.join(path, _LOCK))
    try:
        try:
            files.lock(descriptor)
        except BlockingIOError as error:
            holder = files.pread(descriptor, _PID_MAX_BYTES, 0).decode("ascii", "replace").strip()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise StoreBusy(
                f"the store at {path} is open in {who}",
                hint="stop it first, or let it do the work: a running server takes the same commands over HTTP",
            ) from error
        # The number is for people; a full disk must not keep the store from being opened and emptied.
        with suppress(OSError):
            files.truncate(descriptor, 0)
            files.write(descriptor, b"%d\n" % os.getpid())
    except BaseException:
        files.close(descriptor)
        raise
    return descriptor


def encode_format(version: int) -> bytes:
    """The bytes of ``format``."""
    return (json.dumps({"casstore": __version__, "format": version}, sort_keys=True) + "\n").encode("ascii")


def check_format(path: str, files: Files, *, any_format: bool = False) -> int:
    """Read which format a directory has, and refuse what this program cannot open.

    Args:
        path: of the directory.
        files: how.
        any_format: take an older one too.

    Returns:
        the version.

    Raises:
        NotInitialised: there is no file ``format``.
        StoreTooNew, StoreTooOld: it is not ours.
        DamagedObject: it does not say.
        Unavailable: it cannot be read.
    """
    try:
        data = read_file(files, os.path.join(path, FORMAT), _FORMAT_MAX_BYTES)
    except FileNotFoundError as error:
        raise NotInitialised(
            f"{path} is not a store: it has no file 'format'",
            hint="create one with `casstore init` in an empty directory",
        ) from error
    except OSError as error:
        raise refusal(error, f"read {path}/{FORMAT}") from error
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged_format(path) from error
    found = document.get("format") if isinstance(document, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise _damaged_format(path)
    if found > FORMAT_VERSION:
        maker = document.get("casstore")
        raise StoreTooNew(
            f"the store at {path} has format {found}, made by casstore {maker}; this is casstore {__version__}, "
            f"which knows formats up to {FORMAT_VERSION}",
            hint="use the newer version; stores are not converted back",
        )
    if found < FORMAT_VERSION and not any_format:
        raise StoreTooOld(
            f"the store at {path} has format {found}, this is casstore {__version__}, which works with format {FORMAT_VERSION}",
            hint=f"make a backup, then convert it: `casstore upgrade --store {path}`",
        )
    return found


def _damaged_format(path: str) -> CasstoreError:
    where = os.path.join(path, FORMAT)
    return DamagedObject(f"{where} does not say which format the store has", object=FORMAT, where=where)
