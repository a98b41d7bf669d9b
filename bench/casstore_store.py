"""casstore as a competitor: a real server on loopback, durable, and the command line against it.

``casstore`` runs as it is shipped.  ``casstore-no-fsync`` is the same with a server whose every sync does nothing
(``libeatmydata``): what it is quicker is what durability costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.competitors import Competitor, Measured
from bench.eatmydata import PRELOAD
from bench.processes import Watched, run, stored_bytes
from bench.server import BenchServer
from bench.steps import PULL_1, PULL_1_NO_SYNC, PULL_2, PULL_2_LINK, PUSH_1, PUSH_2, PUSH_SAME, PUSHES, VERIFY


class Casstore(Competitor):
    """One server on an empty store."""

    name = "casstore"
    about = "server on loopback with its defaults, command line client"
    durable = True
    is_peer = False
    preload: str | None = None

    def __init__(self, home: Path, releases: tuple[Path, Path]) -> None:
        super().__init__(home, releases)
        self._server = BenchServer(home / "server", preload=self.preload)
        self._digests: dict[int, str] = {}

    @classmethod
    def missing(cls) -> str | None:
        return None

    @classmethod
    def version(cls) -> str:
        from casstore import __version__

        return __version__

    def open(self) -> None:
        self._server.start()

    def steps(self) -> frozenset[str]:
        found = {PUSH_1, PUSH_SAME, PUSH_2, VERIFY, PULL_1, PULL_1_NO_SYNC}
        options = _pull_options()
        if "--seed" in options:
            found.add(PULL_2)
            if "--link" in options:
                found.add(PULL_2_LINK)
        return frozenset(found)

    def take(self, step: str) -> Measured:
        report = self.home / "report.json"
        watched = Watched(self._server.pid)
        watched.begin_peak()
        cpu_before = watched.cpu_s()
        command: list[str | Path] = [sys.executable, "-m", "bench.client_step", report, *self._words(step), "--json"]
        done = run(command, environ=self._server.environ())
        cpu_after = watched.cpu_s()
        exchanged = json.loads(report.read_text())
        if step in PUSHES:
            self._digests[2 if step == PUSH_2 else 1] = json.loads(done.output)["digest"]
        return Measured(
            done.seconds,
            done.cpu_s,
            done.peak_bytes,
            cpu_after - cpu_before,
            watched.peak_bytes(),
            exchanged["sent_bytes"] + exchanged["received_bytes"],
            stored_bytes(self._server.store),
        )

    def close(self) -> None:
        self._server.stop()
        super().close()

    def _words(self, step: str) -> list[str]:
        if step in PUSHES:
            return ["push", str(self.releases[1 if step == PUSH_2 else 0]), "--name", "bench"]
        if step == VERIFY:
            return ["scrub", "--full-pass", "--rate", "0"]
        release = 2 if step in (PULL_2, PULL_2_LINK) else 1
        words = ["pull", self._digests[release], str(self.pulled(step))]
        if step == PULL_1_NO_SYNC:
            words.append("--no-sync")
        if release == 2:
            words += ["--seed", str(self.pulled(PULL_1))]
        if step == PULL_2_LINK:
            words.append("--link")
        return words


class CasstoreWithoutFsync(Casstore):
    """The same without durability, for pushes alone."""

    name = "casstore-no-fsync"
    about = "the same, with a server whose syncs do nothing (libeatmydata)"
    durable = False
    preload = PRELOAD

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.preload else "no libeatmydata.so"

    def steps(self) -> frozenset[str]:
        return frozenset(PUSHES)


def _pull_options() -> str:
    command = [sys.executable, "-m", "casstore_client.cli", "pull", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
