"""A disk that fails on purpose, and one that loses its power.

:class:`FaultyFiles` stands where :class:`~casstore.storage.local.files.Files` stands.  It counts every operation, fails the
one it was told to, and keeps beside the real directory a second picture: what would still be there after a power cut, by
the letter of POSIX.  Bytes are durable after ``fsync`` of the file, names after ``fsync_dir`` of their directory, an LMDB
data file after each commit; all else may be gone.

The files themselves are real: only the failing is simulated.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, TypeAlias, TypeVar

from casstore.storage.local.files import Committable, Files, Space

_T = TypeVar("_T")

Picture: TypeAlias = dict[str, bytes | None]
"""What lies below a directory: relative path → content, or None for a directory."""


class Effect(Enum):
    """What a failing operation has done by the time it reports its error."""

    NOTHING = "nothing"
    HALF = "half"
    """A write has written half its bytes; other operations have done nothing."""
    ALL = "all"


class Loss(Enum):
    """What is left when the process or the machine stops."""

    KEPT = "kept"
    """Everything: the process was killed, the machine runs on."""
    LOST = "lost"
    """Only what was synced."""
    ZEROED = "zeroed"
    """All names, but zeros where bytes were not synced: a file system that journals names alone."""


class Fault(NamedTuple):
    """Which operation fails, and how."""

    at: int
    """Counted from 0."""
    effect: Effect = Effect.NOTHING
    for_good: bool = False
    """Every later operation fails as well, without effect: a dead disk, or a process that was killed here."""
    number: int = errno.EIO


class _Durable:
    """The second picture.  Files and directories are known by serial numbers, for inode numbers are used again."""

    def __init__(self) -> None:
        self._serials: dict[tuple[int, int], int] = {}
        self._counter = itertools.count()
        self.content: dict[int, bytes] = {}
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}

    def serial(self, found: os.stat_result, *, is_new: bool = False) -> int:
        key = (found.st_dev, found.st_ino)
        if is_new or key not in self._serials:
            self._serials[key] = next(self._counter)
        return self._serials[key]

    def sync_file(self, path: str) -> None:
        with open(path, "rb") as file:
            self.content[self.serial(os.fstat(file.fileno()))] = file.read()

    def sync_directory(self, path: str) -> None:
        entries: dict[str, tuple[int, bool]] = {}
        for entry in os.scandir(path):
            is_directory = entry.is_dir(follow_symlinks=False)
            serial = self.serial(os.stat(entry.path, follow_symlinks=False))
            entries[entry.name] = (serial, is_directory)
            if is_directory:
                self.names.setdefault(serial, {})
        self.names[self.serial(os.stat(path))] = entries

    def adopt(self, root: str) -> None:
        """All that is there now was synced long ago."""
        for directory, _, files in os.walk(root):
            self.sync_directory(directory)
            for name in files:
                self.sync_file(os.path.join(directory, name))


class FaultyFiles(Files):
    """Files with one fault in them.

    Args:
        root: a directory; what is in it now counts as durable.
        fault: what fails; None for nothing.

    ``calls`` lists every operation so far, by name.
    """

    def __init__(self, root: str, fault: Fault | None = None) -> None:
        self.root = root
        self.fault = fault
        self.calls: list[str] = []
        self._next: dict[str, Fault] = {}
        self._durable = _Durable()
        self._durable.adopt(root)

    def fail_next(self, name: str, effect: Effect = Effect.NOTHING, number: int = errno.EIO) -> None:
        """Fail the next operation of that name, once."""
        self._next[name] = Fault(0, effect, number=number)

    @property
    def has_failed(self) -> bool:
        """Whether the fault was reached."""
        return self.fault is not None and len(self.calls) > self.fault.at

    def _run(self, name: str, action: Callable[[], _T], *, half: Callable[[], None] | None = None) -> _T:
        number = len(self.calls)
        self.calls.append(name)
        if name in self._next:
            self.fault = self._next.pop(name)._replace(at=number)
        fault = self.fault
        if fault is None or number < fault.at or (number > fault.at and not fault.for_good):
            return action()
        if number == fault.at:
            if fault.effect is Effect.ALL:
                result = action()
                if isinstance(result, int):  # a descriptor that the caller will never see
                    os.close(result)
            elif fault.effect is Effect.HALF and half is not None:
                half()
        raise OSError(fault.number, os.strerror(fault.number))

    # --- names -------------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o750) -> None:
        def action() -> None:
            Files.mkdir(self, path, mode)
            self._durable.serial(os.stat(path), is_new=True)

        self._run("mkdir", action)

    def listdir(self, path: str) -> list[str]:
        return self._run("listdir", lambda: Files.listdir(self, path))

    def link_new(self, source: str, destination: str) -> None:
        self._run("link_new", lambda: Files.link_new(self, source, destination))

    def rename(self, source: str, destination: str) -> None:
        self._run("rename", lambda: Files.rename(self, source, destination))

    def unlink(self, path: str) -> None:
        self._run("unlink", lambda: Files.unlink(self, path))

    def rmdir(self, path: str) -> None:
        self._run("rmdir", lambda: Files.rmdir(self, path))

    def open_dir(self, path: str) -> int:
        return self._run("open_dir", lambda: Files.open_dir(self, path))

    def fsync_dir(self, path: str, opened: int | None = None) -> None:
        def action() -> None:
            Files.fsync_dir(self, path, opened)
            self._durable.sync_directory(path)

        self._run("fsync_dir", action)

    def stat(self, path: str) -> os.stat_result:
        return self._run("stat", lambda: Files.stat(self, path))

    # --- bytes -------------------------------------------------------------------------------------------------------

    def open_write(self, path: str, mode: int = 0o640) -> int:
        def action() -> int:
            descriptor = Files.open_write(self, path, mode)
            self._durable.serial(os.fstat(descriptor), is_new=True)
            return descriptor

        return self._run("open_write", action)

    def open_append(self, path: str) -> int:
        return self._run("open_append", lambda: Files.open_append(self, path))

    def open_read(self, path: str) -> int:
        return self._run("open_read", lambda: Files.open_read(self, path))

    def open_lock(self, path: str) -> int:
        return self._run("open_lock", lambda: Files.open_lock(self, path))

    def write(self, descriptor: int, data: bytes | memoryview) -> None:
        half = memoryview(data)[: len(data) // 2]
        self._run(
            "write", lambda: Files.write(self, descriptor, data), half=lambda: Files.write(self, descriptor, half)
        )

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        return self._run("pread", lambda: Files.pread(self, descriptor, length, offset))

    def truncate(self, descriptor: int, length: int) -> None:
        self._run("truncate", lambda: Files.truncate(self, descriptor, length))

    def space(self, path: str) -> Space:
        return self._run("space", lambda: Files.space(self, path))

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        self._run("allocate", lambda: Files.allocate(self, descriptor, offset, length))

    def fsync(self, descriptor: int) -> None:
        def action() -> None:
            Files.fsync(self, descriptor)
            self._durable.sync_file(f"/proc/self/fd/{descriptor}")

        self._run("fsync", action)

    def close(self, descriptor: int) -> None:
        # Linux frees the descriptor whatever close() reports.
        Files.close(self, descriptor)
        self._run("close", lambda: None)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def lock(self, descriptor: int) -> None:
        self._run("lock", lambda: Files.lock(self, descriptor))

    def commit(self, transaction: Committable) -> None:
        def action() -> None:
            Files.commit(self, transaction)
            # LMDB syncs by itself.  A transaction does not tell its file: both are synced, which is no more than true,
            # for LMDB writes nothing but in a commit.
            for environment in ("index", "ledger", "index.building"):
                for above in (self.root, os.path.join(self.root, "store")):
                    data = os.path.join(above, environment, "data.mdb")
                    if os.path.exists(data):
                        self._durable.sync_file(data)

        try:
            self._run("commit", action)
        except OSError:
            transaction.abort()
            raise

    # --- the end -----------------------------------------------------------------------------------------------------

    def picture(self, loss: Loss) -> Picture:
        """What the next process finds.

        Call after everything that uses the real directory was closed.
        """
        if loss is Loss.LOST:
            found: Picture = {}
            self._add_durable(found, self._durable.serial(os.stat(self.root)), "")
            return found
        found = picture_of(self.root)
        if loss is Loss.ZEROED:
            for name, content in found.items():
                if content is not None:
                    serial = self._durable.serial(os.stat(os.path.join(self.root, name)))
                    found[name] = self._durable.content.get(serial, b"").ljust(len(content), b"\0")
        return found

    def _add_durable(self, found: Picture, serial: int, above: str) -> None:
        for name, (child, is_directory) in self._durable.names[serial].items():
            path = os.path.join(above, name)
            if is_directory:
                found[path] = None
                self._add_durable(found, child, path)
            else:
                found[path] = self._durable.content.get(child, b"")


def picture_of(root: str) -> Picture:
    """Everything below a directory."""
    found: Picture = {}
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with os.scandir(os.path.join(root, above)) as entries:
            for entry in entries:
                name = f"{above}/{entry.name}" if above else entry.name
                if entry.is_dir(follow_symlinks=False):
                    found[name] = None
                    waiting.append(name)
                else:
                    with open(entry.path, "rb") as file:
                        found[name] = file.read()
    return found


def restore(picture: Picture, root: str) -> None:
    """Make a directory equal to a picture.  Its empty directories are kept where they stay, for speed."""
    os.makedirs(root, exist_ok=True)
    kept: set[str] = set()
    for directory, directories, names in os.walk(root, topdown=False):
        above = directory[len(root) + 1 :]
        for name in names:
            os.unlink(f"{directory}/{name}")
        for name in directories:
            path = f"{above}/{name}" if above else name
            if path in picture:
                kept.add(path)
            else:
                os.rmdir(f"{directory}/{name}")
    for name, content in sorted(picture.items()):
        path = f"{root}/{name}"
        if content is not None:
            with open(path, "xb") as file:
                file.write(content)
        elif name not in kept:
            os.mkdir(path)


def fingerprint(picture: Picture) -> bytes:
    """The same for pictures that the next process cannot tell apart: all but who held which lock."""
    whole = hashlib.sha256()
    for name, content in sorted(picture.items()):
        if os.path.basename(name) not in ("lock", "lock.mdb"):
            whole.update(f"{name}\0{'' if content is None else hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.digest()
