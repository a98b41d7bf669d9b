"""What a server must refuse to open, or to write to: as the operator meets it, in a process, with an exit code and a sentence.

The promise under test: a server that is not sure of its store says so and stops, or only reads.  One that went on would write
into a store that another process has open, misread a newer format, or sign a second history.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from casstore.admin import Created, fsck_directory
from casstore.clock import ManualClock
from casstore.errors import CasstoreError, DamagedObject, LogUnavailable, OutcomeUnknown, ReadOnly
from casstore.storage.local.files import Files
from casstore.storage.local.heads import RECORD_BYTES, Head, decode_record, encode_record
from casstore.store import Store
from casstore.wire import Submitted
from tests.crash.faulty import Effect, FaultyFiles, Picture, picture_of, restore
from tests.crash.lifetime import API, STEPS, Life, Script, check_store
from tests.support.acting import Signer
from tests.support.server import ROOT, ServerProcess, make_store, run_in_thread


def casstore(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "server"), str(ROOT / "client")])
    command = [sys.executable, "-m", "casstore_client.cli", *arguments]
    env = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def serve(directory: Path) -> subprocess.CompletedProcess[str]:
    """Start a server that must not start; comes back when it has ended."""
    return casstore("serve", "--store", str(directory), "--listen", "127.0.0.1:0", "--metrics-listen", "off")


# --- a server that does not start ----------------------------------------------------------------------------------------


def test_second_server_on_the_same_store_is_refused(tmp_path: Path) -> None:
    """Two writers of one ledger would be two histories; the one that runs is named, and notices nothing."""
    created = make_store(tmp_path / "store")
    server = ServerProcess(tmp_path / "store", created)
    try:
        second = serve(tmp_path / "store")
        assert second.returncode == 75
        assert f"is open in process {server.process.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert server.http.get("/readyz").status == 200
        server.kill()
        # The lock went with the process: nothing has to be cleaned up by hand.
        server = ServerProcess(tmp_path / "store", created)
        assert server.http.get("/readyz").status == 200
        assert server.stop() == 0
    finally:
        server.kill()


def test_newer_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    (tmp_path / "store" / "format").write_text('{"casstore": "9.9.0", "format": 99}\n')
    before = picture_of(str(tmp_path / "store"))
    ended = serve(tmp_path / "store")
    assert ended.returncode == 1
    assert "has format 99, made by casstore 9.9.0" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert picture_of(str(tmp_path / "store")) == before, "what is not understood is not touched"


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """`serve` never makes a store: a typing error would serve an empty one, and every client would see a regression."""
    missing = serve(tmp_path / "nothing")
    assert (missing.returncode, "there is no store at" in missing.stderr) == (3, True)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "empty").mkdir()
    empty = serve(tmp_path / "empty")
    assert (empty.returncode, "is not a store" in empty.stderr) == (1, True)
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"format": 1', b'{"format": "1"}', b"[1]", b"\0" * 40])
def test_damaged_format_file_is_refused(tmp_path: Path, content: bytes) -> None:
    make_store(tmp_path / "store")
    (tmp_path / "store" / "format").write_bytes(content)
    with pytest.raises(DamagedObject, match="does not say which format"):
        Store.open(tmp_path / "store")
    if content.startswith(b"\0"):
        ended = serve(tmp_path / "store")
        assert (ended.returncode, "does not say which format" in ended.stderr) == (6, True)


def test_removed_part_is_refused(tmp_path: Path) -> None:
    """Without its ledger, index or record of heads a store is not one; nothing is made up in their place."""
    made = tmp_path / "store"
    make_store(made)
    for part in ("ledger/data.mdb", "index/data.mdb", "signed-heads", "keys/log"):
        path = made / part
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(CasstoreError, match=r"there is no|is missing|cannot be read"):
            Store.open(made)
        assert not path.exists()
        path.write_bytes(data)
    Store.open(made).close()


# --- a server that only reads --------------------------------------------------------------------------------------------


class World(NamedTuple):
    """A store that has lived, and an intent that was signed before anyone knew."""

    directory: Path
    created: Created
    snapshot: str
    late: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("world") / "store"
    created = make_store(directory)
    with run_in_thread(directory, created) as server:
        signer = Signer(server.http, created.operator_key, created.origin)
        snapshot = signer.release_of({b"a": b"1"})
        flip = signer.flip("prod/api", snapshot, None).json["entry"]
        late = signer.flip_intent("prod/api", None, flip, kind="retire")
    return World(directory, created, str(snapshot), late)


def other_root(heads: bytes) -> bytes:
    """The last record with another root and a right checksum: another history was signed."""
    last = decode_record(heads[-RECORD_BYTES:])
    assert last is not None
    return heads[:-RECORD_BYTES] + encode_record(last._replace(root=bytes(32)))


def larger_head(heads: bytes) -> bytes:
    """One more head, of a log that is longer than the ledger's: the ledger is an older copy."""
    return heads + encode_record(Head(1000, bytes(32)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(other_root, "another history", id="other-root"),
        pytest.param(larger_head, "older copy", id="older-ledger"),
        pytest.param(lambda _: b"", "no signed head is on record", id="emptied"),
        pytest.param(lambda heads: heads[:40], "no signed head is on record", id="cut-in-the-first"),
    ],
)
def test_signed_heads_that_contradict_the_tree_make_it_read_only(
    world: World, change: Callable[[bytes], bytes], why: str
) -> None:
    """A second history under one key is a fork: the server shows what it has, signs nothing, and says why."""
    heads = world.directory / "signed-heads"
    good = heads.read_bytes()
    heads.write_bytes(change(good))
    changed = heads.read_bytes()
    server = ServerProcess(world.directory, world.created)
    try:
        assert server.http.get("/v1/pointers/prod/api").json["snapshot"] == world.snapshot
        assert [artifact["kind"] for artifact in server.http.get("/v1/artifacts").json["artifacts"]] == ["tree"]
        checkpoint = server.http.get("/log/checkpoint")
        assert (checkpoint.status, checkpoint.code) == (503, "log-unavailable")
        refused = server.http.post_json("/v1/flips", {"intent": world.late})
        assert (refused.status, refused.code) == (503, "read-only")
        assert why in refused.json["detail"]
        token = server.http.post_json("/v1/tokens", {"name": "ci", "permissions": ["operate"], "expires_in_s": 60})
        assert token.code == "read-only"
        report = server.http.post("/v1/fsck", b"").json
        assert {finding["code"] for finding in report["findings"]} <= {"wrong-head", "missing-head"}
        assert not report["ok"]
        assert server.stop() == 0
    finally:
        server.kill()
    assert any(why in line and "read-only" in line for line in server.log_file.read_text("utf-8").splitlines())
    assert heads.read_bytes() in {changed, b""}, "the evidence is not signed over; a torn record is none"
    heads.write_bytes(good)
    with Store.open(world.directory) as store:
        assert store.read_only is None


def test_damaged_head_is_refused(tmp_path: Path) -> None:
    """A head that cannot be read may be the one that matters: it is not passed over."""
    make_store(tmp_path / "store")
    heads = tmp_path / "store" / "signed-heads"
    data = bytearray(heads.read_bytes())
    data[30] ^= 1
    heads.write_bytes(data)
    ended = serve(tmp_path / "store")
    assert (ended.returncode, "is damaged at byte 0" in ended.stderr) == (6, True), ended.stderr
    assert not fsck_directory(tmp_path / "store").ok
    assert heads.read_bytes() == data


def test_truncated_heads_are_signed_again_where_the_ledger_has_it_all(tmp_path: Path) -> None:
    """Cut behind a whole record: the ledger still reaches further, so nothing that was signed can be contradicted."""
    directory = str(tmp_path / "store")
    script = Script(directory)
    life = Life(script, directory, Files())
    assert life.errors == []
    heads = tmp_path / "store" / "signed-heads"
    whole = heads.read_bytes()
    assert len(whole) > 3 * RECORD_BYTES
    for length in (RECORD_BYTES, RECORD_BYTES + 50, len(whole) - RECORD_BYTES, len(whole) - 1):
        heads.write_bytes(whole[:length])
        with script.open(directory, Files(), seed=2) as store:
            assert store.read_only is None
            assert max(head.size for head in store._parts.heads.read_all()) == store.log.size
            assert store.fsck().ok
    check_store(directory, life)


# --- a server that was killed between commit and signature -----------------------------------------------------------------


class Rehearsed(NamedTuple):
    """A script whose intents are signed, and the store as it was before."""

    script: Script
    directory: str
    start: Picture


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    directory = str(tmp_path_factory.mktemp("rehearsed") / "store")
    script = Script(directory)
    start = picture_of(directory)
    assert Life(script, directory, Files()).errors == []
    return Rehearsed(script, directory, start)


@pytest.mark.parametrize("effect", [Effect.NOTHING, Effect.HALF, Effect.ALL], ids=lambda effect: effect.value)
@pytest.mark.parametrize("step", ["flip to one", "flip to two", "roll back"])
def test_commit_without_a_signature_heals_at_open(rehearsed: Rehearsed, step: str, effect: Effect) -> None:
    """The flip is in the ledger, nobody was told: the next server signs it, and who asks again gets the success."""
    script, directory, start = rehearsed
    restore(start, directory)
    number = STEPS.index(step)
    assert set(Life(script, directory, Files(), STEPS[:number]).answered) == set(STEPS[:number])
    files = FaultyFiles(directory)
    store = script.open(directory, files, seed=5)
    before = store.log.size
    files.fail_next("write", effect)  # a flip writes nothing to a file but its head
    with pytest.raises(OutcomeUnknown):
        script.ask(store, step)
    assert store.log.published().size == before, "what is not signed is not shown"
    with pytest.raises(OutcomeUnknown):
        script.ask(store, step)
    store.close()
    with script.open(directory, Files(), seed=6) as store:
        assert store.log.published().size == before + 1
        assert store.pointers.read.pointer(API).flip == before
        answer = script.ask(store, step)
        assert isinstance(answer, Submitted)
        assert (answer.replayed, answer.entry) == (True, before)
        assert store.fsck(full=True).ok


def test_older_ledger_is_never_signed_again(rehearsed: Rehearsed) -> None:
    """The ledger comes back from a backup, the heads do not: not one request leads to a signature or a write."""
    script, directory, start = rehearsed
    restore(start, directory)
    life = Life(script, directory, Files(), STEPS[:3])
    ledger = Path(directory) / "ledger" / "data.mdb"
    backup = ledger.read_bytes()
    Life(script, directory, Files(), STEPS[3:], before=life)
    ledger.write_bytes(backup)
    heads = (Path(directory) / "signed-heads").read_bytes()
    with Store.open(directory, clock=ManualClock()) as store:
        assert "older copy" in (store.read_only or "")
        for step in STEPS[1:]:  # asked again, "push one" is a success that is on record
            with pytest.raises(ReadOnly):
                script.ask(store, step)
        with pytest.raises(LogUnavailable):
            store.log.published()
    assert ledger.read_bytes() == backup
    assert (Path(directory) / "signed-heads").read_bytes() == heads
    report = fsck_directory(directory)
    assert {finding.code for finding in report.findings if finding.severity == "error"} == {"wrong-head"}
    assert report.checked["entries"] == 3
