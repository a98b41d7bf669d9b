"""A cache of small objects: pages, layouts, roots and documents that are read again and again.

Owns memory and its bound; what is in it was verified by whoever put it there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from casstore.formats.pack import ObjectKind
from casstore.limits import MIB

# LIMIT: of all, and of one (an unchanged push, a pull by a fleet).
CACHE_BYTES: Final = 32 * MIB
CACHE_OBJECT_BYTES: Final = 4 * MIB


class ObjectCache:
    """The plain bytes of objects read lately, at most ``size`` bytes of them.  Chunks are never kept.

    Threads: any.
    """

    def __init__(self, size: int) -> None:
        self._room = size
        self._lock = threading.Lock()
        self._size = size
        self.epoch = 0
        """Changes when everything is forgotten."""
        self._objects: OrderedDict[tuple[ObjectKind, bytes], bytes] = OrderedDict()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self.epoch += 1
            self._objects.clear()
            self._room = self._size

    def get(self, kind: ObjectKind, id: bytes) -> bytes | None:
        """The plain bytes of an object, if they are kept."""
        key = (kind, id)
        with self._lock:
            plain = self._objects.get(key)
            if plain is not None:
                self._objects.move_to_end(key)
            return plain

    def put(self, kind: ObjectKind, id: bytes, plain: bytes, epoch: int) -> None:
        """Keep an object that was looked up in ``epoch``: what was found before a deletion is not kept after it."""
        if kind is ObjectKind.CHUNK or len(plain) > CACHE_OBJECT_BYTES:
            return
        key = (kind, bytes(id))
        with self._lock:
            if key in self._objects or epoch != self.epoch:
                return
            self._objects[key] = plain
            self._room -= len(plain)
            while self._room < 0:
                _, dropped = self._objects.popitem(last=False)
                self._room += len(dropped)

    def drop(self, kind: ObjectKind, id: bytes) -> None:
        """Forget one object."""
        with self._lock:
            plain = self._objects.pop((kind, bytes(id)), None)
            self._room += len(plain or b"")
