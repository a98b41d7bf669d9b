"""What this user trusts, and what this user has verified: one trust file, and one file of verified state.

Owns both files and the lock that orders the processes of one user.  Knows no network.

Invariants: the verified state only moves forward; it is replaced whole (write, fsync, rename, fsync of the directory), so a crash
leaves the old or the new; evidence of a contradiction is kept, never overwritten.

Threads: any; every method may wait for the disk, so an event loop calls them on a thread.

Source: docs/formats/trust.md
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from casstore.errors import ConfigurationError, InvalidInput
from casstore.formats.trust import TrustFile, VerifiedState, decode_trust, decode_verified, encode_verified

_CONTRADICTIONS_MAX: Final = 10_000  # LIMIT: as many alarms that nobody looked at; one more tells nothing new


class TrustStore:
    """A trust file with the state that was verified against it.

    Args:
        trust: where trust begins.
        directory: where the verified state is kept; made when it is first written.
    """

    def __init__(self, trust: TrustFile, directory: Path) -> None:
        self.trust = trust
        self.directory = directory
        self._path = directory / "verified.json"

    @classmethod
    def open(cls, trust_file: Path, state_dir: Path) -> TrustStore:
        """Read a trust file; its state lies below ``state_dir``, in a folder named by the first entry of its log.

        Raises:
            ConfigurationError: the file is not there or is not a trust file.
        """
        trust = read_trust(trust_file)
        return cls(trust, state_dir / trust.genesis_sha256.hex()[:32])

    def load(self) -> VerifiedState | None:
        """What was verified, or None if nothing has been.

        Raises:
            ConfigurationError: the file is damaged.  It is never passed over in silence: without it a regression would go
                unseen.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"the verified state {self._path} cannot be read: {error.strerror}") from error
        try:
            return decode_verified(data)
        except InvalidInput as error:
            raise ConfigurationError(
                f"the verified state {self._path} is damaged: {error.detail}",
                hint="keep a copy, then remove it: the next command begins again at the trust file's minimum",
            ) from error

    def replace(self, known: VerifiedState | None, state: VerifiedState) -> bool:
        """Put ``state`` in the place of ``known``.

        Args:
            known: what :meth:`load` gave, and ``state`` was verified against.
            state: what is verified now.

        Returns:
            False if another process was faster: load and verify again.

        Raises:
            ConfigurationError: the file cannot be written.

        Durability: the new state is on disk when this returns True.
        """
        try:
            with self._locked():
                if self.load() != known:
                    return False
                self._save(state)
                return True
        except OSError as error:
            raise ConfigurationError(f"the verified state {self._path} cannot be written: {error.strerror}") from error

    def keep_contradiction(self, held: bytes, shown: bytes) -> Path:
        """Keep two statements that contradict each other, as evidence.

        Args:
            held: the note that was verified before; or, before any was, the trust file's minimum as three lines.
            shown: the note that contradicts it.

        Returns:
            the folder that holds both.

        Raises:
            ConfigurationError: they cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number in range(_CONTRADICTIONS_MAX):
                folder = self.directory / f"contradiction-{number:04d}"
                try:
                    folder.mkdir(mode=0o700)
                except FileExistsError:
                    if (folder / "held.note").read_bytes() == held and (folder / "shown.note").read_bytes() == shown:
                        return folder
                    continue
                _write_durable(folder / "held.note", held)
                _write_durable(folder / "shown.note", shown)
                _sync_directory(folder)
                return folder
        except OSError as error:
            raise ConfigurationError(
                f"REGRESSION, and the proof of it cannot be kept in {self.directory}: {error.strerror}"
            ) from error
        return self.directory

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes of this user from saving meanwhile."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _save(self, state: VerifiedState) -> None:
        temporary = self._path.with_suffix(".tmp")
        _write_durable(temporary, encode_verified(state))
        # CRASH: before the rename the old state stands, behind it the new one; the temporary is written anew next time.
        temporary.replace(self._path)
        _sync_directory(self.directory)


def read_trust(path: Path) -> TrustFile:
    """Read a trust file.

    Raises:
        ConfigurationError: it cannot be read, or is none.
    """
    try:
        return decode_trust(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"the trust file {path} cannot be read: {error.strerror}") from error
    except InvalidInput as error:
        raise ConfigurationError(f"{path} is not a trust file: {error.detail}") from error


def _write_durable(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
