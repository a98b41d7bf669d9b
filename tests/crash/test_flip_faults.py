"""Fail every single disk operation of a server's life, from opening the store to a rollback, and look at what is left.

The promise under test: a flip that was answered is there, with everything that it needs; one that was not answered happened
whole or not at all, and asking again with the same intent succeeds either way; and nothing that anyone may have seen signed
is ever contradicted.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from casstore.admin import Created, create_store
from casstore.clock import ManualClock
from casstore.engine.pointers import SignedSubmission
from casstore.errors import CasstoreError, NotInitialised, OutcomeUnknown, StoreFull, StoreNotFound
from casstore.formats.acts import AnyArgs, Member, SnapshotArgs, args_of, flip_args
from casstore.formats.checkpoint import open_checkpoint
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.snapshot import Snapshot, encode_snapshot, snapshot_digest
from casstore.ids import PointerName
from casstore.storage.local.files import Files
from casstore.store import Store
from casstore.wire import Submitted
from tests.crash.faulty import Effect, Fault, FaultyFiles, Loss, fingerprint, picture_of, restore

API = PointerName("prod/api")
ONE, TWO = (encode_snapshot(Snapshot(metadata={"name": name})) for name in ("one", "two"))
STEPS = ("publish one", "flip to one", "token", "publish two", "flip to two", "rollback")


class Life:
    """One process that has a store open and is asked for the steps in order; it stops at the first that fails."""

    def __init__(self, directory: str, files: Files, created: Created) -> None:
        self.created = created
        self.answered: dict[str, Submitted] = {}
        self.asked: dict[str, SignedSubmission] = {}
        self.token: str | None = None
        self.errors: list[CasstoreError] = []
        self.shown: dict[int, bytes] = {}
        """Size and root of every checkpoint that someone may have seen."""
        try:
            self.store = Store.open(directory, clock=ManualClock(), files=files, randomness=random.Random(1).randbytes)
        except CasstoreError as error:
            self.errors.append(error)
            return
        try:
            for step in STEPS:
                self.look()
                self.run(step)
                self.look()
        except CasstoreError as error:
            self.errors.append(error)
            self.look()
        finally:
            self.store.close()

    def look(self) -> None:
        published = self.store.log.published()
        assert self.shown.setdefault(published.size, published.root) == published.root

    def run(self, step: str) -> None:
        """Do one step, or do it again."""
        if step == "token":
            if self.token is None:
                self.token = self.store.tokens.create("ci", ["operate"]).secret
            return
        if step not in self.asked:
            self.asked[step] = self.sign(STEPS.index(step), *self.act(step))
        if step.startswith("publish"):
            document = ONE if step.endswith("one") else TWO
            self.answered[step] = self.store.publish_snapshot(document, self.asked[step])
        else:
            self.answered[step] = self.store.submit(self.asked[step])

    def act(self, step: str) -> tuple[str, AnyArgs]:
        one, two = snapshot_digest(ONE), snapshot_digest(TWO)
        if step.startswith("publish"):
            document = ONE if step.endswith("one") else TWO
            return "snapshot", SnapshotArgs(digest=snapshot_digest(document), parents=[], size=len(document))
        if step == "flip to one":
            return "flip", flip_args("init", [Member(expect=None, pointer=API, to=one)])
        expect = self.store.pointers.read.pointer(API).flip
        if step == "flip to two":
            return "flip", flip_args("deploy", [Member(expect=expect, pointer=API, to=two)])
        member = Member(expect=expect, pointer=API, to=one)
        return "flip", flip_args("rollback", [member], resolve="previous", left=(True, True))

    def sign(self, number: int, act: str, args: AnyArgs) -> SignedSubmission:
        now, published = self.store.clock.now_ms(), self.store.log.published()
        intent = Intent(
            act=act,
            args=args_of(args),
            exp=now + 60_000,
            iat=now,
            log=self.created.origin,
            nonce=f"{number:032x}",
            policy=1,
            seen_root=published.root,
            seen_size=published.size,
            why="because",
        )
        return SignedSubmission(sign_intent(encode_intent(intent), [self.created.operator_key]))


def check_store(directory: str, life: Life) -> None:
    """Hold what the next process finds against what the last one answered and showed."""
    trust = life.created.trust
    with Store.open(directory, clock=ManualClock(), randomness=random.Random(2).randbytes) as store:
        assert store.read_only is None
        report = store.fsck()
        assert report.ok, report.findings
        for size, root in life.shown.items():
            note = store.log.checkpoint_of(size)
            assert open_checkpoint(note, trust.log_verifier, trust.origin).checkpoint.root == root
        if life.token is not None:
            assert store.tokens.authenticate(life.token).principal == "ci"
        before, answered = store.log.size, dict(life.answered)
        life.store = store
        for step in STEPS:
            life.run(step)
            if step in answered:
                assert life.answered[step].replayed, step
                assert life.answered[step].entry == answered[step].entry
        assert store.log.size == len(STEPS)  # all steps but the token are entries, and so is the genesis
        assert before >= 1 + len(answered)
        pointer = store.pointers.read.pointer(API, proof=True)
        assert (pointer.snapshot, pointer.seq, pointer.kind) == (str(snapshot_digest(ONE)), 3, "rollback")
        report = store.fsck(full=True)
        assert report.ok, report.findings


class Bench:
    """A place to run one life after another, each from the same start, with a fault in each."""

    def __init__(self, scratch: Path) -> None:
        self._directory = str(scratch / "store")
        self._left = str(scratch / "left")
        self._checked: set[tuple[bytes, int, bool]] = set()
        self.created = create_store(self._directory, clock=ManualClock(), randomness=random.Random(0).randbytes)
        self._start = picture_of(self._directory)
        files, life = self.run(None)
        assert life.errors == []
        self.calls = files.calls

    def run(self, fault: Fault | None) -> tuple[FaultyFiles, Life]:
        restore(self._start, self._directory)
        files = FaultyFiles(self._directory, fault)
        life = Life(self._directory, files, self.created)
        assert fault is None or files.has_failed
        self.check(files, life)
        return files, life

    def check(self, files: FaultyFiles, life: Life) -> None:
        """Whatever the next process may find, hold it against what was answered."""
        answered, asked, token = dict(life.answered), dict(life.asked), life.token
        for loss in Loss:
            picture = files.picture(loss)
            key = (fingerprint(picture), len(answered), token is None)
            if key in self._checked:
                continue
            restore(picture, self._left)
            life.answered, life.asked, life.token = dict(answered), dict(asked), token
            try:
                check_store(self._left, life)
            except (AssertionError, CasstoreError) as error:
                what = files.calls[files.fault.at] if files.fault else "nothing"
                raise AssertionError(f"{files.fault} in {what!r}, then {loss}: {error!r}") from error
            self._checked.add(key)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("effect", list(Effect), ids=lambda effect: effect.value)
def test_any_operation_may_fail(bench: Bench, effect: Effect, for_good: bool) -> None:
    """A failing disk or a crash at any point costs nobody a flip that was answered, and retrying always ends well."""
    assert {"commit", "fsync", "fsync_dir", "link_new", "write"} <= set(bench.calls)
    for at, name in enumerate(bench.calls):
        if effect is not Effect.HALF or name == "write":
            bench.run(Fault(at, effect, for_good))


def test_full_disk_never_loses_the_log(bench: Bench) -> None:
    """Each refusal for want of space is clean: the same request succeeds once there is space."""
    refused = 0
    for at, name in enumerate(bench.calls):
        if name in {"write", "open_write", "commit"}:
            _, life = bench.run(Fault(at, number=errno.ENOSPC))
            assert all(isinstance(error, StoreFull | OutcomeUnknown) for error in life.errors)
            refused += any(isinstance(error, StoreFull) for error in life.errors)
    assert refused >= 5


def test_interrupted_creation_is_not_a_store(tmp_path: Path) -> None:
    """A store that was half made must say so, not open without its genesis."""
    above, left = tmp_path / "above", tmp_path / "left"

    def make(fault: Fault | None) -> tuple[FaultyFiles, Created | None]:
        restore({}, str(above))
        files = FaultyFiles(str(above), fault)
        try:
            made = create_store(
                above / "store", clock=ManualClock(), files=files, randomness=random.Random(0).randbytes
            )
        except CasstoreError:
            return files, None
        return files, made

    files, made = make(None)
    assert made is not None
    calls = files.calls
    # The 256 directories for packs are alike.
    positions = [at for at, name in enumerate(calls) if name != "mkdir" or set(calls[at - 1 : at + 2]) != {"mkdir"}]
    checked: set[tuple[bytes, bool]] = set()
    for at in positions:
        files, made = make(Fault(at, Effect.ALL, for_good=True))
        for loss in Loss:
            picture = files.picture(loss)
            key = (fingerprint(picture), made is not None)
            if key not in checked:
                checked.add(key)
                restore(picture, str(left))
                try:
                    store = Store.open(left / "store", clock=ManualClock())
                except (NotInitialised, StoreNotFound):
                    assert made is None, (calls[at], loss)
                    continue
                with store:
                    assert store.log.size == 1
                    assert store.fsck().ok
                    if made is not None:
                        assert store.tokens.authenticate(made.token.secret or "").principal == "operator"
