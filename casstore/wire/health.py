"""Bodies about what needs an object, and about repair."""

from __future__ import annotations

from typing import Final, Literal

from casstore.wire.bodies import Answer, Request
from casstore.wire.operating import ObjectName

OBJECT_KEY_BYTES: Final = 33
"""Of an object in the body of ``POST /v1/objects``: ``u8 kind ‖ id32``."""


class AffectedRequest(Request, frozen=True, kw_only=True):
    """``POST /v1/affected``.  ``quarantined`` adds everything that is in quarantine."""

    objects: list[ObjectName] = []
    quarantined: bool = False


class AffectedFile(Answer, frozen=True, kw_only=True):
    """A file that needs a chunk; ``page`` is the page of the trees that it stands on."""

    page: str
    path: str


class AffectedArtifact(Answer, frozen=True, kw_only=True):
    """An artifact that needs an object."""

    number: int
    name: str | None
    kind: Literal["tree", "blob"]
    digest: str


class AffectedSnapshot(Answer, frozen=True, kw_only=True):
    """``components`` are those that are affected; none where the document itself is."""

    digest: str
    components: list[str]


class AffectedPointer(Answer, frozen=True, kw_only=True):
    """``now`` is the affected snapshot that the pointer names; ``flips`` counts those to affected ones."""

    pointer: str
    now: str | None
    flips: int
    last_flip: str | None


class AffectedReport(Answer, frozen=True, kw_only=True):
    """What needs some objects.  ``files`` are examples; ``truncated`` says that there is more than is listed."""

    objects: int
    pages: int
    trees: list[str]
    blobs: list[str]
    files: list[AffectedFile]
    artifacts: list[AffectedArtifact]
    snapshots: list[AffectedSnapshot]
    pointers: list[AffectedPointer]
    unreadable: int
    truncated: bool


class FilePiece(Answer, frozen=True, kw_only=True):
    """A run of a chunk that is a run of a file: ``length`` bytes at ``at`` of the chunk lie at ``offset`` of the file."""

    path_b64: str
    offset: int
    at: int
    length: int


class WantedObject(Answer, frozen=True, kw_only=True):
    """An object that the store needs and cannot read.  ``pieces`` says for a chunk which files have its bytes."""

    kind: Literal["chunk", "page", "root", "layout", "document"]
    id: str
    why: str
    plain_bytes: int | None = None
    pieces: list[FilePiece] = []


class RepairPlan(Answer, frozen=True, kw_only=True):
    """What a store needs and cannot read.  ``truncated``: there is more, which the next plan has."""

    wanted: list[WantedObject]
    truncated: bool


class RepairAnswer(Answer, frozen=True, kw_only=True):
    """What became of the objects of one pack."""

    healed: list[ObjectName]
    refused: list[ObjectName]
