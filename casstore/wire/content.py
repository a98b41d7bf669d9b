"""Bodies about content: pushes, artifacts, the server's parameters, comparisons."""

from __future__ import annotations

from typing import Literal

import msgspec

from casstore.wire.bodies import Answer, Request


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    k: str
    v: str


class CommitRequest(Request, frozen=True, kw_only=True):
    """``POST /v1/pushes/{id}/commit``.  ``more`` says that further commits of the same push follow."""

    kind: Literal["tree", "blob"]
    digest: str
    name: str | None = None
    labels: list[Label] = []
    more: bool = False


class Artifact(Answer, frozen=True, kw_only=True):
    """What a build pushed.  ``number`` orders artifacts by arrival."""

    number: int
    name: str | None
    kind: Literal["tree", "blob"]
    digest: str
    labels: list[Label]
    size_bytes: int
    files: int
    pushed_at: str
    by: str


class ArtifactList(Answer, frozen=True, kw_only=True):
    artifacts: list[Artifact]
    next: str | None = None


class PackStored(Answer, frozen=True, kw_only=True):
    """``POST /v1/pushes/{id}/packs``.  ``duplicate`` is true when this push had stored the pack before."""

    pack: str
    frames: int
    stored_bytes: int
    plain_bytes: int
    duplicate: bool = False


class Chunking(Answer, frozen=True, kw_only=True):
    """How clients cut files, so that all of them cut alike."""

    algorithm: str
    min_bytes: int
    avg_bytes: int
    max_bytes: int
    seed: int
    normalization: int
    small_file_bytes: int
    bundle_cut_min_bytes: int
    bundle_cut_divisor_bytes: int
    compression: str


class LogInfo(Answer, frozen=True, kw_only=True):
    origin: str
    vkey: str
    genesis_sha256: str
    private: bool


class ServerConfig(Answer, frozen=True, kw_only=True):
    """``GET /v1/config``"""

    version: str
    format_version: int
    chunking: Chunking
    log: LogInfo
    limits: dict[str, int]


class DiffFile(Answer, frozen=True, kw_only=True):
    """One path that differs.  ``path_b64`` replaces ``path`` where it is not UTF-8."""

    change: Literal["added", "removed", "changed"]
    path: str | None = None
    path_b64: str | None = None
    from_size: int | None = None
    to_size: int | None = None
    what: list[str] = []


class DiffComponent(Answer, frozen=True, kw_only=True):
    name: str
    change: Literal["added", "removed", "changed"]
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    files: list[DiffFile] = []
    truncated: bool = False


class Diff(Answer, frozen=True, kw_only=True):
    from_: str = msgspec.field(name="from")
    to: str
    components: list[DiffComponent]
