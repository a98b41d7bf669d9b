"""Export and import: content travels on a disk to a site without a network, and arrives whole or not at all."""

from __future__ import annotations

import os
import random
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from casstore.admin import fsck_directory
from casstore.errors import (
    ArtifactNotFound,
    CasstoreError,
    DamagedObject,
    DestinationExists,
    InvalidInput,
    NotFound,
    SnapshotIncomplete,
    VerificationError,
)
from casstore.formats.export import LAST, ExportEnd, Member, decode_end, encode_end
from casstore.formats.trust import decode_trust
from casstore.hashing import blake3_256
from casstore.wire import Artifact, CommitRequest
from casstore_client import export_content, import_push
from casstore_client.archive import ArchiveWriter, open_archive
from casstore_client.blocking import Client
from tests.support.clients import client_of, release
from tests.support.server import Running, ServerProcess, make_store, run_in_thread, token_of
from tests.support.treebuild import File, read_directory

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {"bin/app": os.urandom(300_000), "etc/conf": b"colour=blue", **{f"lib/{n}": b"%d\n" % n for n in range(400)}}


class Sites(NamedTuple):
    """Two sites that do not know each other."""

    near: Client
    far: Client
    near_server: Running
    far_server: Running


@pytest.fixture
def sites(server: Running, tmp_path: Path) -> Iterator[Sites]:
    created = make_store(tmp_path / "far")
    with (
        run_in_thread(tmp_path / "far", created) as far,
        client_of(server, tmp_path / "state") as near_client,
        client_of(far, tmp_path / "far-state") as far_client,
    ):
        yield Sites(near_client, far_client, server, far)


def members(path: Path) -> dict[str, bytes]:
    with closing(open_archive(str(path))) as archive:
        found = {}
        for name in archive.names():
            with archive.open(name) as stream:
                found[name] = stream.read()
        return found


def write_members(path: Path, found: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as target:
        for name, data in found.items():
            target.writestr(name, data)


def list_anew(found: dict[str, bytes]) -> dict[str, bytes]:
    """With an end that fits: as somebody would make it who means harm."""
    end = decode_end(found[LAST])
    fresh = [m._replace(size=len(found[m.name]), blake3=blake3_256(found[m.name])) for m in end.members]
    return {**found, LAST: encode_end(ExportEnd(tuple(fresh)))}


def list_all(found: dict[str, bytes]) -> dict[str, bytes]:
    """With an end that lists whatever is there."""
    rest = [Member(n, len(d), blake3_256(d)) for n, d in found.items() if n != LAST]
    return {**found, LAST: encode_end(ExportEnd(tuple(rest)))}


@pytest.mark.parametrize("directory", [False, True], ids=["zip", "directory"])
def test_what_arrives_is_what_was_sent(sites: Sites, tmp_path: Path, directory: bool) -> None:
    """Bytes, names, labels, the snapshot, and the proof of where it comes from."""
    tree = tmp_path / "v1"
    snapshot = release(sites.near, tmp_path, "v1", FILES)
    blob = sites.near.push(tree / "bin" / "app", name="team/app", labels={"git": "a1", "ci": "7"})
    done = sites.near.export([snapshot, "team/app"], tmp_path / "out", directory=directory)
    assert (tmp_path / "out").is_dir() == directory
    assert done.proven == 1
    trust = sites.near_server.created.trust
    came = sites.far.import_file(tmp_path / "out", publish=True, why="by courier", trust=trust)
    assert [(p.log, p.entry) for p in came.proven] == [(trust.origin, 1)]
    assert [str(digest) for digest in came.published] == [snapshot]
    found = sites.far.snapshot_document(snapshot)
    sites.far.pull(found.components[0].digest, tmp_path / "back")
    assert read_directory(tmp_path / "back") == read_directory(tree)
    [artifact] = sites.far.artifacts(name="team/app").artifacts
    assert (artifact.digest, artifact.kind) == (str(blob.digest), "blob")
    assert [(label.k, label.v) for label in artifact.labels] == [("ci", "7"), ("git", "a1")]
    assert b"".join(sites.far.cat(blob.digest)) == FILES["bin/app"]
    assert sites.far.artifacts(name="v1").artifacts
    assert sites.far.audit(full=True).ok
    assert sites.far.fsck(full=True).ok
    # Again: all of it is there, so no chunk and no page is sent, and it is published still.
    again = sites.far.import_file(tmp_path / "out", publish=True)
    assert again.objects == came.objects
    assert again.new_objects == 0
    assert again.sent_bytes < came.sent_bytes / 10
    assert len(sites.far.snapshots().snapshots) == 1


def test_two_exports_of_the_same_are_the_same(sites: Sites, tmp_path: Path) -> None:
    """So a copy in a safe can be compared with one that is made today."""
    one = release(sites.near, tmp_path, "v1", FILES)
    two = release(sites.near, tmp_path, "v2", {**FILES, "etc/conf": b"colour=red"})
    sites.near.export([one, two], tmp_path / "a")
    sites.near.export([two, one], tmp_path / "b", directory=True)
    a, b = members(tmp_path / "a"), members(tmp_path / "b")
    same = {name: data for name, data in a.items() if not name.startswith("proofs/") and name != LAST}
    assert same == {name: b[name] for name in same}
    assert set(a) == set(b)


def test_an_export_of_many_packs(sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones are cut into packs and windows, and asked about in turns; here all of those are small."""
    monkeypatch.setattr(export_content, "PACK_TARGET_BYTES", 40_000)
    monkeypatch.setattr(export_content, "WINDOW_BYTES", 100_000)
    monkeypatch.setattr(import_push, "PACK_TARGET_BYTES", 50_000)
    monkeypatch.setattr(import_push, "ASK_BYTES", 30_000)
    monkeypatch.setattr(import_push, "ASK_IDS", 7)
    files = {f"d{n % 5}/{n}": os.urandom(20_000 + n) for n in range(150)}
    snapshot = release(sites.near, tmp_path, "v1", files)
    done = sites.near.export([snapshot], tmp_path / "out.zip")
    assert len([name for name in members(tmp_path / "out.zip") if name.startswith("packs/")]) > 10
    came = sites.far.import_file(tmp_path / "out.zip", publish=True)
    assert came.objects == sum(done.objects.values()) > 15
    assert came.new_objects == done.objects["chunk"] + done.objects["page"] > 15
    sites.far.pull(sites.far.snapshot_document(snapshot).components[0].digest, tmp_path / "back")
    assert read_directory(tmp_path / "back") == read_directory(tmp_path / "v1")


def test_only_what_the_other_side_lacks(sites: Sites, tmp_path: Path) -> None:
    one = release(sites.near, tmp_path, "v1", FILES)
    two = release(sites.near, tmp_path, "v2", {**FILES, "etc/conf": b"colour=red"})
    sites.near.export([one], tmp_path / "one.zip")
    whole = sites.near.export([two], tmp_path / "two-whole.zip")
    for name, since, files in (("by-snapshot", [one], []), ("by-file", [], [str(tmp_path / "one.zip")])):
        part = sites.near.export([two], tmp_path / name, since=since, since_files=files)
        assert part.left_out > 0
        assert part.size_bytes < whole.size_bytes / 3
        assert one in part.manifest.base
    # Without its base it is not enough: that is said, and nothing is recorded.
    with pytest.raises(SnapshotIncomplete, match="leaves out what") as caught:
        sites.far.import_file(tmp_path / "by-file", publish=True)
    assert caught.value.missing
    assert sites.far.artifacts().artifacts == []
    assert sites.far.snapshots().snapshots == []
    sites.far.import_file(tmp_path / "one.zip")
    sites.far.import_file(tmp_path / "by-snapshot", publish=True)
    sites.far.pull(sites.far.snapshot_document(two).components[0].digest, tmp_path / "back")
    assert read_directory(tmp_path / "back") == read_directory(tmp_path / "v2")


@pytest.mark.parametrize("loses", [False, True])
def test_each_tree_and_blob_is_recorded_once(
    sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loses: bool
) -> None:
    """One push brings them all; also where it loses its lease between two of them."""
    snapshot = release(sites.near, tmp_path, "v1", FILES)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
        sites.near.push(tmp_path / name, name=name)
    sites.near.export([snapshot, "a", "b", "c"], tmp_path / "out.zip")
    commit = import_push.ImportPush.commit

    async def commit_and_lose(self: import_push.ImportPush, request: CommitRequest) -> Artifact:
        # As the server takes it when nothing follows: the lease ends with this one.
        return await commit(self, msgspec.structs.replace(request, more=request.more and request.name != "b"))

    if loses:
        monkeypatch.setattr(import_push.ImportPush, "commit", commit_and_lose)
    came = sites.far.import_file(tmp_path / "out.zip")
    assert sorted(str(one.name) for one in came.artifacts) == ["a", "b", "c", "v1"]
    assert len(sites.far.artifacts().artifacts) == 4


def test_snapshots_travel_with_those_that_they_follow(sites: Sites, tmp_path: Path) -> None:
    """A log takes a snapshot only once its parents are published: so they come first."""
    tree = str(sites.near.push(_folder(tmp_path / "t", b"1")).digest)
    chain: list[str] = []
    for number in range(3):
        _, digest = sites.near.snapshot_create(
            [("app", "tree", tree)], parents=chain[-1:], labels={"release": str(number)}
        )
        chain.append(str(digest))
    sites.near.export([chain[2]], tmp_path / "alone.zip")
    with pytest.raises(CasstoreError, match=chain[1][7:19]):
        sites.far.import_file(tmp_path / "alone.zip", publish=True)
    done = sites.near.export([chain[2]], tmp_path / "all.zip", parents=True)
    assert [str(s.digest) for s in done.manifest.snapshots] == chain
    sites.far.import_file(tmp_path / "all.zip", publish=True)
    assert [s.digest for s in sites.far.snapshots().snapshots] == chain[::-1]


def _folder(path: Path, data: bytes) -> Path:
    path.mkdir()
    (path / "file").write_bytes(data)
    return path


def test_an_export_appears_whole_or_not_at_all(sites: Sites, tmp_path: Path) -> None:
    snapshot = release(sites.near, tmp_path, "v1", FILES)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ArtifactNotFound):
        sites.near.export([snapshot, "nobody/pushed/this"], place / "out")
    (place / "there").write_bytes(b"mine")
    with pytest.raises(DestinationExists):
        sites.near.export([snapshot], place / "there")
    with pytest.raises(InvalidInput):
        sites.near.export([snapshot], tmp_path / "missing" / "out")
    # Content that is damaged on the server is not written down as if it were whole.
    for pack in (sites.near_server.directory / "packs").rglob("*.pack"):
        data = bytearray(pack.read_bytes())
        if len(data) > 200_000:
            data[100_000] ^= 1
            pack.write_bytes(data)
    for directory in (False, True):
        with pytest.raises(DamagedObject):
            sites.near.export([snapshot], place / "out", directory=directory)
    assert os.listdir(place) == ["there"]
    assert (place / "there").read_bytes() == b"mine"


# --- damage ------------------------------------------------------------------------------------------------------------


def test_a_damaged_export_changes_nothing(sites: Sites, tmp_path: Path) -> None:
    """Whichever member is damaged, missing or too much: the message names it, and nothing is committed."""
    snapshot = release(sites.near, tmp_path, "v1", FILES)
    sites.near.export([snapshot], tmp_path / "good.zip")
    good = members(tmp_path / "good.zip")
    assert {name.split("/")[0] for name in good} == {"export.json", "snapshots", "proofs", "packs", "end.json"}
    bad = tmp_path / "bad.zip"
    chance = random.Random(1)
    for name, data in good.items():
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        for other in (bytes(flipped), data[:-1], data + b"\0", b"", None):
            changed = {**good, name: other} if other is not None else {n: d for n, d in good.items() if n != name}
            write_members(bad, {n: d for n, d in changed.items() if d is not None})
            with pytest.raises(DamagedObject, match=r"[a-z]+\.json|packs/|proofs/|snapshots/"):
                sites.far.import_file(bad, publish=True)
    # A document and a proof that fit their names and belong to no snapshot of this export.
    other = release(sites.near, tmp_path, "v2", {"a": b"2"})
    sites.near.export([other], tmp_path / "other.zip")
    foreign = {name: data for name, data in members(tmp_path / "other.zip").items() if name not in good}
    assert {name.split("/")[0] for name in foreign} == {"snapshots", "proofs"}
    for kind in ("snapshots/", "proofs/"):
        write_members(bad, list_all({**good, **{n: d for n, d in foreign.items() if n.startswith(kind)}}))
        with pytest.raises(DamagedObject, match=kind + r".* does not belong there"):
            sites.far.import_file(bad, publish=True)
    write_members(bad, {**good, "packs/000099.pack": good["packs/000000.pack"]})
    with pytest.raises(DamagedObject, match=r"packs/000099\.pack does not belong"):
        sites.far.import_file(bad)
    assert sites.far.artifacts().artifacts == []
    assert sites.far.snapshots().snapshots == []


def test_an_export_that_was_cut_short_changes_nothing(sites: Sites, tmp_path: Path) -> None:
    snapshot = release(sites.near, tmp_path, "v1", FILES)
    sites.near.export([snapshot], tmp_path / "good.zip")
    data = (tmp_path / "good.zip").read_bytes()
    for length in [0, 1, 22, *range(1000, len(data), len(data) // 25), len(data) - 1]:
        (tmp_path / "cut.zip").write_bytes(data[:length])
        with pytest.raises(DamagedObject, match="cut short"):
            sites.far.import_file(tmp_path / "cut.zip")
    shutil.copytree(_directory(sites, snapshot, tmp_path), tmp_path / "cut")
    (tmp_path / "cut" / "end.json").unlink()
    with pytest.raises(DamagedObject, match=r"no member end\.json"):
        sites.far.import_file(tmp_path / "cut")
    with pytest.raises(NotFound):
        sites.far.import_file(tmp_path / "nowhere")
    assert sites.far.artifacts().artifacts == []


def _directory(sites: Sites, snapshot: str, tmp_path: Path) -> Path:
    sites.near.export([snapshot], tmp_path / "folder", directory=True)
    return tmp_path / "folder"


def test_hashes_that_were_made_to_fit_do_not_help(sites: Sites, tmp_path: Path) -> None:
    """The list of hashes is the exporter's word; objects are held against their own ids."""
    one = release(sites.near, tmp_path, "v1", {"a": b"1" * 5000})
    two = release(sites.near, tmp_path, "v2", {"a": b"2" * 5000})
    sites.near.export([one], tmp_path / "one.zip")
    sites.near.export([two], tmp_path / "two.zip")
    good, other = members(tmp_path / "one.zip"), members(tmp_path / "two.zip")
    [document] = [name for name in good if name.startswith("snapshots/")]
    [foreign] = [name for name in other if name.startswith("snapshots/")]
    cases: dict[str, bytes] = {
        document: other[foreign],
        "packs/000000.pack": other["packs/000000.pack"],
    }
    pack = bytearray(good["packs/000000.pack"])
    pack[len(pack) // 2] ^= 1
    for name, data in [*cases.items(), ("packs/000000.pack", bytes(pack))]:
        write_members(tmp_path / "bad.zip", list_anew({**good, name: data}))
        with pytest.raises((DamagedObject, SnapshotIncomplete)):
            sites.far.import_file(tmp_path / "bad.zip", publish=True)
    assert sites.far.artifacts().artifacts == []
    assert sites.far.snapshots().snapshots == []


def test_where_it_comes_from_is_proven_or_refused(sites: Sites, tmp_path: Path) -> None:
    """With --trust a snapshot that never was in that log is not let in."""
    one = release(sites.near, tmp_path, "v1", {"a": b"1"})
    two = release(sites.near, tmp_path, "v2", {"a": b"2"})
    sites.near.export([one, two], tmp_path / "good.zip")
    good = members(tmp_path / "good.zip")
    trust = sites.near_server.created.trust
    names = [f"proofs/{digest.removeprefix('blake3:')}" for digest in (one, two)]
    swapped = {**good}
    for suffix in (".entry", ".tlog-proof"):
        swapped[names[0] + suffix], swapped[names[1] + suffix] = good[names[1] + suffix], good[names[0] + suffix]
    forged = {**good, names[0] + ".entry": good[names[0] + ".entry"].replace(b'"idx":1', b'"idx":3')}
    for wrong in (swapped, forged):
        write_members(tmp_path / "bad.zip", list_anew(wrong))
        with pytest.raises(VerificationError):
            sites.far.import_file(tmp_path / "bad.zip", publish=True, trust=trust)
    with pytest.raises(VerificationError):
        sites.far.import_file(tmp_path / "good.zip", publish=True, trust=sites.far_server.created.trust)
    # Whoever exports without a trust file has no proofs to give.
    with client_of(sites.near_server, tmp_path / "bare", trust=False) as bare:
        assert bare.export([one], tmp_path / "bare.zip").proven == 0
    with pytest.raises(VerificationError, match="carries no proof"):
        sites.far.import_file(tmp_path / "bare.zip", trust=trust)
    assert sites.far.artifacts().artifacts == []
    assert sites.far.import_file(tmp_path / "good.zip", trust=trust).proven


def test_a_folder_with_odd_things_in_it_is_refused(sites: Sites, tmp_path: Path) -> None:
    """A link could name any file of this machine, a pipe would keep us waiting."""
    snapshot = release(sites.near, tmp_path, "v1", {"a": b"1"})
    folder = _directory(sites, snapshot, tmp_path)
    pack = folder / "packs" / "000000.pack"
    shutil.move(pack, tmp_path / "elsewhere")
    odd: list[Callable[[], None]] = [
        lambda: pack.symlink_to(tmp_path / "elsewhere"),
        lambda: os.mkfifo(pack),
        pack.mkdir,
    ]
    for make in odd:
        make()
        with pytest.raises((InvalidInput, DamagedObject)):
            sites.far.import_file(folder)
        pack.rmdir() if pack.is_dir() else pack.unlink()
    shutil.move(tmp_path / "elsewhere", pack)
    sites.far.import_file(folder)


def test_compressed_and_doubled_members_are_refused(sites: Sites, tmp_path: Path) -> None:
    """A small file must not become a large one when it is read."""
    snapshot = release(sites.near, tmp_path, "v1", {"a": b"1"})
    sites.near.export([snapshot], tmp_path / "good.zip")
    good = members(tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in good.items():
            target.writestr(name, data)
    with pytest.raises(DamagedObject):
        sites.far.import_file(tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as target:
        for name, data in good.items():
            target.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            target.writestr("end.json", good["end.json"])
    with pytest.raises(DamagedObject):
        sites.far.import_file(tmp_path / "bad.zip")


# --- golden ------------------------------------------------------------------------------------------------------------


def test_an_export_of_the_first_version_is_read(sites: Sites, tmp_path: Path) -> None:
    """The file was written once and is never changed: disks lie in safes for years."""
    trust = decode_trust((GOLDEN / "export-trust.json").read_bytes())
    came = sites.far.import_file(GOLDEN / "export.zip", publish=True, trust=trust)
    assert [(p.log, p.entry) for p in came.proven] == [(trust.origin, 1)]
    [digest] = came.documents
    sites.far.pull(sites.far.snapshot_document(str(digest)).components[0].digest, tmp_path / "back")
    found = {path: file.data for path, file in read_directory(tmp_path / "back").items() if isinstance(file, File)}
    assert found == {b"etc/conf": b"colour=blue\n", b"hello": b"hello\n"}


def test_the_same_members_make_the_same_file(tmp_path: Path) -> None:
    found = members(GOLDEN / "export.zip")
    with ArchiveWriter(str(tmp_path / "again.zip"), directory=False) as archive:
        for name, data in found.items():
            archive.add(name, [data[:3], data[3:]])
        archive.finish()
    assert (tmp_path / "again.zip").read_bytes() == (GOLDEN / "export.zip").read_bytes()


# --- kill -9 -------------------------------------------------------------------------------------------------------------


def test_a_server_that_dies_during_an_import(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it dies, the store is whole, and the same import again ends well."""
    files = {f"{n}": os.urandom(150_000) for n in range(60)}
    monkeypatch.setattr(import_push, "PACK_TARGET_BYTES", 300_000)
    monkeypatch.setattr(import_push, "ASK_BYTES", 200_000)
    with client_of(server, tmp_path / "state") as near:
        snapshot = release(near, tmp_path, "v1", files)
        near.export([snapshot], tmp_path / "out.zip")
    far = tmp_path / "far"
    created = make_store(far)
    chance = random.Random(4)
    for _ in range(3):
        process = ServerProcess(far, created)
        ended: list[object] = []

        def bring(url: str = process.url, into: list[object] = ended) -> None:
            try:
                with Client(url, token=token_of(created)) as client:
                    into.append(client.import_file(tmp_path / "out.zip"))
            except CasstoreError as error:
                into.append(error)

        thread = threading.Thread(target=bring)
        thread.start()
        thread.join(chance.uniform(0.05, 0.6))
        process.kill()
        thread.join(60)
        assert ended
        assert fsck_directory(far, full=True).ok
    with run_in_thread(far, created) as running, client_of(running, tmp_path / "far-state") as client:
        came = client.import_file(tmp_path / "out.zip", publish=True)
        assert len(came.artifacts) == 1
        client.pull(came.artifacts[0].digest, tmp_path / "back")
        assert client.fsck(full=True).ok
    assert read_directory(tmp_path / "back") == read_directory(tmp_path / "v1")
