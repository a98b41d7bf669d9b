"""The command line from `init` to `audit`, as a person and as a script use it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from casstore.admin import Created
from casstore.config import ServerSettings
from casstore.formats.proof import open_proof
from casstore.formats.trust import decode_trust
from casstore.ids import PrincipalName
from casstore.merkle import leaf_hash
from casstore.signing import SigningKey, Verifier
from casstore.wire import Token
from casstore_client.cli import main
from tests.support.rogue import Asked, meddle
from tests.support.server import make_store, run_in_thread

PTR = "prod/api"


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert found["schema"] == 1
        return dict(found)


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command in this process, with a configuration of its own; nobody is at a terminal."""
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
def served(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store made by `init` and served; gives the configuration's folder."""
    made = run("init", tmp_path / "store", "--json").json
    config = Path(made["config"]).parent
    key = SigningKey.parse((config / "keys" / "operator.key").read_text().strip())
    secret = (config / "token").read_text().strip()
    token = Token(id="", name="operator", permissions=[], created_at="", expires_at=None, secret=secret)
    trust = decode_trust((config / "trust.json").read_bytes())
    created = Created(made["origin"], trust, PrincipalName("operator"), key, token)
    with run_in_thread(tmp_path / "store", created, settings=_SETTINGS) as running:
        monkeypatch.setenv("CASSTORE_URL", running.url)
        yield config


_SETTINGS = ServerSettings(listen="127.0.0.1:0", metrics_listen="off")


@pytest.fixture
def releases(run: Run, served: Path, tmp_path: Path) -> tuple[str, str]:
    """Two snapshots, made by the command line."""
    digests = []
    for number in (1, 2):
        source = tmp_path / f"release-{number}"
        (source / "bin").mkdir(parents=True)
        (source / "bin" / "app").write_bytes(b"version %d" % number)
        (source / "etc").write_bytes(b"same")
        run("push", source, "--name", "api", "--label", f"release={number}")
        digests.append(run("snapshot", "create", "app=api", "-m", f"release {number}", "--json").json["digest"])
    return digests[0], digests[1]


def test_the_whole_story(run: Run, releases: tuple[str, str], tmp_path: Path) -> None:
    """Push, snapshot, flip, roll back, look back, audit: each command's document and exit code."""
    first, second = releases
    one = run("flip", PTR, first[7:19], "--expect", "none", "-m", "CHG-1", "--json").json
    two = run("flip", PTR, second, "--expect", f"f{one['entry']}", "--json").json
    lost = run("flip", PTR, first, "--expect", f"f{one['entry']}", "--json", code=4).json
    assert lost["error"]["code"] == "precondition-failed"
    assert run("flip", PTR, second, "--expect", "any").out.startswith("Nothing to do")
    run("promote", PTR, "prod/eu/api", "--expect", "none")
    back = run("rollback", PTR, "--expect", f"f{two['entry']}", "-m", "errors", "--json").json
    assert back["pointers"][0]["snapshot"] == first
    run("flip", PTR, first, "--expect", "any")
    run("flip", PTR, second, "--expect", "any", code=4)
    run("mark", "good", PTR, second[7:15])
    run("flip", PTR, second, "--expect", "any", code=8)
    assert "HELD" in run("status", PTR).out
    run("release", PTR)
    run("hold", PTR, "--until", "2099-01-01T00:00:00Z", "-m", "freeze")
    run("flip", PTR, second, "--expect", "any", "--clear-hold")
    run("rollback", PTR, "--to", f"f{one['entry']}", "--expect", "any", "--no-bad", "--no-hold")
    assert [item["kind"] for item in run("history", PTR, "--limit", "2", "--json").json["items"]] == [
        "rollback",
        "deploy",
    ]
    at = run("at", PTR, one["pointers"][0]["since"], "--json").json
    assert (at["snapshot"], at["flip"]["reason"]) == (first, "CHG-1")
    assert "until now" in run("at", PTR, run("status", PTR, "--json").json["since"]).out
    assert "named nothing" in run("at", PTR, "f1").out
    run("retire", "prod/eu/api", "--expect", "any")
    listed = run("status", "--json").json
    assert [pointer["pointer"] for pointer in listed["pointers"]] == [PTR, "prod/eu/api"]
    assert "prod/eu/api" in run("status").out
    report = run("audit", "--full", "--json").json
    assert report["ok"]
    assert "Everything holds." in run("audit").out


def test_content(run: Run, releases: tuple[str, str], tmp_path: Path) -> None:
    """What was pushed is listed, printed, compared and restored."""
    artifacts = run("artifacts", "--name", "api", "--json").json["artifacts"]
    assert [artifact["labels"] for artifact in artifacts] == [
        [{"k": "release", "v": "2"}],
        [{"k": "release", "v": "1"}],
    ]
    digest = artifacts[0]["digest"]
    assert run("ls", "api").out.splitlines()[1:] != []
    assert [entry["path"] for entry in run("ls", digest[7:20], "bin", "--json").json["entries"]] == ["bin/app"]
    assert run("cat", "api", "bin/app").out == "version 2"
    run("cat", "api", "bin/none", code=3)
    pulled = run("pull", "api", tmp_path / "copy", "--json").json
    assert (tmp_path / "copy" / "bin" / "app").read_bytes() == b"version 2"
    assert pulled["files"] == 2
    run("pull", "api", tmp_path / "copy", code=4)
    beside = run("pull", "api", tmp_path / "beside", "--seed", tmp_path / "copy", "--link", "--no-cache", "--json").json
    assert (beside["reused_files"], beside["reused_bytes"]) == (2, beside["size_bytes"])
    assert "2 of them from seeds" in run("pull", "api", tmp_path / "copy", "--replace").out
    run("pull", "api", tmp_path / "other", "--seed", tmp_path / "missing", code=2)
    difference = run("diff", releases[0][7:20], releases[1], "--json").json
    assert [file["path"] for file in difference["components"][0]["files"]] == ["bin/app"]
    assert "bin/app" in run("diff", *releases).out
    assert run("diff", releases[0], releases[0]).out == "no difference\n"
    (tmp_path / "blob").write_bytes(b"a blob")
    blob = run("push", tmp_path / "blob").out.strip()
    assert run("cat", blob).out == "a blob"
    assert "Everything" in run("audit", "--full").out


def test_snapshots(run: Run, releases: tuple[str, str], tmp_path: Path) -> None:
    """A snapshot says what an environment consists of, and nothing that is not JSON."""
    (tmp_path / "meta.json").write_text('{"ticket": "CHG-1"}')
    made = run(
        "snapshot", "create", "app=api", "tool=api", "--parent", releases[0][7:19], "--meta", tmp_path / "meta.json",
        "--label", "env=prod", "--mutable", "var/", "--json",
    ).json  # fmt: skip
    shown = run("snapshot", "show", made["digest"], "--json").json
    assert [component["name"] for component in shown["components"]] == ["app", "tool"]
    assert (shown["parents"], shown["metadata"], shown["mutable"]) == ([releases[0]], {"ticket": "CHG-1"}, ["var/"])
    assert "env=prod" in run("snapshot", "show", made["digest"][7:19]).out
    assert len(run("snapshot", "list", "--json").json["snapshots"]) == 3
    assert "components" in run("snapshot", "list", "-n", "1").out
    (tmp_path / "meta.json").write_text("[1]")
    run("snapshot", "create", "app=api", "--meta", tmp_path / "meta.json", code=2)
    run("snapshot", "create", "app=nothing-of-the-kind", code=3)


def test_the_log_and_its_proofs(run: Run, served: Path, releases: tuple[str, str], tmp_path: Path) -> None:
    """What is handed to other people's programs: the key, the bytes, and a proof that they verify."""
    shown = run("log", "show", "1", "--json").json
    assert (shown["idx"], shown["type"]) == (1, "snapshot")
    entry = base64.b64decode(shown["entry_b64"])
    run("log", "prove", "1", "-o", tmp_path / "1.tlog-proof")
    log = shown["log"]
    opened = open_proof(
        (tmp_path / "1.tlog-proof").read_bytes(), leaf_hash(entry), Verifier.parse(log["vkey"]), log["origin"]
    )
    assert opened.checkpoint.size == 3
    assert run("log", "prove", "1").out.encode() == (tmp_path / "1.tlog-proof").read_bytes()
    assert run("log", "show", "--checkpoint").out.startswith(log["origin"] + "\n3\n")
    assert run("log", "show", "--checkpoint", "--json").json["size"] == 3
    assert "what was signed" in run("log", "show", "2").out
    assert [e["idx"] for e in run("log", "show", "--from", "1", "--json").json["entries"]] == [1, 2]
    assert len(run("log", "show", "-n", "2").out.splitlines()) == 3
    run("log", "show", "99", code=3)
    run("log", "show", "1", "--checkpoint", code=2)


def test_operating(run: Run, served: Path, releases: tuple[str, str], tmp_path: Path) -> None:
    """Tokens, keys, policy, fsck."""
    made = run("token", "create", "ci", "content:push", "--expires", "1h", "--json").json
    assert made["secret"] not in run("token", "list").out
    (tmp_path / "ci").write_text(made["secret"])
    run("push", tmp_path / "release-1", "--token-file", tmp_path / "ci")
    run("artifacts", "--token-file", tmp_path / "ci", code=5)
    run("token", "revoke", made["id"])
    run("push", tmp_path / "release-1", "--token-file", tmp_path / "ci", code=5)
    vkey = run("key", "new", "carol", tmp_path / "carol.key").out.strip()
    assert run("key", "show", tmp_path / "carol.key").out.strip() == vkey
    run("key", "new", "carol", tmp_path / "carol.key", code=2)
    policy = json.loads(run("policy", "show").out)
    policy["version"] = 2
    policy["principals"] = sorted([*policy["principals"], {"keys": [vkey], "name": "carol"}], key=lambda p: p["name"])
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    run("policy", "set", tmp_path / "policy.json", "-m", "add carol")
    assert run("policy", "show", "--json").json["version"] == 2
    run("flip", PTR, releases[0], "--expect", "none", "--key", tmp_path / "carol.key", code=5)
    run("flip", PTR, releases[0], "--expect", "none", "--key", tmp_path / "ci", code=2)
    assert run("fsck").out.endswith("The store is whole.\n")
    assert run("audit").code == 0


def test_trust(
    run: Run, served: Path, releases: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An auditor elsewhere: trust comes by file, another log's does not slip in, and without it the user is told."""
    trust = served / "trust.json"
    shown = run("trust", "show", "--json").json
    assert shown["verified"]["policy_version"] == 1
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "auditor"))
    token = ("--token-file", served / "token")
    said = run("status", *token)
    assert said.err == "casstore: answers are not verified: no trust file\n"
    run("audit", *token, code=2)
    run("trust", "show", code=2)
    run("flip", PTR, releases[0], "--expect", "none", "--key", served / "keys" / "operator.key", *token, code=2)
    (tmp_path / "bad.json").write_text("{}")
    run("trust", "add", tmp_path / "bad.json", code=2)
    run("trust", "add", trust)
    assert run("audit", *token).err == ""
    assert "verified 3 entries" in run("trust", "show").out
    other = tmp_path / "other.json"
    other.write_bytes(make_store(tmp_path / "other").trust_file)
    run("trust", "add", trust)
    said = run("trust", "add", other, code=2)
    assert "trusts another log" in said.err
    run("trust", "add", other, "--replace")
    run("audit", *token, code=6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_end_tidies_up(
    number: signal.Signals, code: int, releases: tuple[str, str], tmp_path: Path
) -> None:
    """A CI's time limit and a lost connection end a pull as Ctrl-C does: nothing stays beside the destination."""
    upstream, busy, go = os.environ["CASSTORE_URL"], threading.Event(), threading.Event()

    def wait(asked: Asked, body: bytes) -> bytes:
        if asked.path.startswith("/v1/packs"):
            busy.set()
            go.wait(30)
        return body

    before = sorted(os.listdir(tmp_path))
    with meddle(upstream) as (meddler, url):
        meddler.lie = wait
        words = [sys.executable, "-m", "casstore_client.cli", "pull", "api", str(tmp_path / "here"), "--url", url]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert busy.wait(30)
        assert len(os.listdir(tmp_path)) == len(before) + 1
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        go.set()
    assert (process.returncode, said.strip().splitlines()[-1][:12]) == (code, "Interrupted.")
    assert sorted(os.listdir(tmp_path)) == before


def test_output_that_cannot_be_written(releases: tuple[str, str]) -> None:
    """A reader that has gone is no failure, a full disk is one, told in a sentence."""
    command = [sys.executable, "-m", "casstore_client.cli", "artifacts"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "casstore: cannot write the output: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_mistakes(run: Run, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mistake ends in a sentence and an exit code, never in a traceback."""
    run("flip", PTR, "abcd", code=2)
    assert "Did you mean 'flip'" in run("flop", code=2).err
    assert run("status", "no/such", code=3).err.startswith("casstore: ")
    assert run("status", "no/such", "--json", code=3).json["error"]["code"] == "pointer-not-found"
    run("status", "NOT A NAME", code=2)
    run("pull", "ffffffff", "x", code=3)
    run("at", PTR, "yesterday", code=3)
    run("rollback", PTR, "--to", "seq:²", "--expect", "f1", code=2)
    run("status", "--url", "ftp://x", code=2)
    assert "NAME=DIGEST" in run("snapshot", "create", "app", code=2).err
    assert "snapshot show" in run("pull", "prod/web", "x", code=3).err
    assert "hint" in run("init", served, code=2).err
    assert run("version").out.startswith("casstore ")
    assert "_CASSTORE_COMPLETE" in run("completion", "bash").out
    monkeypatch.setenv("CASSTORE_CONFIG", "/nowhere/config.toml")
    run("status", code=2)


def test_an_operator_keeps_and_collects(run: Run, releases: tuple[str, str], tmp_path: Path) -> None:
    """Look first, keep something, collect, have it back; the numbers are for scripts, the sentences for people."""
    first, _ = releases
    plan = run("gc", "--dry-run", "--json").json
    assert plan["dry_run"]
    assert {root["owner"] for root in plan["kept"] if root["reason"] == "artifact"} == {
        "artifact 1 api",
        "artifact 2 api",
    }
    assert "Kept for: 2 snapshot, 2 artifact, 2 newest" in run("gc", "--dry-run").out
    run("pin", "api", code=2)  # a pin says for whom and why
    pinned = run("pin", "api", "--owner", "web team", "-m", "CHG-9", "--until", "30d", "--json").json
    assert pinned["kind"] == "tree"
    assert run("pin", first[7:20], "--owner", "x", "-m", "y", "--json").json["kind"] == "snapshot"
    run("pin", "nothing-of-that-name", "--owner", "x", "-m", "y", code=3)
    assert "web team" in run("pin").out
    assert run("gc", "--json").json["roots"]["pin"] == 2
    assert run("unpin", pinned["id"], "--json").json == {"schema": 1, "id": pinned["id"], "unpinned": True}
    run("unpin", pinned["id"], code=3)
    assert "live again" in run("gc", "--undo").out
    run("gc", "--dropped", f"blake3:{'0' * 64}", code=3)
    run("gc", "--undo", "--dry-run", code=2)


def test_a_store_without_a_server_is_collected(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its directory, with the server's settings."""
    run("init", tmp_path / "store")
    settings = tmp_path / "server.toml"
    settings.write_text("[retention]\nartifact_days = 1\n")
    run("gc", "--settings", settings, code=2)
    report = run("gc", "--store", tmp_path / "store", "--settings", settings, "--json").json
    assert report["mark"] == 1
    assert "Mark 2" in run("gc", "--store", tmp_path / "store").out
    assert run("gc", "--store", tmp_path / "store", "--undo", "--json").json["revived"] == 0
    settings.write_text("[gc]\ngrace_s = 3600\n")
    assert "grace" in run("gc", "--store", tmp_path / "store", "--settings", settings, code=2).err
