"""Bodies for operators: tokens, fsck, problems."""

from __future__ import annotations

from typing import Literal

from casstore.wire.bodies import Answer, Request


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


class Problem(Answer, frozen=True, kw_only=True):
    """RFC 9457.  Typed fields of the error stand beside these members."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str | None = None
    request_id: str | None = None
