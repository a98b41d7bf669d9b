"""Backups of a server that serves: under load, killed in the middle, restored, and what clients say to an older one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casstore.admin import create_store, fsck_directory
from casstore.backup import backup_store, verify_backup
from casstore.config import ServerSettings
from casstore.errors import (
    CasstoreError,
    InvalidInput,
    NotInitialised,
    NotPermitted,
    ReadOnly,
    StoreNotFound,
)
from casstore.restoring import Known, restore_backup
from casstore.store import Store
from casstore_client.blocking import Client
from casstore_client.trust_store import TrustStore
from tests.support.clients import client_of, release
from tests.support.server import ROOT, Running, ServerProcess, make_store, run_in_thread, token_of
from tests.support.treebuild import read_directory

LOST = Known(lost=True)
PTR = "prod/api"


class Load:
    """Builds that push and a deployer that flips, until they are told to stop; remembers what was acknowledged, and when.

    Args:
        connect: gives a client; asked for one a thread.
        scratch: where the trees are made.
    """

    def __init__(self, connect: Callable[[str], Client], scratch: Path) -> None:
        self.pushed: list[tuple[float, str, Path]] = []
        self.flipped: list[tuple[float, int]] = []
        self.errors: list[CasstoreError] = []
        self._connect = connect
        self._scratch = scratch
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._build, args=(number,)) for number in range(2)]
        self._threads.append(threading.Thread(target=self._deploy))

    def _build(self, number: int) -> None:
        with self._connect(f"build-{number}") as client:
            for turn in range(10_000):
                if self._stop.is_set():
                    return
                tree = self._scratch / f"{number}-{turn}"
                (tree / "sub").mkdir(parents=True)
                (tree / "sub" / "random").write_bytes(os.urandom(120_000))
                (tree / "same").write_bytes(b"the same everywhere" * 1000)
                try:
                    digest = str(client.push(tree, name=f"build-{number}").digest)
                    self.pushed.append((time.monotonic(), digest, tree))
                except CasstoreError as error:
                    self.errors.append(error)
                    return

    def _deploy(self) -> None:
        with self._connect("deploy") as client:
            try:
                snapshots = [release(client, self._scratch, f"r{n}", {"a": b"%d" % n}) for n in range(2)]
                flip = None
                for turn in range(10_000):
                    if self._stop.is_set():
                        return
                    answer = client.flip(PTR, snapshots[turn % 2], expect=flip if flip is not None else None)
                    flip = answer.entry
                    assert flip is not None
                    self.flipped.append((time.monotonic(), flip))
            except CasstoreError as error:
                self.errors.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)


def pull_all(client: Client, load: Load, before: float, scratch: Path) -> int:
    """Everything that was acknowledged before that time comes back bit for bit."""
    scratch.mkdir()
    wanted = [(digest, tree) for at, digest, tree in load.pushed if at < before]
    for number, (digest, tree) in enumerate(wanted):
        client.pull(digest, scratch / str(number))
        assert read_directory(scratch / str(number)) == read_directory(tree)
    return len(wanted)


def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it(server: Running, tmp_path: Path) -> None:
    """The promise: what a client was told is stored before the backup began is in the backup, and all of it fits together."""
    began: list[float] = []

    def connect(name: str) -> Client:
        return client_of(server, tmp_path / f"state-{name}")

    with client_of(server, tmp_path / "state") as operator, Load(connect, tmp_path / "load") as load:
        while len(load.pushed) < 4 or len(load.flipped) < 4:
            assert not load.errors
            time.sleep(0.01)
        for _ in range(3):
            began.append(time.monotonic())
            report = operator.backup(str(tmp_path / "backup"), link=False)
            assert report.absent_packs == 0
            assert verify_backup(tmp_path / "backup").ok
    assert not load.errors
    done = restore_backup(tmp_path / "backup", tmp_path / "restored", LOST, full=True)
    assert done.report is not None
    assert done.report.ok
    assert done.read_only is None
    with (
        run_in_thread(tmp_path / "restored", server.created) as restored,
        client_of(restored, tmp_path / "fresh") as client,
    ):
        assert pull_all(client, load, began[-1], tmp_path / "back") >= 4
        assert client.pointer(PTR).flip >= max(flip for at, flip in load.flipped if at < began[-1])
        assert client.audit(full=True).ok


def test_a_server_that_is_killed_while_it_backs_up(tmp_path: Path) -> None:
    """``kill -9`` of the server under load in the middle of backups: the one before is whole, and the next one succeeds."""
    store, backup = tmp_path / "store", tmp_path / "backup"
    created = make_store(store)
    chance = random.Random(11)
    token = token_of(created)
    for turn in range(3):
        process = ServerProcess(store, created)

        def connect(name: str, url: str = process.url, turn: int = turn) -> Client:
            trust = TrustStore(created.trust, tmp_path / f"state-{turn}-{name}")
            return Client(url, token=token, trust=trust, key=created.operator_key, timeout_s=5)

        def back_up(url: str = process.url) -> None:
            try:
                with Client(url, token=token) as client:
                    while True:
                        client.backup(str(backup), link=False)
            except CasstoreError:
                pass

        asking = threading.Thread(target=back_up)
        with Load(connect, tmp_path / f"load-{turn}"):
            asking.start()
            asking.join(chance.uniform(0.8, 1.6))
            process.kill()
        asking.join(60)
        if (backup / "backup.json").exists():
            assert verify_backup(backup).ok
        assert fsck_directory(store, full=True).ok
    with Store.open(store) as opened:
        backup_store(opened, backup)
    assert verify_backup(backup).ok
    restore_backup(backup, tmp_path / "restored", Known(heads=str(store / "signed-heads")))
    assert fsck_directory(tmp_path / "restored", full=True).ok


def test_a_restore_that_is_killed(server: Running, tmp_path: Path) -> None:
    """Whenever it dies, what is there is no store or a whole one; and it is told that something is there."""
    with client_of(server, tmp_path / "state") as client:
        for number in range(20):
            release(client, tmp_path, f"v{number}", {"a": os.urandom(100_000)})
        client.backup(str(tmp_path / "backup"))
    chance = random.Random(5)
    command = [sys.executable, "-m", "casstore_client.cli", "restore", str(tmp_path / "backup")]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "server", ROOT / "client")))
    outcomes: set[bool] = set()
    for turn in range(8):
        target = tmp_path / f"restored-{turn}"
        process = subprocess.Popen(
            [*command, str(target), "--heads-lost"],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # The first ones are killed while they copy: as soon as there is anything to be seen.
        deadline = time.monotonic() + 30
        while turn < 6 and not target.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        if turn < 6:
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        process.wait(60)
        whole = (target / "format").exists()
        outcomes.add(whole)
        if whole:
            assert fsck_directory(target, full=True).ok
        else:
            with pytest.raises((NotInitialised, StoreNotFound)):
                Store.open(target)
            shutil.rmtree(target)
            restore_backup(tmp_path / "backup", target, LOST)
            assert fsck_directory(target, full=True).ok
    assert outcomes == {False, True}


def test_a_client_finds_out_that_the_store_is_older_than_what_it_saw(tmp_path: Path) -> None:
    """Restored as if nothing had been signed since: the first client that knows better stops it, and says why."""
    store, backup, restored = tmp_path / "store", tmp_path / "backup", tmp_path / "restored"
    created = create_store(store)
    with run_in_thread(store, created) as server, client_of(server, tmp_path / "state") as client:
        snapshot = release(client, tmp_path, "v1", {"a": b"1"})
        client.backup(str(backup))
        client.flip(PTR, snapshot, expect=None)
        assert client.audit().ok
    restore_backup(backup, restored, LOST)
    with run_in_thread(restored, created) as server:
        with client_of(server, tmp_path / "state") as client:
            report = client.audit()
            assert not report.ok
            assert "regression" in {finding.code for finding in report.findings}
        # Somebody who knows nothing of it cannot write any more either: no second history begins.
        with client_of(server, tmp_path / "stranger") as client, pytest.raises(ReadOnly):
            client.token_create("ci", ["operate"])
    with Store.open(restored) as opened:
        assert "older copy" in (opened.read_only or "")
    # With the heads of the lost store it is known from the beginning, and a newer backup is the way out.
    done = restore_backup(backup, tmp_path / "again", Known(heads=str(store / "signed-heads")))
    assert done.read_only is not None


# --- who may, and where ------------------------------------------------------------------------------------------------


@contextmanager
def with_token(server: Running, *permissions: str) -> Iterator[Client]:
    with Client(server.url, token=server.token) as operator:
        made = operator.token_create("somebody", list(permissions))
    with Client(server.url, token=made.secret) as client:
        yield client


def test_only_operators_may_and_only_to_where_the_settings_allow(server: Running, tmp_path: Path) -> None:
    """It writes to the server's disk, so who and where is not for everybody to say."""
    with with_token(server, "content:read", "content:push", "admin") as client, pytest.raises(NotPermitted):
        client.backup(str(tmp_path / "backup"))
    with with_token(server, "operate") as client:
        client.backup(str(tmp_path / "backup"))
        for wrong in ("backup", "", "../x", f"{tmp_path}/\0"):
            with pytest.raises(InvalidInput):
                client.backup(wrong)
    place = tmp_path / "place"
    place.mkdir()
    (place / "way-out").symlink_to(tmp_path)
    create_store(tmp_path / "second")
    for allowed, works, fails in (
        (str(place), [place / "b"], [tmp_path / "b", place / "way-out" / "b", place / ".." / "b"]),
        ("off", [], [place / "c"]),
    ):
        settings = ServerSettings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", backups=allowed)
        directory = tmp_path / f"store-{allowed == 'off'}"
        created = create_store(directory)
        with (
            run_in_thread(directory, created, settings=settings) as other,
            Client(other.url, token=token_of(created)) as client,
        ):
            for path in works:
                client.backup(str(path))
            for path in fails:
                with pytest.raises(NotPermitted):
                    client.backup(str(path))
    assert not (tmp_path / "b").exists()


def test_artifacts_are_forgotten_by_operators_alone(server: Running, tmp_path: Path) -> None:
    """A build that may push could else hide what others pushed."""
    (tmp_path / "file").write_bytes(b"1")
    with client_of(server, tmp_path / "state") as client:
        for _ in range(3):
            client.push(tmp_path / "file", name="team/app")
        with with_token(server, "content:read", "content:push", "admin") as other, pytest.raises(NotPermitted):
            other.remove_artifacts("1")
        assert [a.number for a in client.remove_artifacts("team/app", all=True, dry_run=True).removed] == [1, 2, 3]
        assert len(client.artifacts().artifacts) == 3
        assert client.remove_artifacts("2").removed[0].name == "team/app"
        assert [a.number for a in client.artifacts(name="team/app").artifacts] == [3, 1]
        assert [a.number for a in client.remove_artifacts("team/app", all=True).removed] == [1, 3]
        assert client.artifacts().artifacts == []
        # Content is not touched by that, and a number is never given twice.
        assert client.push(tmp_path / "file", name="team/app").artifact.number == 4
        assert client.fsck(full=True).ok
    reply = server.http.request("DELETE", "/v1/artifacts/2")
    assert (reply.status, reply.code) == (404, "artifact-not-found")
    assert server.http.request("DELETE", "/v1/artifacts/02").code == "invalid-request"
    assert server.http.request("DELETE", "/v1/artifacts/4?dry_run=1").json["dry_run"] is True
    assert json.loads(server.http.get("/v1/artifacts").body)["artifacts"][0]["number"] == 4
