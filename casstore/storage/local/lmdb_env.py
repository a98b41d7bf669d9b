"""What the index and the ledger share: one LMDB environment, its transactions, and what a failed commit means.

Owns: opening, the one writer, translation of LMDB's errors, and the seal.  Knows nothing of what the tables hold.

Invariants:

- Every commit goes through :meth:`Files.commit <casstore.storage.local.files.Files.commit>`.
- A commit that fails for want of space, and that LMDB itself rolled back, is :class:`StoreFull`: nothing was written.
- Any other failed commit is unknown.  The environment is sealed: each later call raises :class:`OutcomeUnknown`, for
  reads could show what a reopened store will not have.
- The data format is that of LMDB 0.9 (``lib_version=0``), the one that every ``mdb_*`` tool reads.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeAlias

import lmdb

from casstore.errors import (
    CasstoreError,
    DamagedObject,
    DestinationExists,
    NotInitialised,
    OutcomeUnknown,
    Overloaded,
    StateError,
    StoreBusy,
)
from casstore.limits import KIB, LMDB_MAP_BYTES, MIB
from casstore.storage.local.files import Files, refusal
from casstore.storage.local.lmdb_pages import check_pages

_READERS_MAX: Final = 256  # slots in the lock file; a reader thread holds one while it reads
_TABLES_MAX: Final = 32  # of one environment; more than either has, so that a newer version need not change it
_SPARE_READERS: Final = 8  # read transactions kept for reuse: one a reader thread, with room
_NEARLY_FULL_BYTES: Final = 4 * MIB  # LMDB writes at most 256 KiB (64 pages) at once: less than this can cut one short
_DATA_FILE: Final = "data.mdb"
_LOCK_FILE: Final = "lock.mdb"
_LOCK_FILE_BYTES: Final = 64 * KIB  # more than LMDB makes of it with _READERS_MAX slots

REBUILD: Final = "`casstore fsck --rebuild-index --store DIR` makes it anew from the packs; as long as they are there nothing is lost"

_DAMAGED: Final = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.BadRslotError,
    lmdb.BadTxnError,
    lmdb.IncompatibleError,
)

Transaction: TypeAlias = "lmdb.Transaction[bytes]"
Database: TypeAlias = "lmdb._Database"


def create_environment(path: str, files: Files, tables: Sequence[bytes], what: str) -> None:
    """Make an empty environment with its tables.

    Args:
        path: its directory; must not exist, its parent must.
        files: how.
        tables: the names of the tables.
        what: "index" or "ledger", for messages.

    Raises:
        DestinationExists: ``path`` exists.
        StoreFull, Unavailable: it cannot be made; what is there in part is no environment.

    Durability: the tables and the names inside ``path``; the name of ``path`` itself is the caller's to fsync.
    """
    try:
        files.mkdir(path)
    except FileExistsError as error:
        raise DestinationExists(f"{path} exists: a new {what} is never made over another one") from error
    except OSError as error:
        raise refusal(error, f"make the {what}'s directory") from error
    _allocate_lock_file(path, files, what)
    environment = _open(path, what, create=True)
    try:
        with environment.begin(write=True) as transaction:
            for name in tables:
                environment.open_db(name, txn=transaction, create=True)
            files.commit(transaction)
        # ORDER: LMDB has synced the bytes; without this the power may take the name of the data file with it.
        files.fsync_dir(path)
    except (lmdb.Error, OSError) as error:
        raise _translate(error, what, path) from error
    finally:
        environment.close()


def add_missing_tables(path: str, files: Files, tables: Sequence[bytes], what: str, *, dry_run: bool) -> list[str]:
    """Make those tables of an environment that it does not have yet, all in one transaction.

    Args:
        path: its directory.
        files: how.
        tables: the names that it must have.
        what: "index" or "ledger", for messages.
        dry_run: only say which are missing.

    Returns:
        the names of those that were missing.

    Raises:
        NotInitialised: there is no environment.
        StoreBusy: this process has it open.
        DamagedObject: what is there is not one.
        StoreFull, Unavailable: they cannot be made; none of them was.
        OutcomeUnknown: the commit failed: all of them are there, or none.

    Durability: durable when this returns.
    """
    if not os.path.isfile(os.path.join(path, _DATA_FILE)):
        raise NotInitialised(f"there is no {what} at {path}")
    environment = _open(path, what, create=False)
    try:
        with environment.begin() as transaction:
            missing = [name for name in tables if transaction.get(name) is None]
    except lmdb.Error as error:
        environment.close()
        raise _translate(error, what, path) from error
    if dry_run or not missing:
        environment.close()
        return [name.decode("ascii") for name in missing]
    try:
        transaction = environment.begin(write=True)
        try:
            for name in missing:
                environment.open_db(name, txn=transaction, create=True)
        except BaseException:
            transaction.abort()
            raise
    except (lmdb.Error, OSError) as error:
        environment.close()
        raise _translate(error, what, path) from error
    try:
        files.commit(transaction)
    except (lmdb.Error, OSError) as error:
        transaction.abort()
        raise OutcomeUnknown(
            f"the {what}'s commit failed ({error}): its new tables may or may not be there", hint="do the upgrade again"
        ) from error
    finally:
        environment.close()
    return [name.decode("ascii") for name in missing]


def verify_closed(path: str, files: Files, what: str) -> None:
    """Check the pages of an environment that nobody has open, before anyone lets LMDB follow a pointer in it.

    Args:
        path: its directory.
        files: how.
        what: "index" or "ledger", for messages.

    Raises:
        NotInitialised: there is none.
        DamagedObject: a page is not what leads to it says.
        Unavailable: it cannot be read.
    """
    data = os.path.join(path, _DATA_FILE)
    try:
        _check_pages(files, data, what, None)
    except FileNotFoundError as error:
        hint = REBUILD if what == "index" else "was the store created with `casstore init`?"
        raise NotInitialised(f"there is no {what} at {path}", hint=hint) from error
    except OSError as error:
        raise refusal(error, f"read the {what}") from error


def _check_pages(files: Files, data: str, what: str, transaction: int | None) -> bool:
    descriptor = files.open_read(data)
    try:
        size = files.stat(data).st_size
        return check_pages(
            lambda offset, length: files.pread(descriptor, length, offset), size, data, what, transaction=transaction
        )
    finally:
        files.close(descriptor)


class LmdbEnvironment:
    """One open environment with a fixed set of tables.

    Args:
        path: its directory.
        files: how commits reach the disk.
        tables: the names of the tables, which must exist.
        what: "index" or "ledger", for messages.

    Raises:
        NotInitialised: there is no environment, or it lacks a table.
        StoreBusy: this process has it open already.
        DamagedObject: what is there is not an LMDB environment.

    Threads: reads from any thread, each transaction on the thread that began it; one write transaction at a time.
        :meth:`close` only after every other thread has ended its calls.
    """

    def __init__(self, path: str, files: Files, tables: Sequence[bytes], what: str) -> None:
        self._path = path
        self._files = files
        self._what = what
        self._sealed = False
        self._closed = False
        self._writer = threading.Lock()
        if not os.path.isfile(os.path.join(path, _DATA_FILE)):
            hint = REBUILD if what == "index" else "restore ledger/ from a backup, and keep signed-heads"
            raise NotInitialised(f"there is no {what} at {path}", hint=hint)
        _allocate_lock_file(path, files, what)
        self._environment = _open(path, what, create=False)
        self.tables: dict[bytes, Database] = {}
        try:
            for name in tables:
                self.tables[name] = self._environment.open_db(name, create=False)
        except lmdb.NotFoundError as error:
            self._environment.close()
            remedy = REBUILD if what == "index" else None
            raise NotInitialised(f"the {what} at {path} has no table {name.decode()!r}", hint=remedy) from error
        except (lmdb.Error, OSError) as error:
            self._environment.close()
            raise _translate(error, what, path) from error

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A read transaction, ended with the block."""
        self._check()
        try:
            transaction = self._environment.begin(buffers=False)
        except lmdb.Error as error:
            raise _translate(error, self._what, self._path) from error
        try:
            yield transaction
        except lmdb.Error as error:
            raise _translate(error, self._what, self._path) from error
        finally:
            transaction.abort()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A write transaction: committed when the block ends, aborted when it raises.

        Raises:
            StateError: another write transaction is open.
            StoreFull: no space; nothing was written.
            OutcomeUnknown: the commit failed; the environment is sealed.
        """
        if not self._writer.acquire(blocking=False):
            raise StateError(f"the {self._what} has one writer, and it is in a transaction")
        try:
            self._check()
            try:
                transaction = self._environment.begin(write=True, buffers=False)
            except lmdb.Error as error:
                raise _translate(error, self._what, self._path) from error
            try:
                yield transaction
            except lmdb.Error as error:
                transaction.abort()
                raise _translate(error, self._what, self._path) from error
            except BaseException:
                transaction.abort()
                raise
            self._commit(transaction)
        finally:
            self._writer.release()

    def copy_to(self, descriptor: int) -> None:
        """Write a consistent copy of the whole environment to a file: that of one moment, compacted.

        Writers go on meanwhile; what they free is not reused before the copy ends.

        Args:
            descriptor: of an empty file; the caller syncs it.

        Raises:
            StoreFull, Unavailable: it cannot be written.
            DamagedObject: the environment cannot be read.

        Threads: any.
        """
        self._check()
        try:
            self._environment.copyfd(descriptor, compact=True)
        except (lmdb.Error, OSError) as error:
            raise _translate(error, self._what, self._path) from error

    def _commit(self, transaction: Transaction) -> None:
        try:
            self._files.commit(transaction)
        except (lmdb.Error, OSError) as error:
            # A failed commit has ended the transaction; ending it twice is harmless, leaving it open is a deadlock.
            transaction.abort()
            if self._ran_out_of_space(error) and not self._is_broken():
                full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise refusal(full, f"commit to the {self._what}") from error
            # CRASH: the pages may or may not be on disk, and asking again proves nothing.  Reopening shows which.
            self._sealed = True
            raise OutcomeUnknown(
                f"the {self._what}'s commit failed ({error}): it may or may not be on disk, and the store is sealed",
                hint="restart the server; on opening, the store holds either all of it or none",
            ) from error

    def _ran_out_of_space(self, error: lmdb.Error | OSError) -> bool:
        code = _errno(error)
        if code == errno.EIO and not isinstance(error, OSError):
            # LMDB reports a write that the system cut short as EIO; on a disk that fills up this is the usual case.
            with suppress(OSError):
                return self._files.free_bytes(self._path) < _NEARLY_FULL_BYTES
        return code in (errno.ENOSPC, errno.EDQUOT)

    def _is_broken(self) -> bool:
        """Whether LMDB failed while it wrote its meta page: then the commit may be on disk in spite of the error."""
        try:
            self._environment.begin(write=True).abort()
        except lmdb.Error:
            return True
        return False

    def _check(self) -> None:
        if self._closed:
            raise StateError(f"the {self._what} is closed")
        if self._sealed:
            raise OutcomeUnknown(
                f"the {self._what} is sealed since a commit failed", hint="restart the server to learn what is on disk"
            )

    def verify(self) -> None:
        """Check every page that a reader of now can reach.

        Raises:
            DamagedObject: a page is not what leads to it says.
            Unavailable: the file cannot be read.
        """
        while True:
            with self.read() as transaction:
                try:
                    data = os.path.join(self._path, _DATA_FILE)
                    if _check_pages(self._files, data, self._what, transaction.id()):
                        return
                except OSError as error:
                    raise refusal(error, f"read the {self._what}") from error

    def close(self) -> None:
        """Close the environment; idempotent."""
        self._closed = True
        self._environment.close()


def _allocate_lock_file(path: str, files: Files, what: str) -> None:
    """Have the lock file's blocks laid aside before it is mapped.

    LMDB makes the file sparse, and a page of it comes into being when the first reader takes a slot there.  On a disk that is full
    by then the kernel has no page to give, and ends the process (SIGBUS): so the pages are had now, or the error.

    Raises:
        StoreFull, ReadOnly, Unavailable: they cannot be had.
    """
    try:
        descriptor = files.open_lock(os.path.join(path, _LOCK_FILE))
        try:
            files.allocate(descriptor, 0, _LOCK_FILE_BYTES)
        finally:
            files.close(descriptor)
    except OSError as error:
        raise refusal(error, f"make the lock file of the {what}") from error


def _open(path: str, what: str, *, create: bool) -> lmdb.Environment:
    try:
        return lmdb.open(
            path,
            map_size=LMDB_MAP_BYTES,
            subdir=True,
            create=create,
            mode=0o640,
            sync=True,
            metasync=True,
            # Ids are hashes: the page behind the one that was touched is as unlikely to be next as any other.
            readahead=False,
            max_readers=_READERS_MAX,
            max_dbs=_TABLES_MAX,
            max_spare_txns=_SPARE_READERS,
            lib_version=0,
        )
    except (lmdb.Error, OSError) as error:
        raise _translate(error, what, path) from error


def _errno(error: lmdb.Error | OSError) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    if isinstance(error, lmdb.MapFullError):
        return errno.ENOSPC
    return max(int(getattr(error, "code", 0) or 0), 0)


def _translate(error: lmdb.Error | OSError, what: str, path: str) -> CasstoreError:
    """The error to raise for one of LMDB's that left nothing behind."""
    if isinstance(error, lmdb.ReadersFullError):
        return Overloaded(f"the {what} has more readers than slots", retry_after_s=1)
    if isinstance(error, _DAMAGED):
        return DamagedObject(
            f"the {what} at {path} is damaged: {error}",
            hint=REBUILD if what == "index" else f"restore {what}/ from a backup, and keep signed-heads",
            object=what,
            where=path,
        )
    if isinstance(error, lmdb.PanicError):
        return OutcomeUnknown(f"the {what} is sealed since a commit failed", hint="restart the server")
    if "already open" in str(error):
        return StoreBusy(f"the {what} at {path} is open in this process already")
    code = _errno(error)
    return refusal(OSError(code, os.strerror(code)) if code else OSError(str(error)), f"use the {what}")
