"""Bodies for operators: tokens, fsck, problems."""

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


class Problem(Answer, frozen=True, kw_only=True):
    """RFC 9457.  Typed fields of the error stand beside these members."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None
    request_id: str | None = None
