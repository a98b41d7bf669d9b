"""Turns files into chunks, packs, pages and roots with the real formats, and pushes them through the real services.

A small client for tests: it holds everything in memory and sends it without a wire.  What it makes is what a client makes:
large files are cut by content, small ones are bundled in path order.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from casstore.chunking import DEFAULT_PARAMETERS, BundleCutter, FileChunker, Parameters
from casstore.clock import ManualClock
from casstore.engine.artifacts import ArtifactService
from casstore.engine.blobs import BlobService
from casstore.engine.diff import DiffService
from casstore.engine.findings import Findings
from casstore.engine.fsck import fsck_content
from casstore.engine.packs import PackService
from casstore.engine.presence import Presence
from casstore.engine.pushes import PushService
from casstore.engine.snapshots import SnapshotService
from casstore.engine.trees import TreeService
from casstore.formats.layout import LayoutBuilder
from casstore.formats.pack import ObjectKind, PackEncoder, seal_frame
from casstore.formats.tree import BuiltPage, EntryType, PageCutter, TreeEntry, encode_root, tree_digest
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, ChunkId, PackId, PageDigest, PushId, TreeDigest
from casstore.limits import PACK_TARGET_BYTES
from casstore.storage.local.files import Files as LocalFiles
from casstore.storage.local.home import Home
from casstore.storage.memory import MemoryChunkIndex, MemoryLedger, MemoryPackStore
from casstore.storage.roles import ChunkIndex, Ledger, PackStore
from casstore.wire import Artifact, CommitRequest, FsckReport, Label, PackStored, decode_bitmap

Extents = list[tuple[ChunkId, int, int, int]]
Object = tuple[ObjectKind, bytes, bytes]


class File(NamedTuple):
    """A file with its permission bits."""

    data: bytes
    mode: int = 0o644


class Link(NamedTuple):
    """A symbolic link."""

    target: bytes


class Directory(NamedTuple):
    """A directory; parents need not be named."""

    mode: int = 0o755


Files = Mapping[bytes, File | Link | Directory | bytes]


class BuiltTree(NamedTuple):
    """A tree and everything that it needs."""

    digest: TreeDigest
    root: bytes
    pages: list[BuiltPage]
    layouts: dict[PageDigest, bytes]
    chunks: dict[ChunkId, bytes]

    def objects(self) -> list[Object]:
        """Everything as (kind, id, plain bytes): chunks, then pages with their layouts, then the root."""
        found: list[Object] = [(ObjectKind.CHUNK, id, plain) for id, plain in self.chunks.items()]
        for page in self.pages:
            found.append((ObjectKind.PAGE, page.ref.digest, page.data))
            found.append((ObjectKind.LAYOUT, page.ref.digest, self.layouts[page.ref.digest]))
        return [*found, (ObjectKind.ROOT, self.digest, self.root)]

    def request(self, name: str | None = None, labels: Mapping[str, str] | None = None) -> CommitRequest:
        """What commits it."""
        pairs = [Label(k, v) for k, v in (labels or {}).items()]
        return CommitRequest(kind="tree", digest=str(self.digest), name=name, labels=pairs)


class BuiltBlob(NamedTuple):
    """A blob and everything that it needs."""

    digest: BlobDigest
    layout: bytes
    chunks: dict[ChunkId, bytes]

    def objects(self) -> list[Object]:
        """Everything as (kind, id, plain bytes)."""
        chunks: list[Object] = [(ObjectKind.CHUNK, id, plain) for id, plain in self.chunks.items()]
        return [*chunks, (ObjectKind.LAYOUT, self.digest, self.layout)]

    def request(self, name: str | None = None) -> CommitRequest:
        """What commits it."""
        return CommitRequest(kind="blob", digest=str(self.digest), name=name)


class Content:
    """The content services, composed; in memory unless roles are handed in."""

    def __init__(
        self,
        store: PackStore | None = None,
        index: ChunkIndex | None = None,
        ledger: Ledger | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.store: PackStore = store or MemoryPackStore()
        self.index: ChunkIndex = index or MemoryChunkIndex()
        self.ledger: Ledger = ledger or MemoryLedger()
        self.packs = PackService(self.store, self.index)
        self.presence = Presence(self.packs)
        self.artifacts = ArtifactService(self.ledger, self.clock)
        self.pushes = PushService(self.packs, self.presence, self.artifacts, self.clock)
        self.trees = TreeService(self.packs, self.presence)
        self.blobs = BlobService(self.packs)
        self.snapshots = SnapshotService(self.packs, self.presence, self.trees, self.blobs)
        self.diff = DiffService(self.packs, self.trees, self.snapshots)

    def restart(self) -> Content:
        """The same store after the process has ended and begun again."""
        return Content(self.store, self.index, self.ledger, self.clock)

    def send(self, push: PushId, packs: Iterable[tuple[PackId, bytes]], *, piece: int = 1 << 16) -> list[PackStored]:
        """Send packs in pieces of ``piece`` bytes."""
        answers = []
        for pack, data in packs:
            ingest = self.pushes.begin_pack(push, pack)
            try:
                for at in range(0, len(data), piece):
                    ingest.feed(data[at : at + piece])
                answers.append(ingest.finish())
            finally:
                ingest.abort()
        return answers

    def push(
        self,
        built: BuiltTree | BuiltBlob,
        name: str | None = None,
        *,
        by: str = "builder",
        pool: Executor | None = None,
        width: int = 1,
    ) -> Artifact:
        """Push everything that a tree or blob needs and commit it."""
        push = new_push()
        self.pushes.missing(push, ObjectKind.CHUNK, b"".join(built.chunks))
        self.send(push, encode_packs(built.objects()))
        return self.pushes.commit(push, built.request(name), by=by, pool=pool, width=width)


def new_push() -> PushId:
    """The id of a new push."""
    return PushId(os.urandom(PushId.SIZE))


def build_tree(files: Files, *, parameters: Parameters = DEFAULT_PARAMETERS) -> BuiltTree:
    """Make a tree of files, links and directories; a value of ``bytes`` is a plain file."""
    chunks: dict[ChunkId, bytes] = {}
    entries, extents = _lay_out(_with_parents(files), chunks, parameters)
    cutter = PageCutter()
    pages = [page for entry in entries if (page := cutter.add(entry)) is not None]
    pages += cutter.finish()
    layouts: dict[PageDigest, bytes] = {}
    for page in pages:
        builder = LayoutBuilder()
        for entry in page.entries:
            if entry.type is EntryType.FILE and entry.size:
                builder.add_file(extents[entry.path])
        layouts[page.ref.digest] = builder.encode()
    root = encode_root([page.ref for page in pages])
    return BuiltTree(tree_digest(root), root, pages, layouts, chunks)


def build_blob(data: bytes, *, parameters: Parameters = DEFAULT_PARAMETERS) -> BuiltBlob:
    """Make a blob."""
    chunks: dict[ChunkId, bytes] = {}
    builder = LayoutBuilder()
    if data:
        builder.add_file(_cut(data, chunks, FileChunker(parameters)))
    return BuiltBlob(BlobDigest(blake3_256(data)), builder.encode(), chunks)


def encode_packs(
    objects: Sequence[Object], *, target_bytes: int = PACK_TARGET_BYTES, pack: PackId | None = None
) -> Iterator[tuple[PackId, bytes]]:
    """Put objects into packs of about ``target_bytes``; ``pack`` names the first one."""
    encoder: PackEncoder | None = None
    parts: list[bytes] = []
    for kind, id, plain in objects:
        codec, stored = seal_frame(kind, id, plain)
        if encoder is not None and (encoder.size + len(stored) > target_bytes or not encoder.fits(len(stored))):
            yield encoder.pack, b"".join((*parts, encoder.finish()))
            encoder = None
        if encoder is None:
            encoder = PackEncoder(pack or PackId(os.urandom(PackId.SIZE)))
            pack = None
            parts = [encoder.header()]
        parts.append(encoder.add(kind, id, codec, stored, len(plain)))
    if encoder is not None:
        yield encoder.pack, b"".join((*parts, encoder.finish()))


def read_directory(path: str | os.PathLike[str]) -> dict[bytes, File | Link | Directory | bytes]:
    """The content of a real directory, as :func:`build_tree` takes it."""
    found: dict[bytes, File | Link | Directory | bytes] = {}
    top = os.fsencode(path)
    for directory, names, files in os.walk(top):
        for name in names + files:
            full = os.path.join(directory, name)
            relative = os.path.relpath(full, top)
            status = os.lstat(full)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                found[relative] = Link(os.readlink(full))
            elif stat.S_ISDIR(status.st_mode):
                found[relative] = Directory(mode)
            elif stat.S_ISREG(status.st_mode):
                with open(full, "rb") as file:
                    found[relative] = File(file.read(), mode)
    return found


def _with_parents(files: Files) -> dict[bytes, File | Link | Directory | bytes]:
    whole: dict[bytes, File | Link | Directory | bytes] = {b"": Directory()}
    for path in files:
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            whole.setdefault(b"/".join(parts[:depth]), Directory())
    return {**whole, **files}


def _lay_out(
    files: Mapping[bytes, File | Link | Directory | bytes], chunks: dict[ChunkId, bytes], parameters: Parameters
) -> tuple[list[TreeEntry], dict[bytes, Extents]]:
    entries: list[TreeEntry] = []
    extents: dict[bytes, Extents] = {}
    chunker, bundles = FileChunker(parameters), BundleCutter(parameters)
    bundle: list[tuple[bytes, bytes]] = []

    def close_bundle() -> None:
        plain = b"".join(data for _, data in bundle)
        id = ChunkId(blake3_256(plain))
        chunks[id] = plain
        offset = 0
        for path, data in bundle:
            extents[path] = [(id, len(plain), offset, len(data))]
            offset += len(data)
        bundle.clear()

    for path in sorted(files):
        item = files[path]
        if isinstance(item, Link):
            entries.append(TreeEntry(path, EntryType.LINK, 0, target=item.target))
            continue
        if isinstance(item, Directory):
            entries.append(TreeEntry(path, EntryType.DIRECTORY, item.mode))
            continue
        data, mode = item if isinstance(item, File) else File(item)
        digest = BlobDigest(blake3_256(data))
        entries.append(TreeEntry(path, EntryType.FILE, mode, len(data), digest))
        if len(data) >= parameters.small_file_bytes:
            extents[path] = _cut(data, chunks, chunker)
        elif data:
            before, after = bundles.add(digest, len(data))
            if before:
                close_bundle()
            bundle.append((path, data))
            if after:
                close_bundle()
    if bundle:
        close_bundle()
    return entries, extents


def _cut(data: bytes, chunks: dict[ChunkId, bytes], chunker: FileChunker) -> Extents:
    extents: Extents = []
    offset = 0
    for length in chunker.cut(data):
        plain = data[offset : offset + length]
        id = ChunkId(blake3_256(plain))
        chunks[id] = plain
        extents.append((id, length, 0, length))
        offset += length
    return extents


def open_local(directory: str | os.PathLike[str]) -> tuple[Content, Callable[[], None]]:
    """The content services on a store directory, made if it is not there, and what closes it."""
    files = LocalFiles()
    if not os.path.exists(directory):
        Home.create(directory, files)
    home = Home.open(directory, files)
    store, index, ledger = home.open_packs(), home.open_index(), home.open_ledger()

    def close() -> None:
        for part in (store, index, ledger, home):
            part.close()

    return Content(store, index, ledger), close


def rewrite_pack(store: PackStore, pack: PackId, data: bytes) -> None:
    """Put other bytes under a pack's name, as a failing disk would."""
    store.delete(pack)
    writer = store.create(pack)
    writer.write(data)
    writer.commit()


def flip_bit(store: PackStore, pack: PackId, offset: int, bit: int = 0) -> None:
    """Flip one bit of a stored pack."""
    data = bytearray(store.read(pack, 0, store.size(pack)))
    data[offset] ^= 1 << bit
    rewrite_pack(store, pack, bytes(data))


def check(content: Content, *, full: bool = False, pool: Executor | None = None, width: int = 1) -> FsckReport:
    """What fsck says of the content."""
    findings = Findings()
    fsck_content(content.packs, content.artifacts, content.ledger, findings, full=full, pool=pool, width=width)
    return findings.report()


def some_files(count: int = 300, *, seed: int = 1) -> dict[bytes, bytes | File | Link | Directory]:
    """Many small files, large ones, links, empty directories: always the same ones."""
    source = random.Random(seed)
    files: dict[bytes, bytes | File | Link | Directory] = {
        b"dir%d/f%d" % (n % 7, n): source.randbytes(source.randrange(0, 2000)) for n in range(count)
    }
    files[b"large"] = source.randbytes(700_000)
    files[b"one-chunk"] = source.randbytes(65_536)
    files[b"zeros"] = bytes(5_000_000)
    files[b"link"] = Link(b"../../etc/passwd")
    files[b"empty/below"] = Directory(0o700)
    files[b"tool"] = File(b"#!/bin/sh\n", 0o4755)
    return files


def missing(content: Content, kind: ObjectKind, ids: list[bytes]) -> list[bool]:
    """What a new push that asks for ``ids`` is told is missing."""
    return decode_bitmap(content.pushes.missing(new_push(), kind, b"".join(ids)), len(ids))


def commit_objects(
    content: Content, objects: list[tuple[ObjectKind, bytes, bytes]], request: CommitRequest
) -> Artifact:
    """Push just these objects and commit."""
    push = new_push()
    content.pushes.missing(push, ObjectKind.CHUNK, b"")
    content.send(push, encode_packs(objects))
    return content.pushes.commit(push, request, by="builder")
