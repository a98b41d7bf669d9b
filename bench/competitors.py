"""What a competitor is, and those that are installed as commands: restic, borg, casync, ostree, desync, kopia.

Each keeps a local repository below a folder of its own, with the defaults that its makers chose; where they leave a choice, with one
that suits it.  None asks for a password.  ``durable`` says whether a push is on the disk when the command has ended; no peer
syncs what it restores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.corpora import bench_dir
from bench.processes import Finished, run, stored_bytes
from bench.scratch import discard
from bench.steps import PULL_1, PULL_2, PULL_2_LINK, PUSH_1, PUSH_2, PUSH_SAME, VERIFY

_PEER_STEPS = frozenset({PUSH_1, PUSH_SAME, PUSH_2, VERIFY, PULL_1, PULL_2})


@dataclass(frozen=True)
class Measured:
    """One step of one competitor in one round."""

    seconds: float
    client_cpu_s: float
    client_peak_bytes: int
    server_cpu_s: float = 0.0
    server_peak_bytes: int = 0
    wire_bytes: int = 0
    stored_bytes: int = 0


class Competitor(ABC):
    """One store below ``home``, empty at the beginning, through all steps of one round.

    Args:
        home: a folder of its own, which need not exist.
        releases: the trees of release 1 and release 2.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    durable: ClassVar[bool]
    is_peer: ClassVar[bool] = True

    def __init__(self, home: Path, releases: tuple[Path, Path]) -> None:
        discard(home)
        home.mkdir(parents=True)
        self.home = home
        self.releases = releases

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Why it cannot take part here, or None."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Its version."""

    @abstractmethod
    def open(self) -> None:
        """Make the empty store; outside of the measurement."""

    @abstractmethod
    def steps(self) -> frozenset[str]:
        """Which steps it has."""

    @abstractmethod
    def take(self, step: str) -> Measured:
        """Take one step.

        Raises:
            StepFailed: it could not.
        """

    def pulled(self, step: str) -> Path:
        """Where a pull puts its tree."""
        return self.home / f"pulled-{step}"

    def close(self) -> None:
        """Stop what runs and remove all that was made."""
        discard(self.home)


class CommandPeer(Competitor):
    """A peer that is a command on a local repository."""

    command: ClassVar[str]

    def __init__(self, home: Path, releases: tuple[Path, Path]) -> None:
        super().__init__(home, releases)
        self.repository = home / "repository"
        self.environ: dict[str, str] = {**os.environ, "HOME": str(home), **self.settings()}
        self._stored = 0

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.path() else f"no command {cls.command}"

    @classmethod
    def path(cls) -> str | None:
        """Where its command is: on the path, or in ``bin/`` of the bench folder."""
        return shutil.which(cls.command) or shutil.which(cls.command, path=str(bench_dir() / "bin"))

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(
            [cls.path() or cls.command, *cls.version_words()], capture_output=True, text=True, check=False
        )
        return next((word for word in done.stdout.split() if word.strip("'v")[:1].isdigit()), "?").strip("'")

    @classmethod
    def version_words(cls) -> list[str]:
        """How it is asked for its version."""
        return ["--version"]

    def settings(self) -> Mapping[str, str]:
        """Environment that it needs."""
        return {}

    def open(self) -> None:
        for words in self.create():
            self.run(words)
        self._stored = stored_bytes(self.repository) if self.repository.exists() else 0

    @abstractmethod
    def create(self) -> list[list[str]]:
        """Commands that make the repository."""

    @abstractmethod
    def push(self, number: int, tag: str) -> Finished:
        """Store release ``number`` under ``tag``."""

    @abstractmethod
    def pull(self, tag: str, target: Path) -> Finished:
        """Restore what ``tag`` names."""

    def verify(self) -> Finished:
        """Check every stored byte."""
        raise NotImplementedError

    def take_more(self, step: str) -> Finished:
        """Steps that other peers do not have, or that this one does in its own way."""
        raise NotImplementedError(step)

    def run(self, words: list[str], folder: Path | None = None) -> Finished:
        """Run its command."""
        return run([self.path() or self.command, *words], environ=self.environ, folder=folder)

    def steps(self) -> frozenset[str]:
        return _PEER_STEPS

    def take(self, step: str) -> Measured:
        if step == PUSH_1:
            done = self.push(1, "r1")
        elif step == PUSH_SAME:
            done = self.push(1, "r1-again")
        elif step == PUSH_2:
            done = self.push(2, "r2")
        elif step == VERIFY:
            done = self.verify()
        elif step == PULL_1:
            done = self.pull("r1", self.pulled(step))
        elif step == PULL_2:
            done = self.pull("r2", self.pulled(step))
        else:
            done = self.take_more(step)
        stored = stored_bytes(self.repository)
        grown, self._stored = stored - self._stored, stored
        return Measured(
            done.seconds,
            done.cpu_s,
            done.peak_bytes,
            wire_bytes=grown if step in (PUSH_1, PUSH_SAME, PUSH_2) else 0,
            stored_bytes=stored,
        )


class Restic(CommandPeer):
    """restic: encrypted, compressed where it helps (its default), durable."""

    name = "restic"
    about = "repository version 2, compression auto (its default)"
    durable = True
    command = "restic"

    @classmethod
    def version_words(cls) -> list[str]:
        return ["version"]

    def settings(self) -> Mapping[str, str]:
        return {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
        }

    def create(self) -> list[list[str]]:
        return [["init", "--quiet", "--repository-version", "2"]]

    def push(self, number: int, tag: str) -> Finished:
        return self.run(["backup", "--quiet", "--tag", tag, "."], self.releases[number - 1])

    def pull(self, tag: str, target: Path) -> Finished:
        return self.run(["restore", "--quiet", "latest", "--tag", tag, "--target", str(target)])

    def verify(self) -> Finished:
        return self.run(["check", "--quiet", "--read-data"])


class Borg(CommandPeer):
    """borg without encryption, with lz4: its quickest."""

    name = "borg"
    about = "no encryption, lz4 (its default)"
    durable = True
    command = "borg"
    compression: ClassVar[str] = "lz4"

    def settings(self) -> Mapping[str, str]:
        return {"BORG_BASE_DIR": str(self.home), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def create(self) -> list[list[str]]:
        return [["init", "--encryption", "none", str(self.repository)]]

    def push(self, number: int, tag: str) -> Finished:
        words = ["create", "--compression", self.compression, f"{self.repository}::{tag}", "."]
        return self.run(words, self.releases[number - 1])

    def pull(self, tag: str, target: Path) -> Finished:
        target.mkdir()
        return self.run(["extract", f"{self.repository}::{tag}"], target)

    def verify(self) -> Finished:
        return self.run(["check", "--verify-data", str(self.repository)])


class BorgZstd(Borg):
    """borg with the compression that casstore uses: its smallest at a like price."""

    name = "borg-zstd"
    about = "no encryption, zstd level 3"
    compression = "zstd,3"


class Casync(CommandPeer):
    """casync: one file a chunk, zstd; syncs nothing and has no check of a store.

    Without its seeds: they made it several times slower on the Python tree, and on the JavaScript tree it ended with "Argument list too
    long".
    """

    name = "casync"
    about = "index and local chunk store, zstd (its default), without seeds"
    durable = False
    command = "casync"

    def steps(self) -> frozenset[str]:
        return _PEER_STEPS - {VERIFY}

    def create(self) -> list[list[str]]:
        self.repository.mkdir()
        return []

    def push(self, number: int, tag: str) -> Finished:
        words = ["make", f"--store={self.repository}/store.castr", f"{self.repository}/{tag}.caidx"]
        return self.run([*words, str(self.releases[number - 1])])

    def pull(self, tag: str, target: Path) -> Finished:
        store = f"--store={self.repository}/store.castr"
        return self.run(["extract", store, f"{self.repository}/{tag}.caidx", str(target)])


class Ostree(CommandPeer):
    """ostree, one plain file an object: nothing is compressed, a checkout may be links into the repository."""

    name = "ostree"
    about = "bare-user repository: not compressed; linked: checkout by hard links into the repository"
    durable = True
    command = "ostree"
    mode: ClassVar[str] = "bare-user"

    def steps(self) -> frozenset[str]:
        return _PEER_STEPS | {PULL_2_LINK}

    def create(self) -> list[list[str]]:
        return [["init", f"--repo={self.repository}", f"--mode={self.mode}"]]

    def push(self, number: int, tag: str) -> Finished:
        words = ["commit", f"--repo={self.repository}", f"--branch={tag}", f"--tree=dir={self.releases[number - 1]}"]
        return self.run([*words, "--no-xattrs"])

    def pull(self, tag: str, target: Path) -> Finished:
        return self.run(["checkout", f"--repo={self.repository}", "-U", "--force-copy", tag, str(target)])

    def take_more(self, step: str) -> Finished:
        return self.run(["checkout", f"--repo={self.repository}", "-U", "r2", str(self.pulled(step))])

    def verify(self) -> Finished:
        return self.run(["fsck", f"--repo={self.repository}"])


class OstreeArchive(Ostree):
    """ostree, one gzip file an object."""

    name = "ostree-archive"
    about = "archive repository: one gzip file an object"
    mode = "archive"

    def steps(self) -> frozenset[str]:
        return _PEER_STEPS


class Desync(CommandPeer):
    """desync: casync's formats in Go, in parallel."""

    name = "desync"
    about = "index and local chunk store (its defaults)"
    durable = False
    command = "desync"

    def create(self) -> list[list[str]]:
        (self.repository / "store.castr").mkdir(parents=True)
        return []

    def push(self, number: int, tag: str) -> Finished:
        words = ["tar", "--index", "--store", f"{self.repository}/store.castr", f"{self.repository}/{tag}.caidx"]
        return self.run([*words, str(self.releases[number - 1])])

    def pull(self, tag: str, target: Path) -> Finished:
        target.mkdir()
        words = ["untar", "--index", "--store", f"{self.repository}/store.castr", f"{self.repository}/{tag}.caidx"]
        return self.run([*words, str(target)])

    def verify(self) -> Finished:
        return self.run(["verify", "--store", f"{self.repository}/store.castr"])


class Kopia(CommandPeer):
    """kopia: encrypted, in parallel; compresses only when told, so it is told."""

    name = "kopia"
    about = "local repository, zstd by policy"
    durable = False
    command = "kopia"

    def __init__(self, home: Path, releases: tuple[Path, Path]) -> None:
        super().__init__(home, releases)
        self._roots: dict[str, str] = {}

    def settings(self) -> Mapping[str, str]:
        return {
            "KOPIA_PASSWORD": "bench",
            "KOPIA_CONFIG_PATH": str(self.home / "kopia.config"),
            "KOPIA_CACHE_DIRECTORY": str(self.home / "cache"),
            "KOPIA_CHECK_FOR_UPDATES": "false",
        }

    def create(self) -> list[list[str]]:
        self.repository.mkdir()
        return [
            ["repository", "create", "filesystem", "--path", str(self.repository)],
            ["policy", "set", "--global", "--compression", "zstd"],
        ]

    def push(self, number: int, tag: str) -> Finished:
        done = self.run(["snapshot", "create", "--json", str(self.releases[number - 1])])
        self._roots[tag] = json.loads(done.output)["rootEntry"]["obj"]
        return done

    def pull(self, tag: str, target: Path) -> Finished:
        return self.run(["restore", self._roots[tag], str(target)])

    def verify(self) -> Finished:
        return self.run(["snapshot", "verify", "--verify-files-percent=100"])


PEERS: tuple[type[Competitor], ...] = (Restic, Borg, BorgZstd, Casync, Ostree, OstreeArchive, Desync, Kopia)
