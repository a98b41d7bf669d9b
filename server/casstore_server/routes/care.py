"""Care: backups of the running store, and removal of artifacts' names.

Source: docs/operations/backup.md
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Final

from aiohttp import web

from casstore.backup import BackupOptions, backup_store
from casstore.config import OFF
from casstore.errors import InvalidInput, NotPermitted, RequestInProgress
from casstore.wire import ArtifactsRemoved, BackupReport, BackupRequest
from casstore_server.auth import demand
from casstore_server.bodies import read_json
from casstore_server.context import Context, context_of
from casstore_server.params import Query, parse_number
from casstore_server.responses import respond_json


async def make_backup(request: web.Request) -> web.Response:
    """``POST /v1/backup``: copy the store to a directory of this machine; one at a time."""
    await demand(request, "operate")
    context = context_of(request)
    Query(request)
    body = await read_json(request, BackupRequest)
    directory = _allowed(context, body.directory)
    # LIMIT: of the disk; two at once would take twice as long each.
    if context.backing_up:
        raise RequestInProgress("a backup is being made already: wait for it")
    context.backing_up = True
    try:
        report = await _back_up(context, directory, BackupOptions(keys=body.keys, link=body.link, prune=body.prune))
    finally:
        context.backing_up = False
    context.log.info("backup made", directory=report.directory, packs=report.packs, new_packs=report.new_packs)
    return respond_json(report)


def _allowed(context: Context, directory: str) -> str:
    """Where a backup may go.

    Raises:
        InvalidInput: not an absolute path.
        NotPermitted: not below the folder that the settings name.
    """
    if not os.path.isabs(directory) or "\0" in directory:
        raise InvalidInput(f"a backup goes to an absolute path on the server's machine, not to {directory[:200]!r}")
    allowed = context.settings.backups
    if allowed == OFF:
        raise NotPermitted("this server makes no backups: its settings say so", permission="operate")
    # TRUST: after links are followed; whoever may write to the folder itself can put the backup elsewhere, and read it.
    if allowed is None:
        return directory
    resolved = Path(directory).resolve()
    if not resolved.is_relative_to(Path(allowed).resolve()):
        raise NotPermitted(f"this server writes backups below {allowed} only", permission="operate")
    return str(resolved)


async def _back_up(context: Context, directory: str, options: BackupOptions) -> BackupReport:
    # It runs for as long as the store is large, so not on the threads that answer requests.
    stop = threading.Event()
    job = asyncio.ensure_future(asyncio.to_thread(backup_store, context.store, directory, options, stop=stop.is_set))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        # Whoever asked is gone, or the server stops: the store is not closed under a copy.
        stop.set()
        await asyncio.wait([job])
        raise


async def remove_artifact(request: web.Request) -> web.Response:
    """``DELETE /v1/artifacts/{number}``: forget its number, name and labels."""
    await demand(request, "operate")
    context = context_of(request)
    dry_run = Query(request, "dry_run").flag("dry_run")
    number = parse_number("number", request.match_info["number"])
    removed = await context.bridge.write_ledger(context.store.artifacts.remove, number, dry_run=dry_run)
    return respond_json(ArtifactsRemoved(removed=[removed], dry_run=dry_run))


ROUTES: Final = (
    web.post("/v1/backup", make_backup),
    web.delete("/v1/artifacts/{number}", remove_artifact),
)
