"""Audit: the whole log and its content, verified level by level from what everybody else is shown.

::

    1 hashes      every tile, every entry's bytes, the root
    2 signature   the log's key signed it; it continues what this user verified before, and what the trust file pins
    3 time        who says how old it is
    4 envelopes   every act: signatures, policy, threshold, times, each payload once
    5 state       replay: body and state of every entry follow from the payloads alone
    6 seen        what each signer had verified is this log, and no other
    7 content     what the snapshots consist of is there, and is what its digests say

Owns the order of the levels.  A level that fails does not hide the later ones where they can still be judged: they judge the bytes
that are there.

Source: docs/operations/audit.md
"""

from __future__ import annotations

import asyncio
from typing import Final

from casstore.errors import CasstoreError, InvalidInput, Regression, VerificationError
from casstore.formats.checkpoint import Checkpoint, decode_checkpoint
from casstore.formats.note import split_note
from casstore.formats.policy import Policy
from casstore.formats.trust import VerifiedState
from casstore.wire import format_time
from casstore_client.audit_chunks import ChunkAudit
from casstore_client.audit_content import ContentAudit
from casstore_client.audit_hashes import LogImage, hash_log
from casstore_client.audit_replay import ENVELOPES, SEEN, STATE, ReplayAudit
from casstore_client.audit_report import AuditFinding, AuditLevel, AuditProgress, AuditReport, Findings, Progress
from casstore_client.transport import Transport
from casstore_client.verified_log import Head, VerifiedLog, fetch_note
from casstore_client.workers import Workers, first_fault

__all__ = ["AuditProgress", "AuditReport", "run_audit"]

HASHES: Final = 1
SIGNATURE: Final = 2
TIME: Final = 3
CONTENT: Final = 7
_REPLAY_STEP: Final = 256  # entries between two reports of progress


async def run_audit(
    transport: Transport, log: VerifiedLog, *, full: bool, progress: Progress | None = None
) -> AuditReport:
    """Audit the log that ``transport`` serves; see :meth:`casstore_client.ledger_api.LedgerApi.audit`."""
    findings = Findings(progress)
    since = await log.baseline()
    note = await fetch_note(transport)
    checkpoint = _read(note)
    with await hash_log(transport, checkpoint, findings) as image:
        tiles = f"{checkpoint.size} entries, their tiles and the root"
        levels = [findings.level(HASHES, image.size, tiles)]
        replay = ReplayAudit(image, log.trust.origin, findings)
        for first in range(0, image.size, _REPLAY_STEP):
            await asyncio.to_thread(replay.take, first, first + _REPLAY_STEP)
            findings.tell(ENVELOPES, replay.checked, checkpoint.size)
        levels.append(await _Signature(log, findings).judge(note, since, image, replay.policy))
    levels.append(_time(log, note, findings))
    levels += _replayed(replay, checkpoint, findings)
    levels.append(await _content(transport, replay, findings, full=full))
    if replay.policy is not None and all(level.ok for level in levels[:SEEN]):
        await log.adopt(log.open_note(note), replay.policy_index, replay.policy)
    return AuditReport(
        ok=all(level.ok for level in levels),
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        full=full,
        levels=levels,
        findings=findings.kept,
        truncated=findings.truncated,
    )


def _read(note: bytes) -> Checkpoint:
    """What the checkpoint says; whether it may be believed is level 2.

    Raises:
        VerificationError: it says nothing that could be judged.
    """
    try:
        return decode_checkpoint(split_note(note)[0])
    except InvalidInput as error:
        raise VerificationError(f"the server's checkpoint is not one: {error.detail}") from error


class _Signature:
    """Level 2: the log's key, the pins of the trust file, and what this user verified before."""

    def __init__(self, log: VerifiedLog, findings: Findings) -> None:
        self._log = log
        self._findings = findings
        self._checked = 0

    async def judge(
        self, note: bytes, since: VerifiedState | None, image: LogImage, policy: Policy | None
    ) -> AuditLevel:
        """Judge a checkpoint, whose log is ``image`` and whose entries led to ``policy``."""
        log, trust = self._log, self._log.trust
        try:
            checkpoint: Checkpoint | None = log.open_note(note).checkpoint
            self._checked += 1
        except VerificationError as error:
            self._report(error, "checkpoint")
            checkpoint = None  # nobody stands behind it: it is no evidence of a regression either
        try:
            genesis = image.entry(0) if image.size else None
            if genesis is not None:
                trust.check_genesis(genesis)
                self._checked += 1
        except VerificationError as error:
            self._report(error, "entry 0")
        if policy is not None and trust.log_vkey not in policy.fields.log_keys:
            self._report(VerificationError("the policy does not name the key that signs the log"), "log key")
        held = log.held(since)
        if checkpoint is not None:
            await self._hold_against(held, note, checkpoint, image)
        detail = f"signed by {trust.origin}; continues the {held.size} entries that were verified before"
        return self._findings.level(SIGNATURE, self._checked, detail)

    async def _hold_against(self, held: Head, note: bytes, shown: Checkpoint, image: LogImage) -> None:
        try:
            if shown.size < held.size:
                what = f"the log has {shown.size} entries, it had {held.size} before"
                await self._log.raise_alarm(held, note, what, shown.size)
            if image.fits and image.root_at(held.size) != held.root:
                what = f"the first {held.size} entries are others than before"
                await self._log.raise_alarm(held, note, what, held.size)
            self._checked += 1
        except Regression as error:
            self._report(error, f"the log of {held.size} entries, as verified before")

    def _report(self, error: VerificationError, what: str) -> None:
        finding = AuditFinding(
            level=SIGNATURE,
            code=error.code,
            object=what,
            where=error.hint or "checkpoint",
            expected=f"what the trust file of {self._log.trust.origin} allows",
            found=error.detail,
        )
        self._findings.add(finding, error.index)


def _time(log: VerifiedLog, note: bytes, findings: Findings) -> AuditLevel:
    """Level 3: how old the checkpoint is, and by whose word."""
    detail = "nobody says how old it is"
    try:
        seen_ms = log.check_age(log.open_note(note))
        detail = f"not witnessed; it existed by {format_time(seen_ms)}, says the server's clock key"
    except VerificationError as error:
        findings.add(
            AuditFinding(
                level=TIME,
                code=error.code,
                object="checkpoint",
                where=error.hint or "its cosignatures",
                expected=f"a time of {log.trust.clock_verifier.name}, at most {log.trust.max_age_s} s ago",
                found=error.detail,
            )
        )
    return findings.level(TIME, 1, detail)


def _replayed(replay: ReplayAudit, checkpoint: Checkpoint, findings: Findings) -> list[AuditLevel]:
    """Levels 4 to 6, as the replay left them."""
    stopped = replay.stopped_at
    state = f"{checkpoint.size} entries replayed from their payloads"
    if stopped is not None:
        state = f"{stopped} entries replayed; behind entry {stopped} the state is unknown"
        if not findings.count(STATE):
            # TRUST: a level that could not be judged to the end did not pass.
            findings.add(
                AuditFinding(
                    level=STATE,
                    code="not-judged",
                    object=f"entry {stopped}",
                    where=f"log index {stopped}",
                    expected="an entry that can be replayed",
                    found="one that cannot: see the levels above",
                ),
                stopped,
            )
    return [
        findings.level(ENVELOPES, replay.checked, f"{replay.checked} acts: signatures, policy, times"),
        findings.level(STATE, replay.checked if stopped is None else stopped, state),
        findings.level(SEEN, replay.checked, "what the signers had seen is this log"),
    ]


async def _content(transport: Transport, replay: ReplayAudit, findings: Findings, *, full: bool) -> AuditLevel:
    """Level 7."""
    snapshots = replay.snapshots
    try:
        async with Workers() as workers, asyncio.TaskGroup() as tasks:
            chunks = ChunkAudit(transport, workers, tasks, findings, full=full)
            content = ContentAudit(transport, chunks, findings)
            await content.run(snapshots, replay.collectable)
            await chunks.finish()
    except BaseExceptionGroup as group:
        fault = first_fault(group)
        raise fault if isinstance(fault, CasstoreError) else group from None
    detail = (
        f"{len(snapshots) - content.collected} snapshots, {content.trees} trees, {content.blobs} blobs, {content.pages} pages, "
        f"{len(chunks.chunks)} chunks are there"
    )
    if content.collected:
        detail += f"; {content.collected} snapshots were collected, says entry {replay.collected_at}"
    if full:
        detail += f"; {chunks.bytes} bytes hashed, {chunks.files} files put together"
    return findings.level(CONTENT, len(snapshots), detail)
