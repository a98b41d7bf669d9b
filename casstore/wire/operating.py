"""Bodies for operators: tokens, fsck, scrub, quarantine, problems."""

from __future__ import annotations

from typing import Literal

from casstore.wire.bodies import Answer, Request
from casstore.wire.content import Artifact


class TokenCreate(Request, frozen=True, kw_only=True):
    name: str
    permissions: list[str]
    expires_in_s: int | None = None


class Token(Answer, frozen=True, kw_only=True):
    """A bearer token.  ``secret`` is there once, in the answer that creates it."""

    id: str
    name: str
    permissions: list[str]
    created_at: str
    expires_at: str | None
    secret: str | None = None


class TokenList(Answer, frozen=True, kw_only=True):
    tokens: list[Token]


class Finding(Answer, frozen=True, kw_only=True):
    """One thing that fsck found.  ``severity`` is error (something is wrong) or notice (something is left over)."""

    severity: Literal["error", "notice"]
    code: str
    object: str
    where: str
    expected: str
    found: str
    hint: str


class FsckReport(Answer, frozen=True, kw_only=True):
    ok: bool
    checked: dict[str, int]
    findings: list[Finding]
    truncated: bool = False


class BackupRequest(Request, frozen=True, kw_only=True):
    """``directory`` is an absolute path on the server's machine."""

    directory: str
    keys: bool = True
    link: bool = True
    prune: bool = False


class BackupReport(Answer, frozen=True, kw_only=True):
    """What a backup holds, and what making it took.  ``absent`` names the first packs that the store itself lacks."""

    directory: str
    origin: str
    log_size: int
    log_root: str
    began_at: str
    ended_at: str
    keys: bool
    packs: int
    pack_bytes: int
    new_packs: int
    new_bytes: int
    linked_packs: int
    pruned_packs: int
    pruned_bytes: int
    absent_packs: int
    absent: list[str]


class ArtifactsRemoved(Answer, frozen=True, kw_only=True):
    """Artifacts whose names are gone, or would be with ``dry_run``; their content is collected by itself, later."""

    removed: list[Artifact]
    dry_run: bool = False


class ScrubRequest(Request, frozen=True, kw_only=True):
    """``POST /v1/scrub``.  ``rate_bytes_s`` 0 is as fast as it can; absent is the server's setting."""

    rate_bytes_s: int | None = None
    full_pass: bool = False


class ScrubStatus(Answer, frozen=True, kw_only=True):
    """How far the scrub came: of this pass, and of the store.  Bytes are those of packs."""

    running: bool
    rate_bytes_s: int
    pass_number: int
    pass_active: bool
    pass_began_at: str | None
    verified_bytes: int
    verified_frames: int
    total_bytes: int
    damaged: int
    last_full_pass_at: str | None
    oldest_verified_at: str | None
    quarantined: int
    findings: list[Finding]


class ObjectName(Request, frozen=True, kw_only=True):
    """An object of the store.  Without ``kind`` it may be of any kind."""

    id: str
    kind: Literal["chunk", "page", "root", "layout", "document"] | None = None


class DamageReport(Request, frozen=True, kw_only=True):
    """``POST /v1/damage``"""

    objects: list[ObjectName]


class DamageVerdict(Answer, frozen=True, kw_only=True):
    """What the server found when it looked itself."""

    id: str
    verdict: Literal["sound", "quarantined", "missing"]


class DamageVerdicts(Answer, frozen=True, kw_only=True):
    """``POST /v1/damage``, in the order of the report."""

    verdicts: list[DamageVerdict]


class QuarantinedObject(Answer, frozen=True, kw_only=True):
    """An object that is out of use."""

    kind: str
    id: str
    where: str
    since: str
    reason: str
    plain_bytes: int


class QuarantineList(Answer, frozen=True, kw_only=True):
    """``GET /v1/quarantine``.  ``next`` is the cursor of the next page, None on the last."""

    objects: list[QuarantinedObject]
    next: str | None = None


class RebuildReport(Answer, frozen=True, kw_only=True):
    """What a new index was made of.  ``findings`` says what was left out because it is damaged."""

    packs: int
    objects: int
    stored_bytes: int
    pages: int
    blobs: int
    trees: int
    findings: list[Finding]
    truncated: bool = False


class Problem(Answer, frozen=True, kw_only=True):
    """RFC 9457.  Typed fields of the error stand beside these members."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None
    request_id: str | None = None
