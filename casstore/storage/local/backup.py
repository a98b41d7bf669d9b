"""A backup directory: packs that several backups share, the small parts of one, and a manifest that makes it valid.

::

    backup.json         what the backup holds; written last, by rename: the files that it does not name are not part of it
    lock                flock of the one process that writes here
    packs/              as in a store; each is whole where it has its name
    state/<run>/        ledger/ and index/ (LMDB), signed-heads, keys/, format, packs.list: one folder a run
    tmp/                files without a name yet

Owns: these names, the order of writing, and the manifest.  Knows nothing of where the parts come from.

Invariants: ``backup.json`` names the run that it belongs to, and the folder of that run is never written again: until the
next manifest takes its place, the backup before stays what it was.  A pack is copied once, for it never changes.

# ORDER: parts and packs, each synced; then the directories; then the manifest; then the run before is removed.
# CRASH: before the manifest's rename the backup before is valid, behind it the new one.  What else is left is removed by
the next run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Final, NamedTuple, Self

import msgspec

from casstore.errors import (
    CasstoreError,
    DamagedObject,
    DestinationExists,
    NotInitialised,
    StoreBusy,
    StoreNotFound,
    StoreTooNew,
    TooLarge,
)
from casstore.hashing import Blake3Hasher
from casstore.ids import PackId
from casstore.limits import MIB
from casstore.storage.local.files import Files, read_file, refusal, write_new_file
from casstore.storage.local.packs import LocalPackStore

MANIFEST: Final = "backup.json"
MANIFEST_VERSION: Final = 1
PACK_LIST: Final = "packs.list"
PACK_LINE_BYTES: Final = 32 + 1 + 20 + 1
"""Of ``packs.list``: 32 hex digits, a space, the size in 20 decimal digits, a line feed."""
_STATE: Final = "state"
_TMP: Final = "tmp"
_PACKS: Final = "packs"
_LOCK: Final = "lock"
_PART: Final = re.compile(r"(?:[a-z]+/)?[a-z0-9][a-z0-9._-]{0,62}\Z")
_MANIFEST_MAX_BYTES: Final = MIB  # some twenty files, and packs that were not there
_BLOCK_BYTES: Final = MIB
ABSENT_MAX: Final = 1000
"""LIMIT: packs that a manifest names as missing; a store that lacks more has one cause."""

Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a run."""

    name: str
    size: Count
    blake3: Hex32


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a backup holds.  Times are milliseconds since the epoch."""

    backup: int
    casstore: str
    format: Annotated[int, msgspec.Meta(ge=1)]
    """Of the store."""
    origin: str
    log_size: Count
    log_root: Hex32
    began: Count
    ended: Count
    run: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    keys: bool
    """Whether the server's keys are part of it."""
    parts: list[Part]
    packs: Count
    pack_bytes: Count
    absent: list[str]
    """Packs that the store's index names and that the store does not have, or not whole; at most ``ABSENT_MAX``."""


class Copied(NamedTuple):
    """A file that was copied."""

    size: int
    blake3: str


def copy_file(
    files: Files, source: str, destination: str, mode: int = 0o640, before: Callable[[], None] = lambda: None
) -> Copied:
    """Copy a file, durable but for its name.

    Args:
        files: how.
        source: which.
        destination: must not exist.
        mode: of the copy.
        before: called before each block; what it raises ends the copy.

    Raises:
        DamagedObject: the disk cannot read it; what was written of the copy is still there.
        OSError: as the system says.
    """
    hasher = Blake3Hasher()
    reading = files.open_read(source)
    try:
        writing = files.open_write(destination, mode)
        try:
            offset = 0
            while block := _read_block(files, reading, source, offset):
                before()
                files.write(writing, block)
                hasher.update(block)
                offset += len(block)
            files.fsync(writing)
        finally:
            files.close(writing)
    finally:
        files.close(reading)
    return Copied(offset, hasher.hexdigest())


def _read_block(files: Files, descriptor: int, source: str, offset: int) -> bytes:
    try:
        return files.pread(descriptor, _BLOCK_BYTES, offset)
    except OSError:
        pass
    try:
        return files.pread(descriptor, _BLOCK_BYTES, offset)  # a cable or a controller may have hesitated
    except OSError as error:
        where = f"{source}:{offset}"
        raise DamagedObject(f"the disk cannot read {where}: {error.strerror}", object=source, where=where) from error


def hash_file(files: Files, path: str) -> Copied:
    """Size and BLAKE3 of a file.

    Raises:
        OSError: as the system says.
    """
    hasher = Blake3Hasher()
    descriptor = files.open_read(path)
    try:
        offset = 0
        while block := files.pread(descriptor, _BLOCK_BYTES, offset):
            hasher.update(block)
            offset += len(block)
    finally:
        files.close(descriptor)
    return Copied(offset, hasher.hexdigest())


class BackupDirectory:
    """A backup directory that is being written; holds its lock until :meth:`close`.

    Args:
        directory: made if it is not there; if it is, it must be empty or a backup directory.
        files: how.

    Raises:
        DestinationExists: something else is there.
        StoreBusy: another backup writes there.
        StoreFull, ReadOnly, Unavailable: it cannot be used.

    Threads: one at a time.
    """

    def __init__(self, directory: str | os.PathLike[str], files: Files) -> None:
        self.path = os.path.abspath(os.fspath(directory))
        self._files = files
        try:
            self._make()
            self._lock = files.open_lock(os.path.join(self.path, _LOCK))
        except OSError as error:
            raise refusal(error, f"use {self.path} for backups") from error
        try:
            files.lock(self._lock)
        except BlockingIOError as error:
            self.close()
            raise StoreBusy(f"another backup is being written to {self.path}", hint="wait for it to end") from error
        except OSError as error:
            self.close()
            raise refusal(error, f"lock {self.path}") from error
        try:
            self._lay_out()
            self._empty_tmp()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the lock."""
        with suppress(OSError):
            self._files.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        try:
            # TRUST: it will hold the server's keys: nobody else may look into it.
            self._files.mkdir(self.path, 0o700)
            self._files.fsync_dir(os.path.dirname(self.path))
        except FileExistsError as error:
            names = set(self._files.listdir(self.path)) if os.path.isdir(self.path) else {"."}
            # TRUST: the owner of a directory can put what is written into it elsewhere, the server's keys too.
            if self._files.stat(self.path).st_uid != os.geteuid():
                raise DestinationExists(
                    f"{self.path} belongs to another user", hint="name one that is yours"
                ) from error
            # A first run that was killed leaves a lock, and maybe folders.
            if names - {"lost+found"} and _LOCK not in names:
                raise DestinationExists(
                    f"{self.path} exists and is not a backup", hint="name a directory that is empty or not there"
                ) from error
            if "format" in names:
                raise DestinationExists(f"{self.path} is a store", hint="a backup goes elsewhere") from error

    def _lay_out(self) -> None:
        there = os.path.isdir(os.path.join(self.path, _PACKS, "ff"))
        try:
            if not there:
                # What a killed first run left of the folders has nothing in it.
                for name in (_PACKS, _TMP):
                    _remove_tree(self._files, os.path.join(self.path, name))
                LocalPackStore.lay_out(self.path, self._files)
            with suppress(FileExistsError):
                self._files.mkdir(os.path.join(self.path, _STATE), 0o700)
            self._files.fsync_dir(self.path)
        except OSError as error:
            raise refusal(error, f"use {self.path} for backups") from error

    def _empty_tmp(self) -> None:
        tmp = os.path.join(self.path, _TMP)
        try:
            for name in self._files.listdir(tmp):
                self._files.unlink(os.path.join(tmp, name))
        except OSError as error:
            raise refusal(error, f"empty {tmp}") from error

    # --- one run -----------------------------------------------------------------------------------------------------

    def begin(self, run: str) -> str:
        """Make the folder of a run, and remove those of runs that never ended.

        Returns:
            its path.
        """
        state = os.path.join(self.path, _STATE)
        path = os.path.join(state, run)
        try:
            earlier = self.manifest()
            self.remove_runs(keep=None if earlier is None else earlier.run)
            self._files.mkdir(path, 0o700)
            for name in ("ledger", "index", "keys"):
                self._files.mkdir(os.path.join(path, name), 0o700)
        except OSError as error:
            raise refusal(error, f"begin a backup in {self.path}") from error
        return path

    def manifest(self) -> Manifest | None:
        """What the directory holds now; None if no backup was ever finished in it.

        Raises:
            StoreTooNew, DamagedObject, Unavailable: as :func:`read_manifest`.
        """
        try:
            return read_manifest(self.path, self._files)
        except NotInitialised:
            return None

    def remove_runs(self, *, keep: str | None) -> None:
        """Remove the folders of all runs but one.

        Raises:
            OSError: as the system says.
        """
        state = os.path.join(self.path, _STATE)
        for name in self._files.listdir(state):
            if name != keep:
                _remove_tree(self._files, os.path.join(state, name))

    def has_pack(self, pack: PackId, size: int) -> bool:
        """Whether a pack is here with that size: a pack that has its name is whole."""
        try:
            return self._files.stat(self._pack_path(pack)).st_size == size
        except FileNotFoundError:
            return False

    def put_pack(self, pack: PackId, source: str, size: int, *, link: bool, before: Callable[[], None]) -> bool:
        """Take a pack in; durable once :meth:`finish` has returned.

        Args:
            pack: its name.
            source: where it lies.
            size: that it must have.
            link: give the same file a second name where the file system allows.
            before: called before each block.

        Returns:
            whether it was linked.

        Raises:
            DamagedObject: it has another size, or the disk cannot read it.
            OSError: as the system says.
        """
        final = self._pack_path(pack)
        temporary = os.path.join(self.path, _TMP, str(pack))
        linked = False
        if link:
            # Another file system, or one without hard links, or a file with as many names as it can have: then it is copied.
            with suppress(OSError):
                self._files.link_new(source, temporary)
                linked = True
        try:
            found = (
                self._files.stat(temporary).st_size
                if linked
                else copy_file(self._files, source, temporary, before=before).size
            )
        except DamagedObject:
            self._files.unlink(temporary)
            raise
        if found != size:
            self._files.unlink(temporary)
            raise DamagedObject(
                f"pack {pack} has {found} bytes, the index says {size}",
                object=f"pack {pack}",
                where=source,
                expected=str(size),
                found=str(found),
            )
        self._files.rename(temporary, final)
        return linked

    def finish(self, manifest: Manifest) -> None:
        """Make a run the backup: from here on it is what a restore takes.

        Raises:
            StoreFull, ReadOnly, Unavailable: it cannot be written; the backup before stands.

        Durability: all of it when this returns.
        """
        state = os.path.join(self.path, _STATE, manifest.run)
        packs = os.path.join(self.path, _PACKS)
        temporary = os.path.join(self.path, _TMP, MANIFEST)
        data = json.dumps(msgspec.to_builtins(manifest), indent=1, sort_keys=True).encode() + b"\n"
        if len(data) > _MANIFEST_MAX_BYTES:
            raise TooLarge(
                f"the manifest of a backup has at most {_MANIFEST_MAX_BYTES} bytes", limit=_MANIFEST_MAX_BYTES
            )
        try:
            # ORDER: every name that the manifest stands for, those of an earlier run that was killed too.
            for name in self._files.listdir(packs):
                self._files.fsync_dir(os.path.join(packs, name))
            for name in ("ledger", "index", "keys", ""):
                self._files.fsync_dir(os.path.join(state, name))
            self._files.fsync_dir(os.path.dirname(state))
            write_new_file(self._files, temporary, data, 0o600)
            self._files.rename(temporary, os.path.join(self.path, MANIFEST))
            self._files.fsync_dir(self.path)
            self.remove_runs(keep=manifest.run)
        except OSError as error:
            raise refusal(error, f"finish the backup in {self.path}") from error

    def prune(self, wanted: Callable[[PackId], bool]) -> tuple[int, int]:
        """Remove packs that the backup does not need; only after :meth:`finish`.

        Args:
            wanted: whether the backup needs a pack.

        Returns:
            how many were removed, and their bytes.

        Raises:
            Unavailable: as the disk says.
        """
        store = LocalPackStore(self.path, self._files)
        count, size, after = 0, 0, None
        try:
            while page := store.list(after=after, limit=1000):
                after = page[-1]
                for pack in page:
                    if not wanted(pack):
                        size += store.size(pack)
                        store.delete(pack)
                        count += 1
        finally:
            store.close()
        return count, size

    def _pack_path(self, pack: PackId) -> str:
        name = str(pack)
        return os.path.join(self.path, _PACKS, name[:2], name + ".pack")


def read_manifest(directory: str | os.PathLike[str], files: Files) -> Manifest:
    """Read what a backup directory holds.

    Raises:
        StoreNotFound: there is no such directory.
        NotInitialised: no backup was ever finished in it.
        StoreTooNew: a newer casstore wrote it.
        DamagedObject: the manifest does not parse.
        Unavailable: it cannot be read.
    """
    path = os.path.abspath(os.fspath(directory))
    where = os.path.join(path, MANIFEST)
    if not os.path.isdir(path):
        raise StoreNotFound(f"there is no backup at {path}")
    try:
        data = read_file(files, where, _MANIFEST_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotInitialised(
            f"{path} holds no backup: no file {MANIFEST}",
            hint="a backup that was interrupted has none: run it again",
        ) from error
    except OSError as error:
        raise refusal(error, f"read {where}") from error
    try:
        version = json.loads(data)["backup"]
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise StoreTooNew(
                f"the backup at {path} has version {version}, this program knows up to {MANIFEST_VERSION}",
                hint="use the newer version",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if manifest.backup != MANIFEST_VERSION or not all(_PART.match(part.name) for part in manifest.parts):
        raise _damaged(path, "it is not one of this version")
    return manifest


def state_path(directory: str | os.PathLike[str], manifest: Manifest) -> str:
    """The folder of a manifest's run."""
    return os.path.join(os.path.abspath(os.fspath(directory)), _STATE, manifest.run)


def parse_pack_line(line: bytes) -> tuple[PackId, int]:
    """Read a line of ``packs.list``.

    Raises:
        DamagedObject: it is not one.
    """
    if len(line) != PACK_LINE_BYTES or line[32:33] != b" " or line[-1:] != b"\n" or not line[33:53].isdigit():
        raise DamagedObject(f"{PACK_LIST} has a line that is none", object=PACK_LIST, where=PACK_LIST)
    try:
        return PackId.parse(line[:32].decode("ascii")), int(line[33:53])
    except (CasstoreError, UnicodeDecodeError) as error:
        raise DamagedObject(f"{PACK_LIST} has a line that is none", object=PACK_LIST, where=PACK_LIST) from error


def format_pack_line(pack: PackId, size: int) -> bytes:
    """A line of ``packs.list``."""
    return f"{pack} {size:020d}\n".encode("ascii")


def _damaged(path: str, why: str) -> DamagedObject:
    where = os.path.join(path, MANIFEST)
    return DamagedObject(f"{where} does not say what the backup holds: {why}", object=MANIFEST, where=where)


def _remove_tree(files: Files, path: str) -> None:
    """Remove a folder of ours; links are not followed."""
    if not os.path.isdir(path) or os.path.islink(path):
        with suppress(FileNotFoundError):
            files.unlink(path)
        return
    for name in files.listdir(path):
        _remove_tree(files, os.path.join(path, name))
    files.rmdir(path)
