"""A program that shares no code with casstore verifies a real server's log, and finds what is wrong with a forged one."""

from __future__ import annotations

import ast
import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from casstore.formats.acts import PolicyArgs
from casstore.formats.checkpoint import Checkpoint, encode_checkpoint
from casstore.formats.note import sign_note
from casstore.merkle import leaf_hash
from casstore.signing import SigningKey
from casstore.tiles import encode_entries_tile
from tests.interop import independent_verifier as verifier
from tests.support.acting import Signer
from tests.support.server import Http, Running

PROGRAM = Path(verifier.__file__)


def grow(server: Running) -> None:
    """A log with every act that this version knows."""
    signer = Signer(server.http, server.created.operator_key, server.created.origin)
    one, two = signer.release_of({b"a": b"1"}), signer.release_of({b"a": b"2"})
    first = signer.flip("prod/api", one, None).json["entry"]
    second = signer.flip("prod/api", two, first, why='CHG-\u00e9\u2028\U0001f600"\\\t\x01').json["entry"]
    assert signer.flip("prod/api", one, second, kind="rollback", left=(True, True)).status == 201
    assert signer.mark("prod/api", one, "good").status == 201
    assert signer.release("prod/api").status == 201
    policy = json.loads(json.dumps(server.http.get("/v1/policy").json["policy"]))
    policy["version"] = 2
    policy["rules"][0]["unsigned"] = True
    body = {"intent": signer.intent("policy", PolicyArgs(policy=policy, version=2))}
    assert server.http.post_json("/v1/policy", body).status == 201
    unsigned = json.dumps({"snapshot": str(one), "reason": "by hand"}).encode()
    headers = {"If-None-Match": "*", "Content-Type": "application/json"}
    assert server.http.request("PUT", "/v1/pointers/dev/api", unsigned, headers).status in (200, 201)


def fetch(server: Running) -> Callable[[str], bytes]:
    """Anonymous: the log is public."""
    http = Http(server.url)

    def get(path: str) -> bytes:
        reply = http.get(f"/log/{path}")
        assert reply.status == 200, (path, reply.status)
        return reply.body

    return get


def pins(server: Running) -> tuple[str, str]:
    trust = server.created.trust
    return trust.log_vkey, trust.genesis_sha256.hex()


def test_it_shares_nothing_with_casstore() -> None:
    """Else an error of ours would be its error too."""
    tree = ast.parse(PROGRAM.read_text("utf-8"))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in named} - set(sys.stdlib_module_names) == {"cryptography"}
    assert len(PROGRAM.read_text("utf-8").splitlines()) <= 150


def test_it_verifies_a_real_servers_log(server: Running) -> None:
    grow(server)
    command = [sys.executable, "-I", str(PROGRAM), server.url, *pins(server)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    size = server.http.get("/v1/status").json["log_size"]
    assert done.stdout.startswith(f"{size} entries:")


def test_it_verifies_a_log_of_more_than_one_tile(server: Running) -> None:
    """Full tiles, and the hashes of full tiles one level up."""
    signer = Signer(server.http, server.created.operator_key, server.created.origin)
    one = signer.release_of({b"a": b"1"})
    assert signer.flip("prod/api", one, None).status == 201
    while server.http.get("/v1/status").json["log_size"] < 259:
        assert signer.hold("prod/api").status == 201
        assert signer.release("prod/api").status == 201
    assert verifier.verify(fetch(server), *pins(server)) >= 259


def test_one_changed_byte_anywhere_is_found(server: Running) -> None:
    """In transit, at a mirror, on the disk: whatever was downloaded."""
    grow(server)
    get = fetch(server)
    files: dict[str, bytes] = {}

    def remember(path: str) -> bytes:
        return files.setdefault(path, get(path))

    verifier.verify(remember, *pins(server))
    log_line = files["checkpoint"].index(b"\n\xe2\x80\x94 " + server.created.origin.encode() + b"/clock ")
    for path, data in files.items():
        end = log_line if path == "checkpoint" else len(data)  # the clock's line says nothing to this program
        for at in range(0, end, 1 if path == "checkpoint" else 97):
            changed = {**files, path: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]}
            with pytest.raises((verifier.Wrong, InvalidSignature, ValueError, KeyError)):
                verifier.verify(changed.__getitem__, *pins(server))


def forge(
    server: Running, change: Callable[[list[dict[str, Any]]], object], spell: Callable[[Any], str]
) -> dict[str, bytes]:
    """The log as its own key's holder would sign it after ``change``: hashes and note are right, what is said is not."""
    get = fetch(server)
    _, size, _ = verifier.open_checkpoint(get("checkpoint"), pins(server)[0])
    honest = verifier.split_entries(get(f"tile/entries/000.p/{size}"), size)
    documents = [json.loads(entry) for entry in honest]
    change(documents)
    entries = [spell(document).encode() for document in documents]
    key = SigningKey.parse((server.directory / "keys" / "log").read_text("ascii").strip())
    hashes = [leaf_hash(entry) for entry in entries]
    text = encode_checkpoint(Checkpoint(server.created.origin, size, verifier.tree_root(hashes)))
    return {
        "checkpoint": sign_note(text, [key]),
        f"tile/entries/000.p/{size}": encode_entries_tile(entries),
        f"tile/0/000.p/{size}": b"".join(hashes),
    }


def _resign(entry: dict[str, Any]) -> None:
    """Another payload under the old signature."""
    payload = json.loads(base64.b64decode(entry["auth"]["payload"]))
    payload["why"] = "something else"
    entry["auth"]["payload"] = base64.b64encode(verifier.jcs(payload).encode()).decode()


def _unsign(entry: dict[str, Any]) -> None:
    """The server's word in place of the signature, before the policy allows that."""
    entry["auth"] = {"payload": entry["auth"]["payload"], "token": {"id": "0" * 16, "principal": "operator"}}


def test_the_log_key_alone_forges_no_entry(server: Running) -> None:
    """Whoever owns the server signs any root; the spelling and the principals' signatures still give it away."""
    grow(server)
    vkey, genesis = pins(server)
    honest = forge(server, lambda _: None, verifier.jcs)
    assert verifier.verify(honest.__getitem__, vkey, genesis) > 5

    def spaced(document: Any) -> str:
        return (
            verifier.jcs(document) if document["idx"] == 0 else json.dumps(document, sort_keys=True, ensure_ascii=False)
        )

    changes: list[tuple[Callable[[list[dict[str, Any]]], object], Callable[[Any], str], type[Exception], str]] = [
        (lambda _: None, spaced, verifier.Wrong, "canonical spelling"),
        (lambda log: _resign(log[3]), verifier.jcs, InvalidSignature, "^$"),
        (lambda log: log[3].update(idx=4), verifier.jcs, verifier.Wrong, "elsewhere"),
        (lambda log: log[3].update(type="hold"), verifier.jcs, verifier.Wrong, "not what was signed"),
        (lambda log: log[3].update(ts=int(time.time() * 1000) + 10**9), verifier.jcs, verifier.Wrong, "another time"),
        (lambda log: log[3].update(auth=log[2]["auth"]), verifier.jcs, verifier.Wrong, "repeats|not what was signed"),
        (lambda log: _unsign(log[3]), verifier.jcs, verifier.Wrong, "no one signed"),
        (lambda log: log[3]["auth"]["signatures"].clear(), verifier.jcs, verifier.Wrong, "nobody"),
        (lambda log: log[2]["body"].update(x=1), verifier.jcs, verifier.Wrong, "saw another log"),
    ]
    for change, spell, kind, what in changes:
        with pytest.raises(kind, match=what):
            verifier.verify(forge(server, change, spell).__getitem__, vkey, genesis)
