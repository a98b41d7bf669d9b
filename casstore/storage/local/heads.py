"""``signed-heads``: every head of the log that the server was about to sign, written before it signs.

The ledger can be replaced by an older copy of itself; this file remembers what the world may have seen.  A server that
finds a head here which its ledger contradicts, or does not reach, must not sign: it would fork its own log.

A record has 103 bytes, all ASCII::

    size, 20 decimal digits ‖ " " ‖ root, 64 hex digits ‖ " " ‖ first 16 hex digits of SHA-256 of what precedes ‖ "\\n"

Invariants: records are appended one at a time, each durable before the next begins, so at most the last one is torn.  A
torn record was never acknowledged, so nothing was signed for it, and opening drops it.  Any other record that does not
verify is damage and is refused, the last one included: a forgotten head is what this file exists to prevent.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from casstore.errors import (
    CasstoreError,
    DamagedObject,
    DestinationExists,
    NotFound,
    NotInitialised,
    OutcomeUnknown,
    StateError,
)
from casstore.limits import KIB
from casstore.storage.local.files import Files, refusal, write_new_file

RECORD_BYTES: Final = 103
_NAME: Final = "signed-heads"
_TMP: Final = os.path.join("tmp", "signed-heads.new")
_RECORD: Final = re.compile(rb"([0-9]{20}) ([0-9a-f]{64}) ([0-9a-f]{16})\n\Z")
_ROOT_BYTES: Final = 32
_ROOM_BYTES: Final = 64 * KIB  # laid aside at once: more than six hundred heads
_BLOCK_BYTES: Final = 4096 * RECORD_BYTES  # read at once


class Head(NamedTuple):
    """A size of the log and the root that stands for it."""

    size: int
    root: bytes
    """32 bytes."""


def encode_record(head: Head) -> bytes:
    """One record of the file.

    Raises:
        ValueError: the size is not from 0 to 2^64 - 1, or the root has not 32 bytes.
    """
    if not 0 <= head.size < 1 << 64 or len(head.root) != _ROOT_BYTES:
        raise ValueError(f"not a head: size {head.size}, root of {len(head.root)} bytes")
    text = f"{head.size:020d} {head.root.hex()} ".encode("ascii")
    return text + hashlib.sha256(text).hexdigest()[:16].encode("ascii") + b"\n"


def decode_record(data: bytes) -> Head | None:
    """Read one record, or None if it is not exactly one."""
    match = _RECORD.match(data)
    if match is None:
        return None
    size = int(match[1])
    head = Head(size, bytes.fromhex(match[2].decode("ascii")))
    return head if size < 1 << 64 and encode_record(head) == data else None


def read_heads(path: str, files: Files) -> list[Head]:
    """The heads in a file that a server may be appending to, or that a dead one left.

    Args:
        path: of the file, wherever it lies.
        files: how.

    Raises:
        NotFound: there is no such file.
        DamagedObject: a record that is not a torn last one does not verify.
        Unavailable: it cannot be read.
    """
    found: list[Head] = []
    try:
        descriptor = files.open_read(path)
        try:
            while block := files.pread(descriptor, _BLOCK_BYTES, RECORD_BYTES * len(found)):
                for offset in range(0, len(block), RECORD_BYTES):
                    record = block[offset : offset + RECORD_BYTES]
                    head = decode_record(record)
                    if head is None:
                        if offset + RECORD_BYTES >= len(block) and _is_torn(record):
                            return found
                        where = f"{path}:{RECORD_BYTES * len(found)}"
                        raise DamagedObject(f"{path} is damaged: a record does not verify", object=_NAME, where=where)
                    found.append(head)
        finally:
            files.close(descriptor)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise refusal(error, f"read {path}") from error
    return found


class SignedHeads:
    """The open file.

    Args:
        directory: the store directory.
        files: how bytes reach the disk.

    Raises:
        NotInitialised: the file is missing, which is never normal.
        DamagedObject: a record that is not the torn last one does not verify.

    Threads: one at a time.
    """

    def __init__(self, directory: str, files: Files) -> None:
        self._directory = directory
        self._path = os.path.join(directory, _NAME)
        self._files = files
        self._sealed = False
        self._room_bytes = 0
        try:
            self._descriptor: int | None = files.open_append(self._path)
        except FileNotFoundError as error:
            raise NotInitialised(
                f"{self._path} is missing: without it the server cannot know what it has signed",
                hint="restore the store directory from a backup, this file included",
            ) from error
        except OSError as error:
            raise refusal(error, f"open {self._path}") from error
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @classmethod
    def lay_out(cls, directory: str, files: Files) -> None:
        """Make the empty file.

        Raises:
            DestinationExists: there is one.
            StoreFull, Unavailable: it cannot be made.

        Durability: the file; its name is durable once the caller has synced the directory.
        """
        path = os.path.join(directory, _NAME)
        try:
            write_new_file(files, path, b"")
        except FileExistsError as error:
            raise DestinationExists(f"{path} exists") from error
        except OSError as error:
            raise refusal(error, f"make {path}") from error

    def make_room(self) -> None:
        """See to it that the next head finds its blocks: on a full disk it is refused here, when nothing is in doubt.

        Raises:
            StoreFull, Unavailable: there is no room; nothing was changed.
            OutcomeUnknown: this file takes no more.

        Durability: none is needed: the blocks belong to the file as long as this process has it open, and usually longer.
        """
        descriptor = self._usable()
        try:
            if self._room_bytes < RECORD_BYTES:
                self._files.allocate(descriptor, self._files.stat(self._path).st_size, _ROOM_BYTES)
                self._room_bytes = _ROOM_BYTES
        except OSError as error:
            raise refusal(error, f"lay aside room in {self._path}") from error

    def append(self, size: int, root: bytes) -> None:
        """Record a head, before it is signed.

        Args:
            size: of the log, in entries.
            root: 32 bytes.

        Raises:
            OutcomeUnknown: the record may or may not be on disk; this file takes no more.

        Durability: durable when this returns.
        """
        descriptor = self._usable()
        record = encode_record(Head(size, root))
        try:
            # CRASH: in the middle of this leaves a torn record, which opening drops.
            self._files.write(descriptor, record)
            self._files.fsync(descriptor)
        except OSError as error:
            raise self._seal(error) from error
        self._room_bytes -= RECORD_BYTES

    def read_all(self) -> list[Head]:
        """Every head on record, in the order of signing.

        Raises:
            DamagedObject: the file was changed or cut since it was opened.
            Unavailable: the disk cannot read it.
        """
        return list(self._scan(self._usable()))

    def compact(self, head: Head) -> None:
        """Forget all heads but one.

        Args:
            head: one that implies all the others: the caller has verified that they are its prefixes.

        Raises:
            StoreFull, Unavailable: the new file cannot be written; the old one stands.
            OutcomeUnknown: the old or the new one stands; this file takes no more.

        Durability: durable when this returns.
        """
        self._usable()
        temporary = os.path.join(self._directory, _TMP)
        try:
            with suppress(FileNotFoundError):
                self._files.unlink(temporary)
            write_new_file(self._files, temporary, encode_record(head))
        except OSError as error:
            raise refusal(error, f"compact {self._path}") from error
        try:
            # ORDER: the new file is durable before it takes the name.
            # CRASH: on either side of the rename the file is whole, and both say what may have been signed.
            self._files.rename(temporary, self._path)
            self._files.fsync_dir(self._directory)
            descriptor = self._files.open_append(self._path)
        except OSError as error:
            raise self._seal(error) from error
        self._close_descriptor()
        self._descriptor = descriptor
        self._room_bytes = 0

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                self._files.close(descriptor)

    def _load(self) -> None:
        """Verify every record and drop a torn last one."""
        descriptor = self._usable()
        for _ in self._scan(descriptor, drop_torn=True):
            pass

    def _scan(self, descriptor: int, *, drop_torn: bool = False) -> Iterator[Head]:
        start = 0
        while block := self._read_block(descriptor, start):
            for offset in range(0, len(block), RECORD_BYTES):
                record = block[offset : offset + RECORD_BYTES]
                head = decode_record(record)
                if head is not None:
                    yield head
                    continue
                where = start + offset
                is_last = not self._read_block(descriptor, where + RECORD_BYTES)
                if not (drop_torn and is_last and _is_torn(record)):
                    raise self._damaged(where)
                self._drop_tail(descriptor, where)
                return
            start += len(block)

    def _read_block(self, descriptor: int, offset: int) -> bytes:
        try:
            return self._files.pread(descriptor, _BLOCK_BYTES, offset)
        except OSError as error:
            raise refusal(error, f"read {self._path}") from error

    def _damaged(self, offset: int) -> DamagedObject:
        return DamagedObject(
            f"{self._path} is damaged at byte {offset}: a record does not verify",
            hint="compare with a backup and with checkpoints that witnesses and hosts hold before repairing it",
            object=_NAME,
            where=f"{self._path}:{offset}",
        )

    def _drop_tail(self, descriptor: int, length: int) -> None:
        try:
            self._files.truncate(descriptor, length)
            self._files.fsync(descriptor)
        except OSError as error:
            raise refusal(error, f"drop the torn end of {self._path}") from error

    def _usable(self) -> int:
        if self._sealed:
            raise OutcomeUnknown(f"{self._path} takes no more heads since a write failed", hint="restart the server")
        if self._descriptor is None:
            raise StateError(f"{self._path} is closed")
        return self._descriptor

    def _seal(self, error: OSError) -> CasstoreError:
        self._sealed = True
        return OutcomeUnknown(
            f"a head may or may not be on record in {self._path}: {error.strerror}",
            hint="restart the server; look at the kernel log for a failing disk",
        )


def _is_torn(record: bytes) -> bool:
    """Whether a last record that does not verify is what a power cut leaves: too short, or zeros where bytes belong."""
    return len(record) < RECORD_BYTES or b"\0" in record
