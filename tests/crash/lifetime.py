"""A store's life as a build agent and a deployer lead it, and what must be true of the store after any death.

:class:`Script` is what is asked: two pushes, two snapshots, two flips, a token and a rollback, always the same bytes, signed once.
:class:`Life` is one process that is asked it in order; a step that fails is asked again, as a client does.
:func:`check_store` opens what is left and holds it against what was answered.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from casstore.admin import Created, create_store
from casstore.clock import ManualClock
from casstore.engine.pointers import SignedSubmission
from casstore.errors import CasstoreError, OutcomeUnknown, PointerNotFound
from casstore.formats.acts import AnyArgs, Member, SnapshotArgs, args_of, flip_args
from casstore.formats.checkpoint import open_checkpoint
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.layout import decode_layout
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import Component, Snapshot, encode_snapshot, snapshot_digest
from casstore.formats.tree import EntryType, decode_page
from casstore.hashing import blake3_256
from casstore.ids import ComponentName, PackId, PointerName, PushId, TreeDigest
from casstore.storage.local.files import Files
from casstore.store import Store
from casstore.wire import Artifact, Submitted, Token
from tests.support.treebuild import BuiltTree, File, Link, build_tree, encode_packs

API: Final = PointerName("prod/api")
WEB: Final = PointerName("prod/web")
PUSHES: Final = ("push one", "push two")
ACTS: Final = ("publish one", "flip to one", "publish two", "flip to two", "roll back")
STEPS: Final = (
    "push one",
    "publish one",
    "flip to one",
    "make a token",
    "push two",
    "publish two",
    "flip to two",
    "roll back",
)
AFTERWARDS: Final = ("push three", "publish three", "flip web")
"""What the store must still take after whatever happened."""
NOTICES: Final = frozenset({"orphan-pack", "unfinished-push"})
"""What a crash may leave behind, and nothing else."""
Answer = Artifact | Submitted | Token
_PIECE_BYTES: Final = 40_000


def release(name: str) -> dict[bytes, bytes | File | Link]:
    """The files of a release: half of them are the same in all releases."""
    own, shared = random.Random(name), random.Random("shared")
    return {
        b"bin/tool": File(shared.randbytes(90_000), 0o755),
        b"etc/empty": b"",
        b"etc/name": name.encode(),
        b"lib/data": own.randbytes(70_000),
        b"lib/link": Link(b"../bin/tool"),
        b"lib/small": own.randbytes(3_000),
    }


class Sending(NamedTuple):
    """One push: its tree, and the pack that brings all of it."""

    push: PushId
    tree: BuiltTree
    pack: PackId
    data: bytes


def sending_of(name: str) -> Sending:
    """The push of a release, always the same."""
    tree = build_tree(release(name))
    ids = hashlib.sha256(name.encode()).digest()
    [(pack, data)] = encode_packs(tree.objects(), pack=PackId(ids[16:]))
    return Sending(PushId(ids[:16]), tree, pack, data)


def send_pack(store: Store, sending: Sending, push: PushId | None = None) -> None:
    """Ask what is missing, and send everything."""
    push = push or sending.push
    store.pushes.missing(push, ObjectKind.CHUNK, b"".join(sending.tree.chunks))
    ingest = store.pushes.begin_pack(push, sending.pack)
    try:
        for at in range(0, len(sending.data), _PIECE_BYTES):
            ingest.feed(sending.data[at : at + _PIECE_BYTES])
        ingest.finish()
    finally:
        ingest.abort()


class Script:
    """What is asked of a store, the same in every run.

    Args:
        directory: where the store is made.
    """

    def __init__(self, directory: str) -> None:
        self.created: Created = create_store(directory, clock=ManualClock(), randomness=random.Random(0).randbytes)
        self.sendings: dict[str, Sending] = {}
        self.documents: dict[str, bytes] = {}
        self._signed: dict[str, SignedSubmission] = {}
        for name in ("one", "two", "three"):
            sending = self.sendings[f"push {name}"] = sending_of(name)
            component = Component(ComponentName("app"), "tree", sending.tree.digest)
            self.documents[f"publish {name}"] = encode_snapshot(Snapshot(components=(component,)))
        self.snapshots = {step.split()[1]: snapshot_digest(data) for step, data in self.documents.items()}
        one, two, three = (self.snapshots[name] for name in ("one", "two", "three"))
        # The genesis is entry 0, so the acts are entries 1 to 5.
        back = [Member(expect=4, pointer=API, to=one)]
        self._acts: dict[str, AnyArgs] = {
            "flip to one": flip_args("init", [Member(expect=None, pointer=API, to=one)]),
            "flip to two": flip_args("deploy", [Member(expect=2, pointer=API, to=two)]),
            "roll back": flip_args("rollback", back, resolve="previous", left=(True, True)),
            "flip web": flip_args("init", [Member(expect=None, pointer=WEB, to=three)]),
        }
        for step, document in self.documents.items():
            self._acts[step] = SnapshotArgs(digest=snapshot_digest(document), parents=[], size=len(document))

    def _sign(self, store: Store, step: str) -> SignedSubmission:
        """The intent of a step, signed over the log as it is when the step is first asked."""
        if step not in self._signed:
            now, published = store.clock.now_ms(), store.log.published()
            intent = Intent(
                act="snapshot" if step in self.documents else "flip",
                args=args_of(self._acts[step]),
                exp=now + 60_000,
                iat=now,
                log=self.created.origin,
                nonce=hashlib.sha256(step.encode()).hexdigest()[:32],
                policy=1,
                seen_root=published.root,
                seen_size=published.size,
                why=step,
            )
            self._signed[step] = SignedSubmission(sign_intent(encode_intent(intent), [self.created.operator_key]))
        return self._signed[step]

    def open(self, directory: str, files: Files, *, seed: int) -> Store:
        """Open the store in a world in which nothing is left to chance."""
        return Store.open(directory, clock=ManualClock(), files=files, randomness=random.Random(seed).randbytes)

    def ask(self, store: Store, step: str) -> Answer:
        """Have one step done; asked again, it must not be done twice."""
        if step in self.sendings:
            return self._push(store, step)
        if step == "make a token":
            return store.tokens.create("ci", ["operate"])
        if step in self.documents:
            return store.publish_snapshot(self.documents[step], self._sign(store, step))
        return store.submit(self._sign(store, step))

    def _push(self, store: Store, step: str) -> Artifact:
        sending = self.sendings[step]
        send_pack(store, sending)
        return store.pushes.commit(sending.push, sending.tree.request(step.split()[1]), by="builder")


class Life:
    """One process that is asked steps in order.

    What fails is asked once more.  After an unknown outcome the store must be sealed, so the second time must end as the
    first; after any other failure nothing may be in the way of a success, unless the disk stays dead.

    Args:
        script: what is asked.
        directory: the store.
        files: with or without a fault.
        steps: which steps.
        is_disk_dead: whether the fault is for good.
        before: what a process before this one had answered and shown.
    """

    def __init__(
        self,
        script: Script,
        directory: str,
        files: Files,
        steps: Sequence[str] = STEPS,
        *,
        is_disk_dead: bool = False,
        before: Life | None = None,
    ) -> None:
        self.script = script
        self.answered: dict[str, Answer] = dict(before.answered) if before else {}
        self.asked: set[str] = set(before.asked) if before else set()
        self.shown: dict[int, bytes] = dict(before.shown) if before else {}
        """Size and root of every checkpoint that someone may have seen."""
        self.errors: list[CasstoreError] = []
        self._is_disk_dead = is_disk_dead
        self._seed = 1 if before is None else 10  # no two processes draw the same random numbers
        store = self._open(directory, files)
        if store is None:
            return
        try:
            self._look(store)
            for step in steps:
                self.asked.add(step)
                if not self._do(store, step):
                    break
        finally:
            store.close()

    def told(self) -> Hashable:
        """What was answered and what was asked."""
        return frozenset(self.answered), frozenset(self.asked)

    def _open(self, directory: str, files: Files) -> Store | None:
        try:
            return self.script.open(directory, files, seed=self._seed)
        except CasstoreError as error:
            self.errors.append(error)
        if self._is_disk_dead:
            return None
        # A disk that failed once must not leave a lock or an environment behind: the supervisor starts the next server.
        return self.script.open(directory, files, seed=self._seed + 1)

    def _do(self, store: Store, step: str) -> bool:
        try:
            self.answered[step] = self.script.ask(store, step)
        except CasstoreError as error:
            self.errors.append(error)
            self._look(store)
            return self._do_again(store, step, error)
        self._look(store)
        return True

    def _do_again(self, store: Store, step: str, error: CasstoreError) -> bool:
        again: CasstoreError | None = None
        try:
            self.answered[step] = self.script.ask(store, step)
        except CasstoreError as found:
            again = found
        self._look(store)
        if again is None:
            assert not isinstance(error, OutcomeUnknown), f"{step}: done after {error!r}"
        elif not self._is_disk_dead:
            sealed = isinstance(error, OutcomeUnknown) and isinstance(again, OutcomeUnknown)
            assert sealed, f"{step}: {error!r}, and with a disk that works again {again!r}"
        return again is None

    def _look(self, store: Store) -> None:
        """What a reader is shown now: what was answered, not more, or nothing at all."""
        published = store.log.published()
        assert self.shown.setdefault(published.size, published.root) == published.root
        flips = [
            answer.entry
            for step, answer in self.answered.items()
            if step in ACTS and "publish" not in step and isinstance(answer, Submitted)
        ]
        try:
            found = store.pointers.read.pointer(API).flip
        except OutcomeUnknown:
            return
        except PointerNotFound:
            found = None
        # What the process before this one did in doubt may be shown as well.
        assert found == max(flips, default=None) or self.asked - set(self.answered)


class LifeWorld:
    """Implements :class:`tests.crash.enumeration.World`: the life above."""

    name = "push, publish, flip, token, roll back"

    def prepare(self, directory: str) -> None:
        self.script = Script(directory)

    def live(self, directory: str, files: Files, *, is_disk_dead: bool) -> Life:
        return Life(self.script, directory, files, is_disk_dead=is_disk_dead)

    def judge(self, directory: str, life: Life) -> None:
        check_store(directory, life)


def read_tree(store: Store, digest: TreeDigest) -> dict[bytes, bytes | File | Link]:
    """Put a tree's files together from its pages, layouts and chunks."""
    found: dict[bytes, bytes | File | Link] = {}
    for ref in store.trees.pages(digest):
        record = store.trees.page_record(ref.digest)
        layout = decode_layout(record.layout)
        chunks = [store.packs.read_object(ObjectKind.CHUNK, id) for id, _ in layout.chunks]
        rows = iter(layout.files)
        for entry in decode_page(record.page):
            if entry.type is EntryType.LINK:
                found[entry.path] = Link(entry.target)
            elif entry.type is EntryType.FILE:
                row = next(rows) if entry.size else []
                data = b"".join(chunks[e.chunk][e.offset : e.offset + e.length] for e in row)
                assert blake3_256(data) == entry.digest
                found[entry.path] = File(data, entry.mode)
    return found


def as_files(files: Mapping[bytes, bytes | File | Link]) -> dict[bytes, File | Link]:
    return {path: File(item) if isinstance(item, bytes) else item for path, item in files.items()}


def check_store(directory: str, life: Life) -> None:
    """Hold what the next process finds against what the last one answered and showed; then go on."""
    script = life.script
    with script.open(directory, Files(), seed=3) as store:
        assert store.read_only is None
        assert os.listdir(os.path.join(directory, "tmp")) == [], "opening clears what had no name"
        report = store.fsck(full=True)
        assert report.ok, report.findings
        assert {finding.code for finding in report.findings} <= NOTICES, report.findings
        names = {artifact.name for artifact in store.artifacts.list().artifacts}
        assert {step.split()[1] for step in PUSHES if step in life.answered} <= names
        assert names <= {step.split()[1] for step in PUSHES if step in life.asked}
        check_answered(store, life)
        answered = dict(life.answered)
        for step in (*STEPS, *AFTERWARDS):
            answer = script.ask(store, step)
            if step in answered and step in ACTS:
                before = answered[step]
                assert isinstance(answer, Submitted)
                assert isinstance(before, Submitted)
                assert (answer.replayed, answer.entry) == (True, before.entry), step
        assert [item.flip for item in store.pointers.read.history(API).items] == [5, 4, 2]
        assert store.log.size == 1 + len(ACTS) + 2
        report = store.fsck()
        assert report.ok, report.findings


def check_answered(store: Store, life: Life) -> None:
    """Everything that was answered is there as it was answered, and whatever else is there is whole."""
    trees = {artifact.digest for artifact in store.artifacts.list().artifacts}
    assert {str(life.script.sendings[step].tree.digest) for step in PUSHES if step in life.answered} <= trees
    for step, sending in life.script.sendings.items():
        if str(sending.tree.digest) in trees:
            assert read_tree(store, sending.tree.digest) == as_files(release(step.split()[1]))
            trees.discard(str(sending.tree.digest))
    assert not trees
    token = life.answered.get("make a token")
    if token is not None:
        assert isinstance(token, Token)
        assert store.tokens.authenticate(token.secret or "").principal == "ci"
    _check_log(store, life)


def _check_log(store: Store, life: Life) -> None:
    script, trust = life.script, life.script.created.trust
    for size, root in life.shown.items():
        note = store.log.checkpoint_of(size)
        opened = open_checkpoint(note, trust.log_verifier, trust.origin, [trust.clock_verifier])
        assert (opened.checkpoint.size, opened.checkpoint.root) == (size, root)
    done = ACTS[: store.log.size - 1]
    assert {step for step in ACTS if step in life.answered} <= set(done) <= life.asked
    for index, step in enumerate(done, 1):
        answer = life.answered.get(step)
        assert answer is None or (isinstance(answer, Submitted) and answer.entry == index)
    targets = {2: "one", 4: "two", 5: "one"}
    flips = [index for index in targets if index < store.log.size]
    assert list(_history(store)) == [(index, str(script.snapshots[targets[index]])) for index in reversed(flips)]
    if flips:
        pointer = store.pointers.read.pointer(API, proof=True)
        assert (pointer.flip, pointer.seq) == (flips[-1], len(flips))
        assert pointer.snapshot == str(script.snapshots[targets[flips[-1]]])
    for step in done:
        if step in script.documents:
            assert store.snapshots.completeness(snapshot_digest(script.documents[step])).complete


def _history(store: Store) -> Iterator[tuple[int, str | None]]:
    try:
        items = store.pointers.read.history(API).items
    except PointerNotFound:
        return
    for item in items:
        yield item.flip, item.to
