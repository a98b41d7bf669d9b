"""A store with a clock that moves when told to, and the pushes, flips and collections of a long life on it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Self

from casstore.admin import create_store
from casstore.clock import ManualClock
from casstore.engine.gc.retention import Retention
from casstore.engine.gc.run import GcTimes
from casstore.engine.pointers import SignedSubmission
from casstore.formats.acts import AnyArgs, FlipKind, MarkArgs, Member, SnapshotArgs, args_of, flip_args
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot, snapshot_digest
from casstore.ids import ComponentName, PackId, PointerName, PushId, SnapshotDigest
from casstore.storage.local.files import Files
from casstore.store import Hands, Store
from casstore.wire import GcReport, Submitted
from tests.support.treebuild import BuiltBlob, BuiltTree, build_tree, encode_packs, new_push

HOUR_MS = 60 * 60 * 1000
DAY_MS = 24 * HOUR_MS
NOTICES = frozenset({"orphan-pack", "unfinished-push"})
_ACTS: dict[type, str] = {SnapshotArgs: "snapshot", MarkArgs: "mark"}


class GcWorld:
    """One store.

    Args:
        directory: where; made if it is not there.
        files: how bytes reach the disk.
    """

    def __init__(self, directory: Path, files: Files | None = None) -> None:
        self.clock = ManualClock()
        self.directory = directory
        self.created = create_store(directory, clock=self.clock)
        self.files_ = files
        self.store = Store.open(directory, clock=self.clock, files=files)
        self._flips: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def reopen(self) -> None:
        """The server is restarted."""
        self.store.close()
        self.store = Store.open(self.directory, clock=self.clock, files=self.files_)

    # --- what people do ------------------------------------------------------------------------------------------------

    def tree(self, name: str, size: int = 150_000) -> BuiltTree:
        """A tree of a few files of its own."""
        source = random.Random(name)
        return build_tree(
            {b"bin/tool": source.randbytes(size), b"etc/name": name.encode(), b"lib/x": source.randbytes(900)}
        )

    def push(self, name: str, *, size: int = 150_000, label: str | None = None) -> BuiltTree:
        """Push the tree of this name, under this name."""
        built = self.tree(name, size)
        self.push_built(built, label or name)
        return built

    def push_built(self, built: BuiltTree | BuiltBlob, name: str | None = None) -> None:
        """Push as a client does: only what is missing is sent."""
        push = new_push()
        self.send_missing(push, built)
        self.store.pushes.commit(push, built.request(name), by="builder")

    def send_missing(self, push: PushId, built: BuiltTree | BuiltBlob) -> list[PackId]:
        """The first two steps of a push."""
        from casstore.wire import decode_bitmap

        ids = list(built.chunks)
        bitmap = self.store.pushes.missing(push, ObjectKind.CHUNK, b"".join(ids))
        missing = {id for id, absent in zip(ids, decode_bitmap(bitmap, len(ids)), strict=True) if absent}
        objects = [item for item in built.objects() if item[0] is not ObjectKind.CHUNK or item[1] in missing]
        return self.send(push, objects)

    def send(self, push: PushId, objects: list[tuple[ObjectKind, bytes, bytes]]) -> list[PackId]:
        sent = []
        for pack, data in encode_packs(objects):
            ingest = self.store.pushes.begin_pack(push, pack)
            try:
                ingest.feed(data)
                ingest.finish()
            finally:
                ingest.abort()
            sent.append(pack)
        return sent

    def snapshot(self, *parts: BuiltTree) -> SnapshotDigest:
        """Publish a snapshot of trees."""
        components = tuple(
            Component(ComponentName(f"part{number}"), "tree", part.digest) for number, part in enumerate(parts)
        )
        document = encode_snapshot(Snapshot(components=components))
        digest = snapshot_digest(document)
        args = SnapshotArgs(digest=digest, parents=[], size=len(document))
        self.store.publish_snapshot(document, self.sign(args))
        return digest

    def document(self, part: BuiltTree, name: str) -> bytes:
        """A snapshot's document that nobody published."""
        return encode_snapshot(Snapshot(components=(Component(ComponentName(name), "tree", part.digest),)))

    def digest_of(self, document: bytes) -> SnapshotDigest:
        return snapshot_digest(document)

    def flip(self, pointer: str, to: SnapshotDigest, *, kind: FlipKind | None = None) -> Submitted:
        """Move a pointer."""
        answer = self.store.submit(self.flip_to(pointer, to, kind=kind))
        self._flips[pointer] = answer.entry
        return answer

    def flip_to(self, pointer: str, to: SnapshotDigest, *, kind: FlipKind | None = None) -> SignedSubmission:
        """The intent of a flip."""
        expect = self._flips.get(pointer)
        chosen: FlipKind = kind or ("init" if expect is None else "deploy")
        return self.sign(flip_args(chosen, [Member(expect=expect, pointer=PointerName(pointer), to=to)]))

    def mark_bad(self, pointer: str, snapshot: SnapshotDigest) -> None:
        self.store.submit(self.sign(MarkArgs(pointer=PointerName(pointer), snapshot=snapshot, verdict="bad")))

    def sign(self, args: AnyArgs) -> SignedSubmission:
        now, published = self.clock.now_ms(), self.store.log.published()
        intent = Intent(
            act=_ACTS.get(type(args), "flip"),
            args=args_of(args),
            exp=now + 60_000,
            iat=now,
            log=self.created.origin,
            nonce=os.urandom(16).hex(),
            policy=1,
            seen_root=published.root,
            seen_size=published.size,
            why="a test",
        )
        return SignedSubmission(sign_intent(encode_intent(intent), [self.created.operator_key]))

    # --- collecting ------------------------------------------------------------------------------------------------------

    def collect(
        self,
        retention: Retention = Retention(keep_artifacts=0),  # noqa: B008
        times: GcTimes = GcTimes(),  # noqa: B008
        *,
        dry_run: bool = False,
        pause: Callable[[], None] = lambda: None,
    ) -> GcReport:
        return self.store.collect(retention, times, dry_run=dry_run, hands=Hands(pause=pause))

    def collect_all(self, retention: Retention = Retention(keep_artifacts=0)) -> list[GcReport]:  # noqa: B008
        """Let everything go that nothing needs: condemned, grace, dropped, readers' grace, deleted."""
        reports = []
        for _ in range(3):
            reports.append(self.collect(retention))
            self.clock.advance(25 * HOUR_MS)
        return reports

    def age(self, days: int = 400) -> None:
        """Let everything that was pushed so far leave its window."""
        self.clock.advance(days * DAY_MS)

    # --- what must hold --------------------------------------------------------------------------------------------------

    def is_there(self, built: BuiltTree) -> bool:
        """Whether a reader finds the tree's root."""
        return self.store.packs.available(ObjectKind.ROOT, [built.digest])[0]

    def is_live(self, built: BuiltTree) -> bool:
        """Whether a push is told that it is there."""
        return all(
            all(self.store.packs.index.has(kind, [id]))
            for kind, id, _ in built.objects()
            if kind is not ObjectKind.LAYOUT
        )

    def is_whole(self, built: BuiltTree) -> bool:
        """Whether a reader can read every byte."""
        if not self.is_there(built):
            return False
        return all(self.store.packs.read_objects(kind, [id]) == [plain] for kind, id, plain in built.objects())

    def files(self) -> list[PackId]:
        """Packs on the disk."""
        return self.store.packs.store.list(limit=10_000)

    def check(self) -> None:
        """The judge finds nothing wrong."""
        report = self.store.fsck(full=True)
        assert [f for f in report.findings if f.severity == "error" or f.code not in NOTICES] == []
