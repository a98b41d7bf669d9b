"""The commands for a store's health, as an operator types them at night."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from casstore.admin import fsck_directory
from casstore.config import ServerSettings
from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind
from casstore_client.cli import main
from tests.support.clients import client_of
from tests.support.filetrees import make_tree, read_tree
from tests.support.server import Running, make_store, run_in_thread
from tests.support.treebuild import open_local

_SETTINGS = ServerSettings(listen="127.0.0.1:0", metrics_listen="off")


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command in this process, as the operator of the store in ``tmp_path``."""
    for name in [name for name in os.environ if name.startswith("CASSTORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*words: object, code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", ["casstore", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsysbinary.readouterr()
        said = Said(int(ended.value.code or 0), out.decode("utf-8", "replace"), err.decode())
        assert said.code == code, said
        return said

    return call


@pytest.fixture
def served(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created, settings=_SETTINGS) as running:
        (tmp_path / "token").write_text(running.token)
        monkeypatch.setenv("CASSTORE_URL", running.url)
        monkeypatch.setenv("CASSTORE_TOKEN_FILE", str(tmp_path / "token"))
        yield running


def flip(directory: Path, running: Running, kind: ObjectKind, id: bytes) -> None:
    assert running.server is not None
    location = running.server.context.store.packs.index.locate(kind, [id])[0]
    assert location is not None
    name = str(location.pack)
    path = directory / "packs" / name[:2] / f"{name}.pack"
    data = bytearray(path.read_bytes())
    data[location.offset + FRAME_HEADER_BYTES + (location.stored_length - FRAME_HEADER_BYTES) // 2] ^= 1
    path.write_bytes(data)


def ids_of(running: Running, kind: ObjectKind) -> list[bytes]:
    assert running.server is not None
    return [id for id, _ in running.server.context.store.packs.index.objects(kind, limit=1000)]


def make_top(directory: Path) -> Path:
    files = {b"d%d/f%d" % (n % 7, n): os.urandom(900) for n in range(300)}
    files[b"large"] = os.urandom(1_500_000)
    return make_tree(directory, files)


def test_the_whole_night(run: Run, served: Running, tmp_path: Path) -> None:
    """A bit flips: pull says 6 and which object, the scrub finds it, affected says who needs it, a push heals it."""
    top = make_top(tmp_path / "top")
    with client_of(served, tmp_path / "s") as client:
        digest = client.push(top, name="api").digest
        _, snapshot = client.snapshot_create([("app", "tree", str(digest))])
        client.flip("prod/api", str(snapshot), expect=None, reason="go")
    chunk = ids_of(served, ObjectKind.CHUNK)[0]
    flip(tmp_path / "store", served, ObjectKind.CHUNK, chunk)
    met = run("pull", digest, tmp_path / "copy", code=6)
    assert chunk.hex() in met.err
    found = run("scrub", "--rate", "0", "--json", code=6).json
    assert found["quarantined"] == 1
    assert "1 objects are in quarantine" in run("scrub", "--status", code=6).out
    (lost,) = run("quarantine", "list", "--json").json["objects"]
    assert lost["id"] == f"blake3:{chunk.hex()}"
    assert lost["id"] in run("quarantine", "list").out
    needs = run("affected", "--quarantined", "--json").json
    assert [pointer["pointer"] for pointer in needs["pointers"]] == ["prod/api"]
    assert needs["pointers"][0]["now"] == str(snapshot)
    assert needs["trees"] == [str(digest)]
    assert [artifact["name"] for artifact in needs["artifacts"]] == ["api"]
    assert needs["snapshots"][0]["components"] == ["app"]
    assert needs["files"]
    assert "prod/api" in run("affected", f"chunk blake3:{chunk.hex()}").out
    run("quarantine", "release", lost["id"], code=6)
    assert "still reads wrong" in run("quarantine", "release", f"chunk {lost['id']}", code=6).err
    refused = run("repair", "--from", served.url, code=5).err
    assert "--from-token-file" in refused
    run("push", top, "--name", "api")
    assert run("quarantine", "list").out == run("affected", "--quarantined").out == "Nothing is in quarantine.\n"
    assert run("quarantine", "list", "--json").json["objects"] == []
    run("pull", digest, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(top)
    assert "Nothing is damaged" in run("scrub", "--full-pass", "--rate", "0").out
    run("scrub", "--rate", "fast", code=2)
    assert "did you mean 50M" in run("scrub", "--rate", "50", code=2).err
    run("scrub", "--store", tmp_path, "--background", code=2)
    run("affected", code=2)


KINDS = [ObjectKind.CHUNK, ObjectKind.PAGE, ObjectKind.LAYOUT, ObjectKind.ROOT, ObjectKind.DOCUMENT]


@pytest.mark.parametrize("source", ["store", "pack", "server"])
def test_repair_from_a_store_a_pack_or_a_server(run: Run, served: Running, tmp_path: Path, source: str) -> None:
    """Whatever kind of object it is, and whoever has it."""
    top = make_top(tmp_path / "top")
    other = make_store(tmp_path / "other")
    with run_in_thread(tmp_path / "other", other, settings=_SETTINGS) as holder:
        for running, state in ((served, "s"), (holder, "o")):
            with client_of(running, tmp_path / state) as client:
                digest = client.push(top, name="api").digest
                client.snapshot_create([("app", "tree", str(digest))])
        lost = [(kind, id) for kind in KINDS for id in ids_of(served, kind)[:2]]
        for kind, id in lost:
            flip(tmp_path / "store", served, kind, id)
        run("scrub", "--rate", "0", code=6)
        (tmp_path / "other-token").write_text(holder.token)
        sources: list[object] = ["--from", tmp_path / "other"]
        if source == "server":
            sources = ["--from", holder.url, "--from-token-file", tmp_path / "other-token"]
        if source == "pack":
            for path in (tmp_path / "other" / "packs").rglob("*.pack"):
                sources += ["--from", path]
            sources = sources[2:]
        plan = run("repair", "--dry-run", "--json", *sources).json
        assert len(plan["healed"]) == len(lost)
        assert len(run("quarantine", "list", "--json").json["objects"]) == len(lost)
        healed = run("repair", "--json", *sources).json
        assert healed["left"] == []
        assert {(one["kind"], one["id"]) for one in healed["healed"]} == {
            (kind.name.lower(), f"blake3:{id.hex()}") for kind, id in lost
        }
    assert run("repair", *sources[:0]).out == "Nothing is missing.\n"
    run("pull", digest, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(top)
    with client_of(served, tmp_path / "s") as client:
        report = client.fsck(full=True)
    assert report.ok, report.findings


def test_repair_from_the_files_that_were_pushed(run: Run, served: Running, tmp_path: Path) -> None:
    """Chunks come from files, bundles from many of them; a file that has changed gives nothing wrong."""
    top = make_top(tmp_path / "top")
    (tmp_path / "blob").write_bytes(os.urandom(300_000))
    with client_of(served, tmp_path / "s") as client:
        digest = client.push(top, name="api").digest
        blob = client.push(tmp_path / "blob").digest
    chunks = ids_of(served, ObjectKind.CHUNK)
    for chunk in chunks:
        flip(tmp_path / "store", served, ObjectKind.CHUNK, chunk)
    run("scrub", "--rate", "0", code=6)
    before = (top / "d3" / "f3").read_bytes()
    (top / "d3" / "f3").write_bytes(os.urandom(900))
    (tmp_path / "empty").mkdir()
    assert len(run("repair", "--from", tmp_path / "empty", "--json", code=6).json["left"]) == len(chunks)
    first = run("repair", "--from", top, "--from", tmp_path / "blob", "--json", code=6).json
    assert len(first["left"]) == 1
    assert "still missing: chunk" in run("repair", code=6).out
    (top / "d3" / "f3").write_bytes(before)
    assert run("repair", "--from", top, "--json").json["left"] == []
    run("pull", digest, tmp_path / "copy")
    assert read_tree(tmp_path / "copy") == read_tree(top)
    run("pull", blob, tmp_path / "blob-copy")
    assert (tmp_path / "blob-copy").read_bytes() == (tmp_path / "blob").read_bytes()
    run("repair", "--from", tmp_path / "nowhere", code=2)


def test_a_store_without_a_server_is_scrubbed_and_healed_too(run: Run, tmp_path: Path) -> None:
    created = make_store(tmp_path / "store")
    top = make_top(tmp_path / "top")
    with run_in_thread(tmp_path / "store", created, settings=_SETTINGS) as running:
        with client_of(running, tmp_path / "s") as client:
            client.push(top, name="api")
        shutil.copytree(tmp_path / "store" / "packs", tmp_path / "backup")
        lost = [(kind, ids_of(running, kind)[0]) for kind in KINDS[:4]]
        for kind, id in lost:
            flip(tmp_path / "store", running, kind, id)
        store = ("--store", tmp_path / "store")
        run("scrub", *store, code=75)
    assert run("scrub", *store, "--json", code=6).json["damaged"] == 4
    assert len(run("affected", "--quarantined", *store, "--json").json["artifacts"]) == 1
    assert run("scrub", "--status", *store, "--json", code=6).json["pass_number"] == 1
    assert len(run("repair", "--from", tmp_path / "backup", *store, "--json").json["healed"]) == 4
    assert run("scrub", *store, "--full-pass", "--json", "--rate", "200M").json["damaged"] == 0
    assert run("fsck", *store, "--full", "--json").json["ok"]


def test_an_index_is_rebuilt_from_the_command_line(run: Run, tmp_path: Path) -> None:
    created = make_store(tmp_path / "store")
    with run_in_thread(tmp_path / "store", created, settings=_SETTINGS) as running:
        with client_of(running, tmp_path / "s") as client:
            digest = client.push(make_top(tmp_path / "top"), name="api").digest
        run("fsck", "--rebuild-index", "--store", tmp_path / "store", code=75)
    (tmp_path / "store" / "index" / "data.mdb").write_bytes(b"garbage" * 10_000)
    garbage = run("fsck", "--store", tmp_path / "store", code=6).out
    assert "--rebuild-index" in garbage
    assert "expected ," not in garbage
    shutil.rmtree(tmp_path / "store" / "index")
    run("fsck", "--rebuild-index", code=2)
    broken = run("fsck", "--store", tmp_path / "store", code=6)
    assert "--rebuild-index" in broken.out
    said = run("fsck", "--rebuild-index", "--store", tmp_path / "store")
    assert "1 trees" in said.out
    assert fsck_directory(tmp_path / "store", full=True).ok
    content, close = open_local(tmp_path / "store")
    assert content.trees.root(digest)  # type: ignore[arg-type]
    close()
