"""What this user trusts, and what this user has verified: one trust file, and one file of verified state.

Owns both files and the lock that orders the processes of one user.  Knows no network.

Invariants: the verified state only moves forward; it is replaced whole (write, fsync, rename, fsync of the directory), so a crash
leaves the old or the new; evidence of a contradiction is kept, never overwritten.

Source: docs/formats/trust.md
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casstore.errors import ConfigurationError, MalformedDocument, TooLarge
from casstore.formats.trust import TrustFile, VerifiedState, decode_trust, decode_verified, encode_verified


class TrustStore:
    """A trust file with the state that was verified against it.

    Args:
        trust: where trust begins.
        directory: where the verified state is kept; made when it is first written.

    Threads: any; processes are ordered by a lock file.
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
        try:
            trust = decode_trust(trust_file.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"the trust file {trust_file} can not be read: {error.strerror}") from error
        except (MalformedDocument, TooLarge) as error:
            raise ConfigurationError(f"{trust_file} is not a trust file: {error.detail}") from error
        return cls(trust, state_dir / trust.genesis_sha256.hex()[:32])

    def load(self) -> VerifiedState | None:
        """What was verified, or None if nothing has been.

        Raises:
            ConfigurationError: the file is damaged.  It is never passed over in silence: without it a regression would go unseen.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"the verified state {self._path} can not be read: {error.strerror}") from error
        try:
            return decode_verified(data)
        except (MalformedDocument, TooLarge) as error:
            raise ConfigurationError(
                f"the verified state {self._path} is damaged: {error.detail}",
                hint="keep a copy, then remove it: the next command begins again at the trust file's minimum",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this user from saving meanwhile."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def save(self, state: VerifiedState) -> None:
        """Replace the verified state; call it inside :meth:`locked`.

        Durability: the new state is on disk when this returns.
        """
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            stream.write(encode_verified(state))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def keep_contradiction(self, held: bytes, shown: bytes) -> Path:
        """Keep two notes that contradict each other, as evidence; gives the folder."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(10_000):
            folder = self.directory / f"contradiction-{number:04d}"
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            (folder / "held.note").write_bytes(held)
            (folder / "shown.note").write_bytes(shown)
            return folder
        return self.directory  # ten thousand alarms that nobody looked at: no need for one more
