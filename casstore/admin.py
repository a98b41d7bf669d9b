"""Making a store, and checking one that no server has open.

Owns what a new store begins with: the log key and the clock key (in the store), the operator's key and the first token
(handed to the caller, never kept), the first policy, the genesis entry and the trust file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import NamedTuple

from casstore.clock import Clock, SystemClock
from casstore.engine.artifacts import ArtifactService
from casstore.engine.findings import Findings
from casstore.engine.fsck import fsck_content
from casstore.engine.fsck_ledger import fsck_ledger
from casstore.engine.fsck_storage import report_damaged_storage, verify_storage
from casstore.engine.log import LogHead
from casstore.engine.packs import PackService
from casstore.engine.pointers import SignedSubmission
from casstore.engine.rebuild import IndexRebuild, RebuildProgress
from casstore.engine.tokens import ALL_PERMISSIONS
from casstore.errors import CasstoreError
from casstore.formats.acts import GenesisArgs, args_of, check_origin
from casstore.formats.canonical import decode_b64
from casstore.formats.intent import Intent, encode_intent, sign_intent
from casstore.formats.policy import first_policy
from casstore.formats.trust import TrustFile, encode_trust
from casstore.ids import PrincipalName
from casstore.limits import INTENT_MAX_MS
from casstore.merkle import EMPTY_ROOT, leaf_hash
from casstore.signing import SEED_BYTES, SignatureType, SigningKey
from casstore.storage.local.files import Files
from casstore.storage.local.home import Home
from casstore.store import CLOCK_KEY, LOG_KEY, Store, open_parts, read_keys
from casstore.wire import FsckReport, RebuildReport, Token


class Created(NamedTuple):
    """What a new store gives to whoever made it.  The key and the token's secret exist nowhere else."""

    origin: str
    trust: TrustFile
    operator: PrincipalName
    operator_key: SigningKey
    token: Token
    """Of the operator, with every permission and with its secret."""

    @property
    def trust_file(self) -> bytes:
        """The trust file's bytes, to be handed to everyone who verifies."""
        return encode_trust(self.trust)


def create_store(
    directory: str | os.PathLike[str],
    *,
    operator: str = "operator",
    origin: str | None = None,
    clock: Clock | None = None,
    files: Files | None = None,
    randomness: Callable[[int], bytes] = os.urandom,
) -> Created:
    """Make a store in a directory that is empty or not there.

    Args:
        directory: where; its parent must exist.
        operator: name of the first principal, who may do everything by signature.
        origin: name of the log, for ever; ``casstore/<16 random hex digits>`` by default.
        clock: where time comes from; the machine's by default.
        files: how bytes reach the disk.
        randomness: returns that many random bytes.

    Raises:
        DestinationExists: something is there.
        InvalidName: not a principal's name.
        MalformedDocument: an origin that no log can have.
        StoreFull, ReadOnly, Unavailable: the directory cannot be written.
        OutcomeUnknown: a write or fsync failed.

    Durability: all of it when this returns.  After an error or a crash what is there is not a store, and can be removed.
    """
    clock = clock or SystemClock()
    principal = PrincipalName.parse(operator)
    origin = f"casstore/{randomness(8).hex()}" if origin is None else origin
    check_origin(origin)
    log_key = SigningKey.generate(origin, randomness(SEED_BYTES))
    clock_key = SigningKey.generate(f"{origin}/clock", randomness(SEED_BYTES), SignatureType.COSIGNATURE)
    operator_key = SigningKey.generate(principal, randomness(SEED_BYTES))
    genesis = _genesis(log_key, operator_key, principal, clock.now_ms(), randomness(16).hex())
    made: list[Created] = []

    def initialise(home: Home) -> None:
        # ORDER: the keys before the entry that names them; the file that makes the directory a store comes last.
        home.write_key(LOG_KEY, log_key.encode().encode() + b"\n")
        home.write_key(CLOCK_KEY, clock_key.encode().encode() + b"\n")
        with ExitStack() as stack:
            store = Store.assemble(home, stack, clock=clock, randomness=randomness)
            store.submit(genesis)
            token = store.tokens.create(principal, ALL_PERMISSIONS)
            entry = decode_b64(store.log_reader.entry(0).entries[0].entry)
            trust = TrustFile(
                origin=origin,
                log_vkey=log_key.verifier.encode(),
                clock_vkey=clock_key.verifier.encode(),
                genesis_sha256=hashlib.sha256(entry).digest(),
                minimum_size=1,
                minimum_root=leaf_hash(entry),
            )
            made.append(Created(origin, trust, principal, operator_key, token))

    Home.create(directory, files or Files(), initialise)
    return made[0]


def _genesis(
    log_key: SigningKey, operator_key: SigningKey, principal: PrincipalName, now_ms: int, nonce: str
) -> SignedSubmission:
    policy = first_policy(principal, operator_key.verifier.encode(), log_key.verifier.encode())
    intent = Intent(
        act="genesis",
        args=args_of(GenesisArgs(policy=policy, prev=None)),
        exp=now_ms + INTENT_MAX_MS,
        iat=now_ms,
        log=log_key.name,
        nonce=nonce,
        policy=0,
        seen_root=EMPTY_ROOT,
        seen_size=0,
        why="a new store",
    )
    return SignedSubmission(sign_intent(encode_intent(intent), [operator_key]))


def fsck_directory(
    directory: str | os.PathLike[str],
    *,
    full: bool = False,
    files: Files | None = None,
    pool: Executor | None = None,
    width: int = 1,
) -> FsckReport:
    """Check a store that no server has open, a damaged one too.  Changes nothing but the unfinished files in ``tmp/``.

    Args:
        directory: the store.
        full: hash every byte of content and put every file together.
        files: how bytes are read.
        pool: threads that help with ``full``.
        width: how many threads work at most.

    Raises:
        StoreNotFound: no such directory.
        NotInitialised: the directory is not a store.
        StoreBusy: a server has it open; ask that one.
        StoreTooNew: a newer casstore made it.
    """
    findings = Findings()
    home = Home.open(directory, files or Files())
    with ExitStack() as stack:
        stack.callback(home.close)
        origin: str | None = None
        try:
            origin = read_keys(home).log.name
        except CasstoreError as error:
            findings.damage(error, object="keys", where=home.path)
        # ORDER: before LMDB follows a pointer in one of them: a damaged one can end the process.
        damaged = home.verify_environments()
        for fault in damaged:
            report_damaged_storage(fault, findings)
        if damaged:
            return findings.report()
        try:
            parts = open_parts(home, stack)
        except CasstoreError as error:
            # Without its parts there is nothing to look at; what kept them shut is the finding.
            findings.damage(error, object="store", where=home.path)
            return findings.report()
        if not verify_storage([parts.index, parts.ledger], findings):
            return findings.report()
        heads: list[LogHead] = parts.heads.read_all()
        fsck_ledger(parts.ledger, heads, findings, origin=origin)
        packs = PackService(parts.packs, parts.index)
        artifacts = ArtifactService(parts.ledger, SystemClock())
        fsck_content(packs, artifacts, parts.ledger, findings, full=full, pool=pool, width=width)
    return findings.report()


def rebuild_index(
    directory: str | os.PathLike[str],
    *,
    files: Files | None = None,
    progress: Callable[[RebuildProgress], None] = lambda progress: None,
    pool: Executor | None = None,
    width: int = 1,
) -> RebuildReport:
    """Make a store's index anew from its packs, whatever the one that it has is like; no server may have it open.

    Args:
        directory: the store.
        files: how bytes are read and written.
        progress: told how far it is.
        pool: threads that help.
        width: how many threads work at most.

    Durability: the new index is in its place when this returns.  CRASH: the store has the old index, or the new one.

    Raises:
        StoreNotFound, NotInitialised, StoreBusy, StoreTooNew: it cannot be opened.
        StoreFull, OutcomeUnknown: the new index could not be written; the old one is in its place.
    """
    home = Home.open(directory, files or Files())
    with ExitStack() as stack:
        stack.callback(home.close)
        packs = home.open_packs()
        stack.callback(packs.close)
        index = home.begin_index()
        try:
            report = IndexRebuild(packs, index, progress=progress, pool=pool, width=width).run()
        finally:
            index.close()
        home.adopt_index()
    return report
