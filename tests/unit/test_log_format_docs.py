"""The examples in the documents are the vectors.  What breaks here sends an implementer of another reader astray."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from casstore.formats.checkpoint import open_checkpoint
from casstore.formats.note import open_note
from casstore.formats.proof import open_proof
from casstore.merkle import leaf_hash
from casstore.signing import SigningKey, Verifier
from casstore.tiles import encode_entries_tile, parse_tile_path

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
KEYS: dict[str, str] = json.loads((GOLDEN / "checkpoint.json").read_text())["keys"]
LOG = Verifier.parse(KEYS["log_vkey"])
COSIGNERS = [Verifier.parse(KEYS["clock_vkey"]), Verifier.parse(KEYS["witness_vkey"])]


def _blocks(name: str) -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", (ROOT / "docs" / "formats" / name).read_text(), re.DOTALL | re.MULTILINE)


def test_note_example_and_keys() -> None:
    note, keys = _blocks("note.md")
    secret, public = keys.split()
    verifier = Verifier.parse(public)
    assert SigningKey.parse(secret).verifier == verifier
    assert open_note(note.encode(), [verifier]).signatures[0].verifier == verifier


def test_checkpoint_example() -> None:
    [note] = _blocks("checkpoint.md")
    assert note == json.loads((GOLDEN / "checkpoint.json").read_text())["good"][0]["note"]
    assert len(open_checkpoint(note.encode(), LOG, KEYS["origin"], COSIGNERS).cosignatures) == 2


def test_proof_example() -> None:
    [proof] = _blocks("proof.md")
    assert proof.encode() == (GOLDEN / "proof.tlog-proof").read_bytes()
    open_proof(proof.encode(), leaf_hash(b"entry 137"), LOG, KEYS["origin"], COSIGNERS)


def test_tile_examples() -> None:
    text = (ROOT / "docs" / "formats" / "tiles.md").read_text()
    [entries] = _blocks("tiles.md")
    assert encode_entries_tile([b"a", b"", b"bc"]) == bytes.fromhex(entries)
    paths = re.findall(r"^\| .* \| `(tile/[^<`]*)` \|$", text, re.MULTILINE)
    assert len(paths) == 4
    for path in paths:
        parse_tile_path(path)
    roots: dict[str, Any] = json.loads((GOLDEN / "merkle-roots.json").read_text())
    rows = re.findall(r"^\| (\d+) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    assert [(int(leaves), root) for leaves, root in rows] == [(n, roots["roots"][n]) for n in (0, 1, 2, 8)]


@pytest.mark.parametrize("name", ["note.md", "checkpoint.md", "tiles.md", "proof.md"])
def test_files_that_the_documents_name_exist(name: str) -> None:
    text = (ROOT / "docs" / "formats" / name).read_text()
    named = re.findall(r"`((?:casstore|tests)/[a-z_/.-]+\.[a-z-]+)`", text)
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path
    for target in re.findall(r"\]\(([a-z]+\.md)", text):
        assert (ROOT / "docs" / "formats" / target).is_file(), target
