"""A whole store on a disk that can lose its power, with build agents and a deployer, for machines that try everything.

The agents keep to the protocol: they ask what is missing and send only that, so a store that takes back what it said is found
out.  Time is a clock that moves when it is told to.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from casstore.admin import Created, create_store
from casstore.clock import ManualClock
from casstore.engine.pointers import SignedSubmission
from casstore.formats.acts import AnyArgs, Member, SnapshotArgs, args_of, flip_args
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.layout import decode_layout
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot, snapshot_digest
from casstore.ids import ComponentName, PackId, PointerName, PushId, SnapshotDigest, TreeDigest
from casstore.limits import PUSH_LEASE_MS
from casstore.store import Store
from casstore.wire import Artifact, Submitted, decode_bitmap
from tests.crash.faulty import Fault, FaultyFiles, Loss, restore
from tests.crash.lifetime import as_files, read_tree
from tests.support.treebuild import BuiltTree, Object, build_tree, encode_packs

LETTERS: Final = "abcdef"


@cache
def tree_of(letters: frozenset[str]) -> BuiltTree:
    """A tree with a file for each letter: trees that have a letter in common share its content."""
    return build_tree(files_of(letters))


def files_of(letters: frozenset[str]) -> dict[bytes, bytes]:
    """Each file is a chunk of its own, but for the smallest."""
    return {b"name": "".join(sorted(letters)).encode()} | {
        f"lib/{letter}".encode(): random.Random(letter).randbytes(66_000) for letter in letters
    }


class Push(NamedTuple):
    """A push under way, as its agent knows it."""

    id: PushId
    letters: frozenset[str]
    wanted: list[Object]
    """What the store said that it lacks."""
    process: int
    began_ms: int


class StoreWorld:
    """One store and its clock.  :meth:`close` at the end."""

    def __init__(self) -> None:
        shm = Path("/dev/shm")
        self._scratch = Path(tempfile.mkdtemp(prefix="casstore-machine-", dir=shm if shm.is_dir() else None))
        self.clock = ManualClock()
        self.directory = str(self._scratch / "store")
        self.created: Created = create_store(self.directory, clock=self.clock, randomness=random.Random(0).randbytes)
        self.process = 0
        self._number = 0
        self._open()

    def _open(self) -> None:
        self.process += 1
        self.files = FaultyFiles(self.directory)
        self.store = Store.open(
            self.directory, clock=self.clock, files=self.files, randomness=random.Random(self.process).randbytes
        )

    def close(self) -> None:
        """End the process, and remove everything."""
        self.store.close()
        shutil.rmtree(self._scratch)

    def reopen(self, loss: Loss = Loss.KEPT) -> None:
        """The process ends, the machine loses what is given, and the next process opens the store."""
        self.store.close()
        restore(self.files.picture(loss), self.directory)
        self._open()

    def arm(self, fault: Fault) -> None:
        """Let an operation of the disk fail; ``fault.at`` is counted from now."""
        self.files.fault = fault._replace(at=len(self.files.calls) + fault.at)

    def disarm(self) -> bool:
        """Whether the fault came; if not, it does not come any more."""
        came = self.files.has_failed
        self.files.fault = None
        return came

    def _id(self) -> bytes:
        self._number += 1
        return random.Random(f"id {self._number}").randbytes(16)

    # --- build agents ------------------------------------------------------------------------------------------------

    def begin_push(self, letters: Iterable[str]) -> Push:
        """Ask what is missing."""
        chosen = frozenset(letters)
        tree, push = tree_of(chosen), PushId(self._id())
        pages = [page.ref.digest for page in tree.pages]
        lacked = self._ask(push, ObjectKind.PAGE, pages)
        chunks = [id for page in lacked for id, _ in decode_layout(tree.layouts[page]).chunks]
        absent = self._ask(push, ObjectKind.CHUNK, list(dict.fromkeys(chunks)))
        keep = {(ObjectKind.CHUNK, id) for id in absent} | {(ObjectKind.ROOT, bytes(tree.digest))}
        keep |= {(kind, page) for page in lacked for kind in (ObjectKind.PAGE, ObjectKind.LAYOUT)}
        wanted = [(kind, id, data) for kind, id, data in tree.objects() if (kind, bytes(id)) in keep]
        return Push(push, chosen, wanted, self.process, self.clock.boottime_ms())

    def _ask(self, push: PushId, kind: ObjectKind, ids: Iterable[bytes]) -> list[bytes]:
        asked = [bytes(id) for id in ids]
        bitmap = decode_bitmap(self.store.pushes.missing(push, kind, b"".join(asked)), len(asked))
        return [id for id, is_missing in zip(asked, bitmap, strict=True) if is_missing]

    def send(self, push: Push) -> None:
        """Send what was missing, as one pack."""
        for pack, data in encode_packs(push.wanted, pack=PackId(self._id())):
            ingest = self.store.pushes.begin_pack(push.id, pack)
            try:
                ingest.feed(data)
                ingest.finish()
            finally:
                ingest.abort()

    def commit(self, push: Push, name: str) -> Artifact:
        return self.store.pushes.commit(push.id, tree_of(push.letters).request(name), by="builder")

    def is_live(self, push: Push) -> bool:
        """Whether the store still owes the push what it was told."""
        return push.process == self.process and self.clock.boottime_ms() - push.began_ms < PUSH_LEASE_MS

    def verify_tree(self, letters: frozenset[str]) -> None:
        """Read a tree back, bit for bit."""
        assert read_tree(self.store, tree_of(letters).digest) == as_files(files_of(letters))

    # --- the deployer ------------------------------------------------------------------------------------------------

    def _signed(self, act: str, args: AnyArgs) -> SignedSubmission:
        now, published = self.clock.now_ms(), self.store.log.published()
        intent = Intent(
            act=act,
            args=args_of(args),
            exp=now + 60_000,
            iat=now,
            log=self.created.origin,
            nonce=self._id().hex(),
            policy=1,
            seen_root=published.root,
            seen_size=published.size,
            why="",
        )
        return SignedSubmission(sign_intent(encode_intent(intent), [self.created.operator_key]))

    def publish(self, letters: frozenset[str]) -> SnapshotDigest:
        document = self.document(letters)
        digest = snapshot_digest(document)
        self.store.publish_snapshot(
            document, self._signed("snapshot", SnapshotArgs(digest=digest, parents=[], size=len(document)))
        )
        return digest

    def document(self, letters: frozenset[str]) -> bytes:
        component = Component(ComponentName("app"), "tree", TreeDigest(tree_of(letters).digest))
        return encode_snapshot(Snapshot(components=(component,)))

    def flip(self, name: PointerName, to: SnapshotDigest, expect: int | None) -> Submitted:
        args = flip_args(
            "init" if expect is None else "deploy",
            [Member(expect=expect, pointer=name, to=to)],
            clear=(expect is not None, expect is not None),
        )
        return self.store.submit(self._signed("flip", args))

    def rollback(self, name: PointerName) -> Submitted:
        """Back to what the store says is previous."""
        target = self.store.pointers.rollback_target(name)
        member = Member(expect=target.current.flip, pointer=name, to=SnapshotDigest.parse(target.target))
        args = flip_args("rollback", [member], resolve="previous", left=(True, True))
        return self.store.submit(self._signed("flip", args))
