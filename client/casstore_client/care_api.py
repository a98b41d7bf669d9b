"""What operators ask a running server for: a backup, the removal of artifacts' names.

Source: docs/formats/wire.md, docs/operations/backup.md
"""

from __future__ import annotations

from typing import Final

from casstore.errors import ArtifactNotFound, Conflict
from casstore.ids import ArtifactName
from casstore.limits import LIST_LIMIT_MAX
from casstore.wire import Artifact, ArtifactsRemoved, BackupReport, BackupRequest
from casstore_client import content_api
from casstore_client.transport import Transport, decode_answer

_BACKUP_TIMEOUT_S: Final = 7 * 24 * 3600.0  # it takes as long as the store is large


async def backup(transport: Transport, request: BackupRequest) -> BackupReport:
    """See :meth:`casstore_client.client.AsyncClient.backup`."""
    return await transport.send_json(
        "POST", "/v1/backup", request, BackupReport, step="backup", timeout_s=_BACKUP_TIMEOUT_S
    )


async def remove_artifacts(transport: Transport, target: str, *, all: bool, dry_run: bool) -> ArtifactsRemoved:
    """See :meth:`casstore_client.client.AsyncClient.remove_artifacts`."""
    if target.isascii() and target.isdigit():
        return ArtifactsRemoved(removed=[await _remove(transport, int(target), dry_run)], dry_run=dry_run)
    found = await _all_of(transport, ArtifactName.parse(target))
    if not found:
        raise ArtifactNotFound(f"there is no artifact named {target}")
    if len(found) > 1 and not all:
        raise Conflict(
            f"{len(found)} artifacts are named {target}, numbers {found[-1].number} to {found[0].number}. Nothing was removed.",
            hint="name one by its number, or say --all",
        )
    # The oldest first: what is broken off has removed what is least looked for.
    removed = [await _remove(transport, artifact.number, dry_run) for artifact in reversed(found)]
    return ArtifactsRemoved(removed=removed, dry_run=dry_run)


async def _all_of(transport: Transport, name: str) -> list[Artifact]:
    found: list[Artifact] = []
    after: str | None = None
    while True:
        page = await content_api.list_artifacts(transport, name=name, label=None, after=after, limit=LIST_LIMIT_MAX)
        found += page.artifacts
        after = page.next
        if after is None:
            return found


async def _remove(transport: Transport, number: int, dry_run: bool) -> Artifact:
    params = {"dry_run": "1"} if dry_run else {}
    reply = await transport.request("DELETE", f"/v1/artifacts/{number}", step="artifact", params=params)
    return decode_answer(reply, ArtifactsRemoved).removed[0]
