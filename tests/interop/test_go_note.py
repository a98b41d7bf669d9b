"""Go's own note and tree code reads our checkpoints, tiles and proofs, and we read what it signs.

What breaks here makes our log unreadable to every program but ours.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from casstore.formats.checkpoint import Checkpoint, encode_checkpoint
from casstore.formats.note import cosign, open_note, sign_note
from casstore.formats.proof import Proof, encode_proof
from casstore.merkle import Frontier, NodeId, consistency_proof, inclusion_proof, leaf_hash, root_at
from casstore.signing import SignatureType, SigningKey
from casstore.tiles import ENTRIES, encode_entries_tile, encode_hash_tile, format_tile_path, tile_nodes, tiles_for_size

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "go_note"
ORIGIN = "casstore/0123456789abcdef"
LOG = SigningKey(ORIGIN, bytes(range(32)))
WITNESS = SigningKey("witness.example/w1", bytes(range(64, 96)), SignatureType.COSIGNATURE)
SECONDS = 1_785_888_000
TEXT = "text with a blank line\n\nand U+2028 \u2028 in it\n"


class Log:
    """A published log: a directory of the files that a server would answer with."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size
        self.entries = [b'{"idx":%d}' % index * (index % 5) for index in range(size)]
        self.nodes: dict[NodeId, bytes] = {}
        frontier = Frontier()
        for entry in self.entries:
            self.nodes.update(frontier.append(leaf_hash(entry)))
        text = encode_checkpoint(Checkpoint(ORIGIN, size, frontier.root))
        self.root = frontier.root
        self.note = sign_note(text, [LOG], [cosign(text, WITNESS, SECONDS)])

    def get(self, ids: Sequence[NodeId]) -> list[bytes]:
        return [self.nodes[node] for node in ids]

    def publish(self) -> None:
        self._write("checkpoint", self.note)
        for level, n, width in tiles_for_size(self.size):
            if level == ENTRIES:
                data = encode_entries_tile(self.entries[n * 256 : n * 256 + width])
            else:
                data = encode_hash_tile(self.get(tile_nodes(level, n, width)))
            self._write(format_tile_path(level, n, width), data)
        indexes = sorted({0, self.size // 3, self.size - 1})
        for index in indexes:
            proof = Proof(index, inclusion_proof(index, self.size, self.get), self.note)
            self._write(f"{index}.tlog-proof", encode_proof(proof))
        request = {
            "origin": ORIGIN,
            "log_vkey": LOG.verifier.encode(),
            "cosigner_vkey": WITNESS.verifier.encode(),
            "skey": LOG.encode(),
            "text": TEXT,
            "proofs": indexes,
            "consistency": [self._consistency(size) for size in range(1, self.size + 1, max(1, self.size // 50))],
        }
        self._write("request.json", json.dumps(request).encode())

    def _consistency(self, size: int) -> dict[str, Any]:
        proof = consistency_proof(size, self.size, self.get)
        return {
            "from": size,
            "root_from": base64.b64encode(root_at(size, self.get)).decode(),
            "proof": [base64.b64encode(value).decode() for value in proof],
        }

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("go") / "go_note"
    subprocess.run(["go", "build", "-o", str(target), "."], cwd=PROGRAM, check=True)
    return target


def _run(program: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), str(directory)], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 1000])
def test_go_verifies_our_log_and_we_verify_its_note(program: Path, tmp_path: Path, size: int) -> None:
    log = Log(tmp_path, size)
    log.publish()
    done = _run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["size"], base64.b64decode(answer["root"])) == (size, log.root)
    assert (answer["records"], answer["cosigned_at_s"]) == (size, SECONDS)
    assert open_note(answer["note"].encode(), [LOG.verifier]).text == TEXT
    assert answer["note"].encode() == sign_note(TEXT, [LOG])


@pytest.mark.parametrize(
    "name", ["checkpoint", "tile/0/000", "tile/1/000.p/1", "tile/entries/001.p/44", "100.tlog-proof"]
)
def test_go_refuses_what_was_changed(program: Path, tmp_path: Path, name: str) -> None:
    # Without this, a program that verifies nothing would pass the test above.
    Log(tmp_path, 300).publish()
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    assert _run(program, tmp_path).returncode == 1
