"""Opens files beneath one directory: by descriptor, one component at a time, never through a symbolic link.

Owns the only way in which push and pull reach a path.  The kernel takes no path above 4,095 bytes and follows links in the
middle of those that it takes; a tree may be deeper, and its content is anybody's.  So each directory is opened relative to
the one above it with ``O_NOFOLLOW``, and recently used ones are kept, because paths come in order.

Invariants: at most ``capacity`` descriptors are open; nothing outside the root is ever opened.
"""

from __future__ import annotations

import os
from typing import Final, Self

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPACITY: Final = 32


class Beneath:
    """A small cache of open directories beneath a root.

    Threads: one thread at a time; make one for each task.

    Args:
        root_fd: the directory that everything lies beneath; stays the caller's, and must stay open.
        capacity: how many descriptors may be open, ≥ 2.
    """

    def __init__(self, root_fd: int, capacity: int = _CAPACITY) -> None:
        self._root_fd = root_fd
        self._capacity = capacity
        self._open: dict[bytes, int] = {}
        self._last_path = b""
        self._last_fd = root_fd

    def directory(self, path: bytes) -> int:
        """A descriptor of the directory ``path`` (empty: the root), valid until the next call.

        Raises:
            OSError: it is not there, not a directory, or a link (``ELOOP`` or ``ENOTDIR``).
        """
        if path == self._last_path:
            return self._last_fd
        self._last_path, self._last_fd = b"", self._root_fd  # what was last may be closed on the way
        fd = self._find(path) if path else self._root_fd
        self._last_path, self._last_fd = path, fd
        return fd

    def locate(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory that holds ``path``, and its last component; valid until the next call.

        Raises:
            OSError: as :meth:`directory`.
        """
        parent, _, name = path.rpartition(b"/")
        return self.directory(parent), name

    def open(self, path: bytes, flags: int, mode: int = 0o600) -> int:
        """Open ``path``; the caller owns the descriptor.  ``O_NOFOLLOW`` and ``O_CLOEXEC`` are added.

        Raises:
            OSError: as the system says.
        """
        fd, name = self.locate(path)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=fd)

    def close(self) -> None:
        """Close every directory but the root."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        self._last_path, self._last_fd = b"", self._root_fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, path: bytes) -> int:
        known = self._open.get(path)
        if known is not None:
            self._open[path] = self._open.pop(path)  # most recently used last
            return known
        # The nearest directory above that is open, then down from there.
        end = len(path)
        fd = self._root_fd
        while (end := path.rfind(b"/", 0, end)) > 0:
            above = self._open.get(path[:end])
            if above is not None:
                fd = above
                break
        start = end + 1  # rfind gives -1 at the top
        while start <= len(path):
            end = path.find(b"/", start)
            end = len(path) if end < 0 else end
            fd = self._remember(path[:end], os.open(path[start:end], DIRECTORY_FLAGS, dir_fd=fd))
            start = end + 1
        return fd

    def _remember(self, path: bytes, fd: int) -> int:
        self._open[path] = fd
        if len(self._open) > self._capacity:
            # It may be the parent of the new one: that has served, for the next step down starts from the new one.
            os.close(self._open.pop(next(iter(self._open))))
        return fd
