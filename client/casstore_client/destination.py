"""Where a pull puts what it made: complete, or not at all.

Owns the temporary sibling ``.NAME.casstore-<random>``, the one rename that makes it ``NAME``, and what becomes of siblings
that interrupted pulls have left: the next pull to the same name takes what it can use from them, and removes them once it is done.

A sibling is in use as long as someone holds the lock on it (``flock``), which the system takes back from whoever dies.

# ORDER: content, modes and times, sync of the file system, rename, sync of the directory above, removal of what was replaced and
of leftovers.
# CRASH: before the rename there is only the sibling, which nothing refers to and anyone may remove; after it there is all, and
the sibling is what was replaced.
# TRUST: in a directory that others may write to, a leftover is looked at only if it is this user's own.

Threads: blocking; call it on a worker.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from contextlib import suppress
from typing import Final, Self

from casstore.errors import DestinationExists, InvalidInput
from casstore_client.beneath import DIRECTORY_FLAGS
from casstore_client.errors import local_fault, show_path
from casstore_client.removal import remove_tree
from casstore_client.system_calls import exchange, exists, rename_new, sync_file_system

_NAME_MAX_BYTES: Final = 200  # with what is put around it, it stays below the 255 of most file systems

LEFTOVERS_MAX: Final = 2  # LIMIT: what repeated interruptions may keep on the disk; older ones go
_ATTEMPTS: Final = 10


class Destination:
    """A name that is to come into being.

    Args:
        path: the name; the directory above must be there.
        replace: whether something of that name may be replaced.

    Raises:
        DestinationExists: it is there, is not an empty directory, and ``replace`` is False.
        InvalidInput: the directory above cannot be opened, or the name is no name.
    """

    def __init__(self, path: bytes, *, replace: bool) -> None:
        if not path:
            # A script's empty variable: it would mean the working directory, and with ``replace`` put an end to it.
            raise InvalidInput("the destination is an empty name")
        self.path = path
        self._replace = replace
        self._published = False
        self._kept = False
        self._leftovers: dict[bytes, int] = {}
        above, self._name = os.path.split(path.rstrip(b"/"))
        if self._name in (b"", b".", b".."):
            above, self._name = os.path.split(os.path.realpath(path))
        if not self._name:
            raise InvalidInput(f"{show_path(path)} cannot be a destination")
        self._prefix = b"." + self._name[:_NAME_MAX_BYTES] + b".casstore-"
        self.temporary = self._new_temporary()
        try:
            self.parent_fd = os.open(above or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise local_fault("open the directory", above or b".", error) from error
        try:
            self._verify_free()
        except BaseException:
            self.close()
            raise

    def make_directory(self) -> int:
        """Make the temporary sibling as a directory and lock it.

        Returns:
            a descriptor that the caller owns; as long as it is open, nobody takes the sibling for a leftover.

        Raises:
            InvalidInput, CapacityError: the file system refuses.
        """
        try:
            for _ in range(_ATTEMPTS):
                os.mkdir(self.temporary, 0o700, dir_fd=self.parent_fd)
                fd = os.open(self.temporary, DIRECTORY_FLAGS, dir_fd=self.parent_fd)
                if _lock(fd) is not False:
                    return fd
                # Another pull has looked for leftovers in this very moment, and will remove it.
                os.close(fd)
                self.temporary = self._new_temporary()
        except OSError as error:
            raise local_fault("write next to", self.path, error) from error
        raise InvalidInput(f"others take what is made next to {show_path(self.path)}")

    def claim_leftovers(self) -> list[int]:
        """Find what interrupted pulls to this name have left, newest first, and lock it.

        Returns:
            descriptors of directories, open until :meth:`close`.  :meth:`publish` removes them.
        """
        if self._leftovers:
            return list(self._leftovers.values())
        found: list[tuple[int, bytes, int]] = []
        names: list[bytes] = []
        pattern = re.compile(re.escape(self._prefix) + rb"[0-9a-f]{12}")
        with suppress(OSError), os.scandir(self.parent_fd) as entries:
            names = [name for entry in entries if pattern.fullmatch(name := os.fsencode(entry.name))]
        for name in names:
            with suppress(OSError):  # it is gone, or no directory, or somebody's whom we cannot look at
                fd = os.open(name, DIRECTORY_FLAGS, dir_fd=self.parent_fd)
                info = os.fstat(fd)
                # A directory that cannot be locked may be in use for all we know.
                if info.st_uid == os.geteuid() and _lock(fd) is True:
                    found.append((info.st_mtime_ns, name, fd))
                else:
                    os.close(fd)
        found.sort(reverse=True)
        for _, name, fd in found[LEFTOVERS_MAX:]:
            self._remove_leftover(name)
            os.close(fd)
        self._leftovers = {name: fd for _, name, fd in found[:LEFTOVERS_MAX]}
        return list(self._leftovers.values())

    def open_replaced(self) -> int | None:
        """Open the directory that is going to be replaced; None if there is none.  The descriptor is the caller's."""
        if not self._replace:
            return None
        try:
            return os.open(self._name, DIRECTORY_FLAGS, dir_fd=self.parent_fd)
        except OSError:
            return None

    def keep(self) -> bytes:
        """Leave the temporary sibling to the next pull to this name.

        Returns:
            its path.
        """
        self._kept = True
        return self._sibling()

    def publish(self, *, sync: bool) -> None:
        """Give the temporary sibling its name.

        Args:
            sync: whether to force everything to disk, before and after.

        Durability: with ``sync``, content and name survive a power cut when this returns.

        Raises:
            DestinationExists: someone took the name meanwhile.
            InvalidInput, CapacityError: the file system refuses; or it is in place, and what it replaced cannot be removed.
        """
        try:
            if sync:
                sync_file_system(self.parent_fd)
            replaced_fd = self.open_replaced()
            try:
                if replaced_fd is not None:
                    _lock(replaced_fd)  # under its new name it looks like a leftover
                self._rename()
                if sync:
                    os.fsync(self.parent_fd)
                self._published = True
                self._remove_replaced()
            finally:
                if replaced_fd is not None:
                    os.close(replaced_fd)
        except OSError as error:
            raise local_fault("put in place", self.path, error) from error
        for name in self._leftovers:
            self._remove_leftover(name)

    def discard(self) -> None:
        """Remove the temporary sibling, if it is there.

        Raises:
            InvalidInput: it cannot be removed; its name is told.
        """
        if self._published or self._kept:
            return
        try:
            remove_tree(self.temporary, dir_fd=self.parent_fd)
        except OSError as error:
            raise local_fault("remove", self._sibling(), error) from error

    def close(self) -> None:
        """Let go of the directory above and of leftovers."""
        for fd in self._leftovers.values():
            os.close(fd)
        self._leftovers = {}
        if self.parent_fd >= 0:
            os.close(self.parent_fd)
            self.parent_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rename(self) -> None:
        fd = self.parent_fd
        try:
            rename_new(self.temporary, self._name, dir_fd=fd)
            return
        except FileExistsError:
            pass
        if not self._replace:
            self._verify_free()
            try:
                # Only an empty directory can be renamed over: the system refuses anything else.
                os.rename(self.temporary, self._name, src_dir_fd=fd, dst_dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                    raise self._taken() from error
                raise
            return
        if not exchange(self.temporary, self._name, dir_fd=fd):
            aside = self.temporary + b"-old"
            os.rename(self._name, aside, src_dir_fd=fd, dst_dir_fd=fd)
            # CRASH: here the name is missing for a moment; only where the file system cannot exchange names.
            try:
                os.rename(self.temporary, self._name, src_dir_fd=fd, dst_dir_fd=fd)
            except OSError:
                os.rename(aside, self._name, src_dir_fd=fd, dst_dir_fd=fd)
                raise
            self.temporary = aside

    def _new_temporary(self) -> bytes:
        return self._prefix + os.urandom(6).hex().encode()

    def _remove_leftover(self, name: bytes) -> None:
        # It is in nobody's way; what cannot be removed now, the next pull finds again.
        with suppress(OSError):
            remove_tree(name, dir_fd=self.parent_fd)

    def _remove_replaced(self) -> None:
        try:
            remove_tree(self.temporary, dir_fd=self.parent_fd)  # nothing is there where nothing was replaced
        except OSError as error:
            raise InvalidInput(
                f"{show_path(self.path)} is in place; what it replaced cannot be removed: {error.strerror}",
                hint=f"remove {show_path(self._sibling())}",
            ) from error

    def _sibling(self) -> bytes:
        return os.path.join(os.path.dirname(self.path.rstrip(b"/")), self.temporary)

    def _verify_free(self) -> None:
        if self._replace or not exists(self._name, dir_fd=self.parent_fd):
            return
        try:
            fd = os.open(self._name, DIRECTORY_FLAGS, dir_fd=self.parent_fd)
        except OSError as error:
            raise self._taken() from error
        try:
            if os.listdir(fd):
                raise self._taken()
        finally:
            os.close(fd)

    def _taken(self) -> DestinationExists:
        return DestinationExists(
            f"{show_path(self.path)} exists", hint="choose another name, remove it, or ask to replace it"
        )


def _lock(fd: int) -> bool | None:
    """Lock a directory for as long as the descriptor is open: True, False if someone else has it, None if that cannot be done."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
