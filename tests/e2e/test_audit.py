"""The audit against the real server: damage on its disk is found, named, and hides nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from casstore.admin import Created
from casstore_client.audit_report import AuditReport
from casstore_client.blocking import Client
from casstore_client.cli.demo_damage import flip_bit_in_entry, flip_bit_in_pack
from tests.support.clients import client_of
from tests.support.server import make_store, run_in_thread

PTR = "prod/api"


@contextmanager
def serving(directory: Path, created: Created, state: Path) -> Iterator[Client]:
    with run_in_thread(directory, created) as running, client_of(running, state) as client:
        yield client


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Created]:
    """A store with two snapshots (a tree of small files and a large one, and a blob) and two flips; stopped."""
    work = tmp_path_factory.mktemp("audit")
    created = make_store(work / "store")
    source, random = work / "source", Random(7)
    (source / "small").mkdir(parents=True)
    for number in range(300):
        (source / "small" / f"file-{number:03d}").write_bytes(random.randbytes(number))
    (source / "large").write_bytes(random.randbytes(3_000_000))
    (source / "twice").write_bytes((source / "large").read_bytes())
    (source / "empty").write_bytes(b"")
    os.symlink("large", source / "link")
    with serving(work / "store", created, work / "setup") as client:
        one = client.push(source)
        blob = client.push(source / "large")
        (source / "small" / "file-007").write_bytes(b"changed")
        two = client.push(source)
        client.snapshot_create([("app", "tree", str(one.digest))])
        _, digest = client.snapshot_create([("app", "tree", str(two.digest)), ("disk", "blob", str(blob.digest))])
        flipped = client.flip(PTR, str(digest), expect=None)
        client.hold(PTR, reason="a change freeze")
        assert flipped.entry == 3
    return work / "store", created


@pytest.fixture
def store(filled: tuple[Path, Created], tmp_path: Path) -> Path:
    """A copy of the store, to be damaged."""
    import shutil

    shutil.copytree(filled[0], tmp_path / "store")
    return tmp_path / "store"


def failed(report: AuditReport) -> dict[int, int | None]:
    assert report.ok == all(level.ok for level in report.levels)
    return {level.level: level.first_bad_index for level in report.levels if not level.ok}


def test_an_honest_store_holds(filled: tuple[Path, Created], tmp_path: Path) -> None:
    """Quick looks at places, full at every byte; what two components have in the same place is put together once."""
    with serving(*filled, tmp_path / "auditor") as client:
        quick, full = client.audit(), client.audit(full=True)
    assert quick.ok
    assert full.ok
    assert [level.name for level in full.levels] == [
        "hashes",
        "signature",
        "time",
        "envelopes",
        "state",
        "seen",
        "content",
    ]
    assert quick.levels[6].detail.startswith("2 snapshots, 2 trees, 1 blobs")
    assert "599 files put together" in full.levels[6].detail


def test_a_bit_in_a_pack_and_a_bit_in_an_entry(filled: tuple[Path, Created], store: Path, tmp_path: Path) -> None:
    """Both are found in one run, each by its name; everything else is still looked at."""
    with serving(*filled, tmp_path / "reader") as client:
        entry = client.entry(3)
    import base64

    flip_bit_in_entry(store, base64.b64encode(entry.data).decode())
    damaged = flip_bit_in_pack(store)
    with serving(store, filled[1], tmp_path / "auditor") as client:
        report = client.audit(full=True)
    assert failed(report) == {1: 3, 4: 3, 5: 3, 7: 1}
    chunks = [finding for finding in report.findings if finding.level == 7]
    assert [finding.object for finding in chunks] == [f"chunk blake3:{damaged.object}"]
    assert chunks[0].where.startswith(f"pack {damaged.pack} offset ")
    assert {needy.component for needy in chunks[0].affects} == {"app"}
    assert {needy.path for needy in chunks[0].affects} <= {"large", "twice"} | {
        f"small/file-{n:03d}" for n in range(300)
    }
    assert report.findings[0].object == "entry 3"
    assert report.levels[3].checked == 5


def test_a_pack_that_is_gone(filled: tuple[Path, Created], store: Path, tmp_path: Path) -> None:
    """Quick names the pack, full every chunk of it; the other packs are in order."""
    pack = max((store / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    pack.unlink()
    with serving(store, filled[1], tmp_path / "auditor") as client:
        quick, full = client.audit(), client.audit(full=True)
    assert failed(quick) == failed(full) == {7: 1}
    assert f"pack {pack.stem}" in {finding.object for finding in quick.findings} | {
        finding.where.split(" offset")[0] for finding in quick.findings
    }
    assert len(full.findings) >= 1
    assert all(pack.stem in finding.where + finding.object + finding.found for finding in full.findings)


def test_a_page_that_is_damaged(filled: tuple[Path, Created], store: Path, tmp_path: Path) -> None:
    """The tree that it is part of is named, the other tree and the blob are still looked at."""
    from casstore.formats.pack import FRAME_HEADER_BYTES, ObjectKind, PackDecoder

    with serving(*filled, tmp_path / "reader") as client:
        trees = [client.snapshot_document(info.digest).components[0].digest for info in client.snapshots().snapshots]
    wanted = None
    for path in (store / "packs").rglob("*.pack"):
        data = bytearray(path.read_bytes())
        pages = [frame for frame in PackDecoder().feed(bytes(data)) if frame.kind is ObjectKind.PAGE]
        if pages and wanted is None:
            wanted = pages[0].id
            data[pages[0].offset + FRAME_HEADER_BYTES] ^= 1
            path.chmod(0o644)
            path.write_bytes(data)
    assert wanted is not None
    with serving(store, filled[1], tmp_path / "auditor") as client:
        report = client.audit(full=True)
    assert set(failed(report)) == {7}
    assert [finding.object for finding in report.findings] == [f"page blake3:{wanted.hex()}"]
    assert len(trees) == 2
    assert "1 blobs" in report.levels[6].detail
    assert " 0 chunks" not in report.levels[6].detail
