"""The commands that keep a store, as a person and as a script use them: backup, restore, upgrade, export, import, artifacts rm."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from casstore_client.cli import main
from tests.support.server import Running, make_store, run_in_thread


class Said(NamedTuple):
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    def call(*words: object, code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", ["casstore", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsysbinary.readouterr()
        said = Said(out.decode(), err.decode())
        assert int(ended.value.code or 0) == code, said
        return said

    return call


def use(server: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on commands talk to that server, as its operator."""
    folder = home / "casstore"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("token", server.token), ("op.key", server.created.operator_key.encode())):
        (folder / name).write_text(text + "\n")
    (folder / "trust.json").write_bytes(server.created.trust_file)
    (folder / "config.toml").write_text(
        f'url = "{server.url}"\ntoken_file = "token"\nkey_file = "op.key"\ntrust_file = "trust.json"\n'
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))


@pytest.fixture
def near(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    for name in [name for name in os.environ if name.startswith("CASSTORE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "index.html").write_text("hello 1\n")
    use(server, tmp_path / "near", monkeypatch)
    return server


def test_backup_and_restore(run: Run, near: Running, tmp_path: Path) -> None:
    run("push", tmp_path / "app", "--name", "web")
    backup = tmp_path / "backup"
    made = run("backup", backup, "--json").json
    assert (made["directory"], made["origin"], made["keys"]) == (str(backup), near.created.origin, True)
    assert "keep it like a key" in run("backup", backup, "--prune", "--copy").out
    assert "without a copy of them" in run("backup", tmp_path / "bare", "--without-keys").out
    assert "The backup is whole." in run("backup", "--verify", backup).out
    assert run("backup", "--verify", "--quick", backup, "--json").json["ok"]
    # The server has it open: the command must not.
    assert "is open in process" in run("backup", "--store", near.directory, tmp_path / "x", code=75).err
    said = run("restore", backup, tmp_path / "new", code=2)
    assert "--heads-lost" in said.err
    heads = near.directory / "signed-heads"
    assert "The store is whole." in run("restore", backup, tmp_path / "new", "--signed-heads", heads).out
    assert "already" in run("upgrade", "--store", tmp_path / "new").out
    assert run("backup", "--store", tmp_path / "new", tmp_path / "second", "--json").json["packs"] == made["packs"]
    run("restore", backup, tmp_path / "new", "--heads-lost", code=4)
    assert "keys" in run("restore", tmp_path / "bare", tmp_path / "third", "--heads-lost", code=2).err
    run("restore", tmp_path / "bare", tmp_path / "third", "--heads-lost", "--keys", near.directory / "keys", "--link")
    # Something is signed since: the same backup is now an older one.
    run("snapshot", "create", "web=web")
    (tmp_path / "note").write_bytes(near.http.get("/log/checkpoint").body)
    for words in (("--signed-heads", heads), ("--checkpoint", tmp_path / "note")):
        target = tmp_path / f"older{words[0]}"
        said = run("restore", backup, target, *words)
        assert "The store is whole." in said.out
        assert "READ-ONLY" in said.out
    damaged = max((backup / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    assert "DAMAGED" in run("backup", "--verify", backup, code=6).out
    assert not run("restore", backup, tmp_path / "bad", "--heads-lost", "--full", "--json", code=6).json["report"]["ok"]


def test_an_older_store_is_upgraded(run: Run, tmp_path: Path) -> None:
    make_store(tmp_path / "old")
    (tmp_path / "old" / "format").write_text('{"casstore": "0.1.0", "format": 1}\n')
    said = run("fsck", "--store", tmp_path / "old", code=1)
    assert f"casstore upgrade --store {tmp_path / 'old'}" in said.err
    assert "--dry-run" in run("upgrade", "--store", tmp_path / "old", "--dry-run").out
    assert run("upgrade", "--store", tmp_path / "old", "--json").json["steps"][0]["format"] == 2
    run("fsck", "--store", tmp_path / "old")


def test_export_and_import(run: Run, near: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("push", tmp_path / "app", "--name", "web", "--label", "git=a1")
    snapshot = run("snapshot", "create", "web=web", "--json").json["digest"]
    run("flip", "prod/web", snapshot, "--expect", "none")
    done = run("export", tmp_path / "one.zip", "prod/web", "--json").json
    assert [s["digest"] for s in done["snapshots"]] == [snapshot]
    assert done["proven"] == 1
    (tmp_path / "app" / "index.html").write_text("hello 2\n")
    run("push", tmp_path / "app", "--name", "web")
    said = run("export", tmp_path / "two", "web", "--since-export", tmp_path / "one.zip", "--directory")
    assert "web" in said.out
    run("export", tmp_path / "one.zip", "web", code=4)
    run("export", tmp_path / "three", "nobody", code=3)
    far_created = make_store(tmp_path / "far")
    with run_in_thread(tmp_path / "far", far_created) as far:
        use(far, tmp_path / "far-home", monkeypatch)
        trust = tmp_path / "near" / "casstore" / "trust.json"
        said = run("import", tmp_path / "one.zip", "--trust", trust)
        assert f"was published in the log {near.created.origin} as entry" in said.out
        assert "--publish" in said.err
        assert run("import", tmp_path / "one.zip", "--publish", "--json").json["published"] == [snapshot]
        run("import", tmp_path / "two")
        assert run("snapshot", "list", "--json").json["snapshots"][0]["digest"] == snapshot
        (tmp_path / "cut.zip").write_bytes((tmp_path / "one.zip").read_bytes()[:-30])
        assert "cut short" in run("import", tmp_path / "cut.zip", code=6).err
        assert "no known key" in run("import", tmp_path / "one.zip", "--trust", far_trust(far, tmp_path), code=6).err


def far_trust(server: Running, folder: Path) -> Path:
    (folder / "far-trust.json").write_bytes(server.created.trust_file)
    return folder / "far-trust.json"


def test_artifacts_are_removed(run: Run, near: Running, tmp_path: Path) -> None:
    run("push", tmp_path / "app", "--name", "web")
    run("push", tmp_path / "app", "--name", "web")
    assert "--all" in run("artifacts", "rm", "web", code=4).err
    assert "Nothing was removed" in run("artifacts", "rm", "web", "--all", "--dry-run").err
    assert run("artifacts", "rm", "2", "--json").json["removed"][0]["number"] == 2
    assert [a["number"] for a in run("artifacts", "--name", "web", "--json").json["artifacts"]] == [1]
    run("artifacts", "rm", "web")
    run("artifacts", "rm", "web", code=3)
    assert run("artifacts", "--json").json["artifacts"] == []
    assert near.http.get("/v1/artifacts").json["artifacts"] == []
