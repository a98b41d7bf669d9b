"""The file of an export: a ZIP whose members are stored as they are, or a directory of the same members.

Owns how members become bytes on a disk, and that an export appears under its name whole or not at all.  Knows nothing of what
members mean.

A ZIP is the same bytes for the same members: no time, no compression, one kind of header.

# CRASH: what is being written has another name, with ``.part`` in it; it can be removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Final, Protocol, Self

from casstore.errors import DamagedObject, DestinationExists, InvalidInput, NotFound
from casstore.limits import EXPORT_MEMBERS_MAX, MIB
from casstore_client.errors import local_fault

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the least that a ZIP can say
_MODE: Final = 0o100644 << 16
_BLOCK_BYTES: Final = MIB


class ArchiveWriter:
    """Writes an export; :meth:`finish` gives it its name, leaving the block without that removes it.

    Args:
        path: what it will be called; must not exist.
        directory: a directory instead of a ZIP.

    Raises:
        DestinationExists: something is at ``path``.
        InvalidInput: it cannot be written.

    Threads: one at a time.
    """

    def __init__(self, path: str, *, directory: bool) -> None:
        self._path = os.path.abspath(path)
        self._directory = directory
        if os.path.lexists(self._path):
            raise DestinationExists(f"{path} exists", hint="an export is never written over anything")
        folder, name = os.path.split(self._path)
        self._part = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
        self._stream: IO[bytes] | None = None
        self._zip: zipfile.ZipFile | None = None
        self._finished = False
        try:
            if directory:
                os.mkdir(self._part)
            else:
                self._stream = open(self._part, "xb")  # noqa: SIM115 (closed by close)
                self._zip = zipfile.ZipFile(self._stream, "w", zipfile.ZIP_STORED, allowZip64=True)
        except OSError as error:
            raise local_fault("write", os.fsencode(path), error) from error

    def add(self, name: str, parts: Sequence[bytes]) -> None:
        """Write a member.

        Args:
            name: of the member; its folder is made as needed.
            parts: its bytes.

        Raises:
            InvalidInput, CapacityError: the disk refuses.
        """
        try:
            if self._zip is not None:
                info = zipfile.ZipInfo(name, _EPOCH)
                info.create_system, info.external_attr = 3, _MODE
                self._zip.writestr(info, b"".join(parts))
            else:
                self._add_file(name, parts)
        except OSError as error:
            raise local_fault("write", os.fsencode(self._path), error) from error

    def _add_file(self, name: str, parts: Sequence[bytes]) -> None:
        target = os.path.join(self._part, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "xb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> None:
        """Make it durable and give it its name.

        Raises:
            DestinationExists: something has come to be there.
            InvalidInput, CapacityError: the disk refuses.
        """
        try:
            if self._zip is not None and self._stream is not None:
                self._zip.close()
                self._stream.flush()
                os.fsync(self._stream.fileno())
            else:
                for folder, _, _ in os.walk(self._part, topdown=False):
                    _sync(folder)
            # ORDER: the bytes, then the name.
            if os.path.lexists(self._path):
                raise DestinationExists(f"{self._path} exists", hint="an export is never written over anything")
            os.rename(self._part, self._path)
            _sync(os.path.dirname(self._path))
        except OSError as error:
            raise local_fault("write", os.fsencode(self._path), error) from error
        self._finished = True

    def close(self) -> None:
        """Let go of the file, and remove what was not finished."""
        if self._zip is not None:
            # It ends by writing its table, also into a file that will be removed.
            with suppress(OSError, ValueError):
                self._zip.close()
        if self._stream is not None:
            with suppress(OSError):
                self._stream.close()
        if not self._finished:
            if self._directory:
                shutil.rmtree(self._part, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(self._part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ArchiveReader(Protocol):
    """An export that is being read."""

    def names(self) -> list[str]:
        """Of all members, in no order."""
        ...

    def size(self, name: str) -> int:
        """Of a member, in bytes."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A member from its beginning; seekable."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_archive(path: str) -> ArchiveReader:
    """Open an export.

    Raises:
        NotFound: there is none.
        DamagedObject: it is cut short, or it is none.
        InvalidInput: it cannot be read.
    """
    if not os.path.lexists(path):
        raise NotFound(f"there is no export {path}")
    try:
        return _Folder(path) if os.path.isdir(path) else _Zip(path)
    except zipfile.BadZipFile as error:
        raise DamagedObject(
            f"{path} is no export, or is cut short: it has no table of contents at its end",
            object=path,
            hint="copy it again, and compare the sizes",
        ) from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error


class _Zip:
    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path)
        self._infos = {info.filename: info for info in self._zip.infolist()}
        try:
            self._check()
        except BaseException:
            self._zip.close()
            raise

    def _check(self) -> None:
        infos = self._zip.infolist()
        if len(infos) > EXPORT_MEMBERS_MAX + 1 or len(self._infos) != len(infos):
            raise zipfile.BadZipFile("a member stands there twice, or there are too many")
        # LIMIT: what is not compressed cannot grow when it is read.
        if any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in infos):
            raise zipfile.BadZipFile("a member is compressed")

    def names(self) -> list[str]:
        return list(self._infos)

    def size(self, name: str) -> int:
        return self._infos[name].file_size

    def open(self, name: str) -> IO[bytes]:
        return self._zip.open(self._infos[name])

    def close(self) -> None:
        self._zip.close()


class _Folder:
    def __init__(self, path: str) -> None:
        self._path = path
        self._sizes: dict[str, int] = {}
        for folder, folders, names in os.walk(path, followlinks=False):
            for name in names:
                full = os.path.join(folder, name)
                found = os.stat(full, follow_symlinks=False)
                # TRUST: a pipe would keep us waiting, a link could name any file of this machine.
                if not stat.S_ISREG(found.st_mode):
                    raise ValueError(f"{name} is not a file")
                self._sizes[os.path.relpath(full, path)] = found.st_size
            if len(self._sizes) > EXPORT_MEMBERS_MAX + 1 or len(folders) > EXPORT_MEMBERS_MAX:
                raise ValueError("it has too many files")

    def names(self) -> list[str]:
        return list(self._sizes)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def open(self, name: str) -> IO[bytes]:
        descriptor = os.open(os.path.join(self._path, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return os.fdopen(descriptor, "rb")

    def close(self) -> None:
        pass


def read_blocks(archive: ArchiveReader, name: str, size: int, each: Callable[[bytes], None]) -> Iterator[bytes]:
    """A member in blocks, exactly ``size`` bytes of it.

    Args:
        archive: which.
        name: of the member.
        size: that it must have.
        each: given each block before it is handed out, such as a hasher.

    Raises:
        DamagedObject: it is shorter or longer, or cannot be read.
    """
    left = size
    try:
        with archive.open(name) as stream:
            while left and (block := stream.read(min(_BLOCK_BYTES, left))):
                left -= len(block)
                each(block)
                yield block
            if left or stream.read(1):
                raise zipfile.BadZipFile(f"{left} bytes are missing" if left else "there are more bytes than its size")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise DamagedObject(f"{name} of the export cannot be read: {error}", object=name, where=name) from error


def read_small(archive: ArchiveReader, name: str, max_bytes: int) -> bytes:
    """A small member whole.

    Args:
        archive: which.
        name: of the member.
        max_bytes: more is refused before it is read.

    Raises:
        DamagedObject: there is none of that name, it is too large, or it cannot be read.
    """
    if name not in archive.names():
        raise DamagedObject(f"the export has no member {name}: it is cut short, or no export", object=name, where=name)
    size = archive.size(name)
    if size > max_bytes:
        raise DamagedObject(
            f"{name} of the export has {size} bytes, at most {max_bytes} belong", object=name, where=name
        )
    return b"".join(read_blocks(archive, name, size, lambda _: None))
