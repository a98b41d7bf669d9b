"""The three requests of a push, as they go over the wire.

Owns how each is asked, how long it may take, and what of an answer is held against the question.  What is pushed, and in which
order, is decided by who calls.

Source: docs/formats/wire.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from casstore.ids import PackId, PushId
from casstore.limits import MISSING_IDS_MAX
from casstore.wire import (
    MEDIA_IDS,
    MEDIA_JSON,
    MEDIA_PACK,
    Artifact,
    CommitRequest,
    PackStored,
    decode_bitmap,
)
from casstore_client.errors import ProtocolError
from casstore_client.transport import Transport, decode_answer

UPLOAD_TIMEOUT_S: Final = 300.0
COMMIT_TIMEOUT_S: Final = 3600.0  # the server may have to read everything once more


async def find_missing(
    transport: Transport, push: PushId, kind: Literal["chunk", "page"], ids: Sequence[bytes]
) -> list[bool]:
    """For each id whether the server lacks it.

    Raises:
        As :meth:`Transport.request`.
    """
    flags: list[bool] = []
    for start in range(0, len(ids), MISSING_IDS_MAX):
        part = ids[start : start + MISSING_IDS_MAX]
        reply = await transport.request(
            "POST",
            f"/v1/pushes/{push}/missing",
            step="missing",
            media=MEDIA_IDS,
            params={"kind": kind},
            body=b"".join(part),
            body_media=MEDIA_IDS,
            repeatable=True,
        )
        flags += decode_bitmap(reply.body, len(part))
    return flags


async def send_pack(
    transport: Transport, push: PushId, pack: PackId, parts: Sequence[bytes], *, frames: int, runs: bytes = b""
) -> None:
    """Send a pack, and be sure that the server stored that one.

    Args:
        transport: the server.
        push: which push brings it.
        pack: its name.
        parts: its bytes; kept by the caller until this returns, for a broken connection costs one more upload.
        frames: how many it has.
        runs: its file runs.

    Raises:
        ProtocolError: the server stored something else.
        As :meth:`Transport.request`.
    """
    reply = await transport.request(
        "POST",
        f"/v1/pushes/{push}/packs",
        step="packs",
        media=MEDIA_JSON,
        params={"pack": str(pack)} | ({"runs": str(len(runs))} if runs else {}),
        body=[runs, *parts] if runs else list(parts),
        body_media=MEDIA_PACK,
        repeatable=True,
        timeout_s=UPLOAD_TIMEOUT_S,
    )
    stored = decode_answer(reply, PackStored)
    if stored.pack != str(pack) or stored.frames != frames:
        raise ProtocolError(f"sent pack {pack} of {frames} frames, the server stored {stored}")


async def commit(transport: Transport, push: PushId, request: CommitRequest) -> Artifact:
    """Have the server prove what was sent and found present, and record it.

    Repeatable: to a push that has committed the same thing the server gives the same answer.

    Raises:
        ProtocolError: it recorded something else.
        As :meth:`Transport.request`.
    """
    artifact = await transport.send_json(
        "POST",
        f"/v1/pushes/{push}/commit",
        request,
        Artifact,
        step="commit",
        repeatable=True,
        timeout_s=COMMIT_TIMEOUT_S,
    )
    if artifact.digest != request.digest:
        raise ProtocolError(f"committed {request.digest}, the server recorded {artifact.digest[:100]}")
    return artifact
