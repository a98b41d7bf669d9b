"""Looking into the store: list a tree, read one file of it, find artifacts, compare.

Owns the small reads.  Each verifies what it returns: a listing against the tree's digest, a file's bytes against the file's.

Source: docs/formats/wire.md
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Final, Literal, TypeAlias

from casstore.errors import (
    ArtifactNotFound,
    BlobNotFound,
    DigestMismatch,
    InvalidDigest,
    InvalidInput,
    InvalidName,
    PathNotFound,
    TreeNotFound,
)
from casstore.formats.layout import Extent
from casstore.formats.tree import EntryType, TreeEntry
from casstore.ids import ArtifactName, BlobDigest, TreeDigest
from casstore.limits import MIB
from casstore.wire import Answer, Artifact, ArtifactList, Diff, ServerConfig
from casstore_client.errors import show_path
from casstore_client.fetch import Fetcher, Relocate
from casstore_client.health_api import reporting
from casstore_client.pages import Page, fetch_blob_page, fetch_root, fetch_some, refs_below, relocate_chunks
from casstore_client.planning import Restorer, blob_job
from casstore_client.progress_events import ProgressMeter
from casstore_client.pull import relocate_blob
from casstore_client.restore import FileJob, LargeFile
from casstore_client.transport import Transport
from casstore_client.workers import Workers, finish_cleanup, first_fault

PIECE_BYTES: Final = MIB
SHORT_DIGEST_MIN: Final = 4
_GIVE_MORE: Final = "give more digits, or all of them behind blake3:"
_WHOLE_LENGTH: Final = len(BlobDigest.PREFIX) + 2 * BlobDigest.SIZE

Kind: TypeAlias = Literal["tree", "blob"]


class Resolved(Answer, frozen=True, kw_only=True):
    """``GET /v1/resolve``"""

    digests: list[str]


async def get_config(transport: Transport) -> ServerConfig:
    """The server's configuration."""
    return await transport.get_json("/v1/config", ServerConfig, step="config")


async def list_tree(
    transport: Transport, digest: TreeDigest, path: bytes, *, recursive: bool
) -> AsyncGenerator[TreeEntry, None]:
    """Entries at or below ``path``, in tree order; see :meth:`casstore_client.client.AsyncClient.ls`."""
    verifier = await fetch_root(transport, digest)
    below = path + b"/" if path else b""
    found = False
    async with aclosing(fetch_some(transport, digest, refs_below(verifier.pages, path))) as pages:
        async for page in pages:
            for entry in page.entries:
                if entry.path == path:
                    found = True
                    if recursive or entry.type is not EntryType.DIRECTORY:
                        yield entry
                elif entry.path.startswith(below) and (recursive or b"/" not in entry.path[len(below) :]):
                    yield entry
    if not found:
        raise PathNotFound(f"{digest} holds no {show_path(path)}")


async def read_content(
    transport: Transport, digest: TreeDigest | BlobDigest | str, path: bytes | None
) -> AsyncGenerator[bytes, None]:
    """A blob's bytes, or a file's of a tree; see :meth:`casstore_client.client.AsyncClient.cat`."""
    # TRUST: nothing is handed out before all of it was held against the digest; meanwhile it lies in a nameless file.
    spool = await asyncio.to_thread(tempfile.TemporaryFile, prefix="casstore-")
    try:
        fd = spool.fileno()
        async with reporting(transport):
            if path is None:
                size = await _fetch_blob(transport, BlobDigest.parse(str(digest)), fd)
            else:
                size = await _fetch_file(transport, TreeDigest.parse(str(digest)), path, fd)
        for start in range(0, size, PIECE_BYTES):
            yield await asyncio.to_thread(os.pread, fd, PIECE_BYTES, start)
    finally:
        await finish_cleanup(asyncio.to_thread(spool.close))


async def list_artifacts(
    transport: Transport, *, name: str | None, label: str | None, after: str | None, limit: int
) -> ArtifactList:
    """See :meth:`casstore_client.client.AsyncClient.artifacts`."""
    asked = {"name": name, "label": label, "after": after, "limit": str(limit)}
    params = {key: value for key, value in asked.items() if value is not None}
    return await transport.get_json("/v1/artifacts", ArtifactList, step="artifacts", params=params)


async def compare(transport: Transport, one: str, other: str) -> Diff:
    """See :meth:`casstore_client.client.AsyncClient.diff`."""
    return await transport.get_json("/v1/diff", Diff, step="diff", params={"from": one, "to": other})


async def find_digests(transport: Transport, prefix: str) -> list[str]:
    """See :meth:`casstore_client.client.AsyncClient.find_digests`."""
    digits = prefix.removeprefix(BlobDigest.PREFIX)
    if not SHORT_DIGEST_MIN <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
        raise InvalidDigest(
            f"{prefix[:100]!r} is not a shortened digest: {SHORT_DIGEST_MIN} to 64 lower-case hex digits"
        )
    found = (await transport.get_json("/v1/resolve", Resolved, step="resolve", params={"prefix": digits})).digests
    for digest in found:
        # TRUST: what comes next is done with the whole digest, so its beginning must be what was typed.
        if len(digest) != _WHOLE_LENGTH or not digest.startswith(BlobDigest.PREFIX + digits):
            raise DigestMismatch(
                f"the server says that {digits} is short for {digest[:100]!r}", expected=digits, found=digest[:100]
            )
    return found


async def resolve_artifact(transport: Transport, text: str) -> tuple[Kind, str]:
    """See :meth:`casstore_client.client.AsyncClient.resolve_artifact`."""
    digest = text if len(text) == _WHOLE_LENGTH and text.startswith(BlobDigest.PREFIX) else None
    if digest is None:
        with suppress(InvalidName):
            named = await list_artifacts(transport, name=ArtifactName.parse(text), label=None, after=None, limit=1)
            if named.artifacts:
                return await _unless_short(transport, text, named.artifacts[0])
        digest = await _lengthen(transport, text)
    try:
        await fetch_root(transport, TreeDigest.parse(digest))
    except TreeNotFound:
        await fetch_blob_page(transport, BlobDigest.parse(digest))
        return "blob", digest
    return "tree", digest


async def _unless_short(transport: Transport, name: str, artifact: Artifact) -> tuple[Kind, str]:
    """The artifact of a name, unless the name is short for another digest.

    # TRUST: whoever may push may give an artifact any name, the first digits of somebody else's digest too.
    """
    found: list[str] = []
    with suppress(InvalidDigest):
        found = await find_digests(transport, name)
    others = [digest for digest in found if digest != artifact.digest]
    if others:
        raise InvalidDigest(
            f"{name} may mean the artifact of that name, {artifact.digest}, or {', '.join(others[:5])}",
            hint=_GIVE_MORE,
        )
    return artifact.kind, artifact.digest


async def _lengthen(transport: Transport, text: str) -> str:
    found: list[str] = []
    with suppress(InvalidDigest):
        found = await find_digests(transport, text)
    if not found:
        raise ArtifactNotFound(
            f"{text[:200]!r} is neither the digest nor the name of anything here",
            hint="`casstore artifacts` lists the names; `casstore snapshot show` lists the trees of a snapshot or pointer",
        )
    if len(found) > 1:
        raise InvalidDigest(f"{text} may mean {', '.join(found[:5])}", hint=_GIVE_MORE)
    return found[0]


async def _fetch_file(transport: Transport, digest: TreeDigest, path: bytes, fd: int) -> int:
    """Fetch one file of a tree into ``fd``; returns its size.

    Raises:
        PathNotFound: the tree holds no such path.
        InvalidInput: it is a directory or a link.
    """
    verifier = await fetch_root(transport, digest)
    async with aclosing(fetch_some(transport, digest, refs_below(verifier.pages, path)[:1])) as pages:
        page = await anext(pages)
    rows = iter(page.layout.files)
    for entry in page.entries:
        row = next(rows) if entry.size else []
        if entry.path != path:
            continue
        if entry.type is not EntryType.FILE or entry.digest is None:
            what = "a directory" if entry.type is EntryType.DIRECTORY else f"a link to {show_path(entry.target)}"
            raise InvalidInput(f"{show_path(path) or 'the root'} is {what}, not a file")
        job = FileJob(path, None, entry.size, entry.digest, [])
        await _fetch_into(transport, (job, row, page), partial(relocate_chunks, transport, digest, verifier.pages), fd)
        return entry.size
    raise PathNotFound(f"{digest} holds no {show_path(path)}")


async def _fetch_blob(transport: Transport, digest: BlobDigest, fd: int) -> int:
    """Fetch a blob into ``fd``; returns its size."""
    try:
        page = await fetch_blob_page(transport, digest)
    except BlobNotFound as error:
        with suppress(TreeNotFound):
            await fetch_root(transport, TreeDigest(digest))
            raise InvalidInput(f"{digest} is a tree", hint="say which file of it") from error
        raise
    job, extents = blob_job(b"", None, digest, page)
    await _fetch_into(transport, (job, extents, page), partial(relocate_blob, transport, digest), fd)
    return job.size


async def _fetch_into(
    transport: Transport, what: tuple[FileJob, Sequence[Extent], Page], relocate: Relocate, fd: int
) -> None:
    """Fetch one file into an open one and hold it against its digest."""
    job, extents, page = what
    file = LargeFile(job, lambda _: os.dup(fd))
    try:
        async with Workers() as workers, asyncio.TaskGroup() as tasks:
            fetcher = Fetcher(transport, workers, tasks, relocate)
            meter = ProgressMeter(None, lambda: 0)
            restorer = Restorer(fetcher, None, workers=workers, tasks=tasks, meter=meter)
            await restorer.add_large(file, extents, page)
            await restorer.finish()
    except BaseExceptionGroup as group:
        raise first_fault(group) from None
    finally:
        file.close()
