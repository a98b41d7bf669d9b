"""The SDK: one server, as coroutines.

:class:`AsyncClient` is the composition root of the client: it owns the one transport and hands it to the parts.  What a method
does is in the module that its first line names; here is what a caller must know.

Source: docs/client.md
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Self

from casstore.clock import Clock, SystemClock
from casstore.formats.tree import TreeEntry
from casstore.formats.trust import TrustFile
from casstore.ids import BlobDigest, TreeDigest
from casstore.limits import LIST_LIMIT_DEFAULT
from casstore.signing import SigningKey
from casstore.wire import (
    ArtifactList,
    ArtifactsRemoved,
    BackupReport,
    BackupRequest,
    Diff,
    GcDropped,
    GcReport,
    GcUndone,
    Label,
    Pin,
    PinList,
    ServerConfig,
)
from casstore_client import care_api, collect_api, content_api
from casstore_client.config import cache_dir
from casstore_client.content_api import Kind
from casstore_client.export import Exported, export
from casstore_client.health_api import HealthApi, reporting
from casstore_client.importing import Imported, import_file
from casstore_client.ledger_api import LedgerApi
from casstore_client.page_cache import PageCache
from casstore_client.progress_events import Progress
from casstore_client.pull import Options, Pulled, pull
from casstore_client.push import Pushed, PushOptions, push
from casstore_client.transport import Stats, Transport
from casstore_client.trust_store import TrustStore

STDIN = "-"


class AsyncClient(LedgerApi, HealthApi):
    """A client of one server; an asynchronous context manager.

    What concerns snapshots, pointers and the log is in :class:`~casstore_client.ledger_api.LedgerApi` and
    :class:`~casstore_client.ledger_reading.LedgerReader`, what concerns the store's health in
    :class:`~casstore_client.health_api.HealthApi`; what concerns content is here.

    Args:
        url: such as ``http://127.0.0.1:7433``.
        token: bearer token, or None.
        ca: file with the certificates to trust, or None for the system's.
        timeout_s: longest silence in the middle of an answer, in seconds.
        trust: what to verify answers about the log against; None verifies nothing.
        key: signs what this client asks for; None for reading only.
        clock: says when an intent was made, and how old a checkpoint is.

    Raises:
        ConfigurationError: not such a URL, or ``ca`` cannot be read.

    Threads: one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: str | None = None,
        timeout_s: float = 60.0,
        trust: TrustStore | None = None,
        key: SigningKey | None = None,
        clock: Clock | None = None,
    ) -> None:
        transport = Transport(url, token=token, ca=ca, timeout_s=timeout_s)
        super().__init__(transport, trust, key, clock or SystemClock())
        self._config: asyncio.Task[ServerConfig] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; idempotent."""
        config, self._config = self._config, None
        if config is not None:
            config.cancel()
            await asyncio.wait([config])
        await self.transport.close()

    @property
    def stats(self) -> Stats:
        """Requests by step, and bytes, since the client was made."""
        return self.transport.stats

    async def config(self) -> ServerConfig:
        """The server's configuration; asked for once.

        Raises:
            TransportError, ProtocolError: no answer, or none that a casstore server gives.
        """
        if self._config is None or (self._config.done() and (self._config.cancelled() or self._config.exception())):
            self._config = asyncio.create_task(content_api.get_config(self.transport))
        return await asyncio.shield(self._config)

    # --- content -----------------------------------------------------------------------------------------------------

    async def push(
        self,
        path: str | bytes | os.PathLike[str],
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
        cache: bool = True,
        progress: Progress | None = None,
    ) -> Pushed:
        """Push a directory (as a tree), a file or standard input (as a blob).

        Args:
            path: what to push; ``-`` reads standard input to its end.  A symbolic link given here is followed; those
                inside a directory are stored.
            name: what the artifact is called.
            labels: free for people.
            exclude: patterns of what is left out of a directory, beside those in its ``.casstoreignore``.
            cache: whether files that were not touched since an earlier push of the directory need not be read again.
            progress: told how far it is, on the loop's thread.

        Returns:
            The digest, the artifact, and what it took.

        Durability: everything is on the server's disk and proven when this returns.

        Raises:
            InvalidInput: something cannot be read, or is no file, directory or link; the message names it.
            SourceChanged: a file changed or vanished meanwhile; nothing was committed.
            NotPermitted, Unauthenticated: the token may not push.
            Unsupported: the store cuts content in a way that this client does not know.
            TransportError, ProtocolError: no answer, or none that a casstore server gives; nothing was committed, or
                (if the connection broke during the commit) all was.
        """
        source = 0 if path == STDIN else os.fsencode(path)
        sorted_labels = [Label(k, v) for k, v in sorted((labels or {}).items())]
        options = PushOptions(exclude, cache, progress)
        return await push(self.transport, self.config, source, name=name, labels=sorted_labels, options=options)

    async def push_stream(
        self,
        fd: int,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Pushed:
        """Push what an open descriptor gives, to its end, as a blob; the descriptor stays the caller's.

        Raises:
            As :meth:`push`.
        """
        sorted_labels = [Label(k, v) for k, v in sorted((labels or {}).items())]
        options = PushOptions(progress=progress)
        return await push(self.transport, self.config, fd, name=name, labels=sorted_labels, options=options)

    async def pull(
        self,
        digest: TreeDigest | BlobDigest | str,
        dest: str | bytes | os.PathLike[str],
        *,
        replace: bool = False,
        sync: bool = True,
        seeds: Sequence[str | bytes | os.PathLike[str]] = (),
        link: bool = False,
        cache: bool = True,
        progress: Progress | None = None,
    ) -> Pulled:
        """Restore a tree or blob at ``dest``: bytes, permission bits, links, empty directories.

        It is made next to ``dest`` under a temporary name, verified, and renamed.  On any fault ``dest`` is as it was.  Where the
        server went away the temporary stays, and pulling to ``dest`` again goes on from it; otherwise it is removed.

        Files that a seed has are taken from there instead of fetched, once their bytes were held against the digest: by
        sharing the blocks where the file system can, else by copying.  What is replaced is a seed by itself.

        Args:
            digest: what to pull, whole (``blake3:<64 hex digits>``).
            dest: must not be there, or be an empty directory.
            replace: ``dest`` may be there; it is exchanged in one step, then removed.
            sync: whether to wait until everything is on the disk.
            seeds: directories to take files from, such as earlier pulls.
            link: files of seeds that an earlier pull made may become hard links: only for trees that nobody writes to, because a
                write to one name shows under the other.
            cache: whether listings are kept in the user's cache directory, so that the next pull asks only for what is new of them.
            progress: told how far it is, on the loop's thread.

        Durability: with ``sync``, all of it survives a power cut when this returns.

        Raises:
            TreeNotFound, BlobNotFound: the server does not have it.
            DestinationExists: ``dest`` is there.
            HostileTree, MalformedDocument, DigestMismatch: the tree breaks a rule; no file was written.
            DamagedObject: content is not what its digest says.
            InvalidInput, CapacityError: the file system refuses, or a seed is no directory.
            TransportError, ProtocolError: no answer, or none that a casstore server gives.
        """
        pages = PageCache(cache_dir(), self.transport.url) if cache else None
        options = Options(replace, sync, progress, tuple(os.fsencode(seed) for seed in seeds), link, pages)
        async with reporting(self.transport):
            return await pull(self.transport, digest, os.fsencode(dest), options)

    def cat(
        self, digest: TreeDigest | BlobDigest | str, path: str | bytes | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob, or of the file ``path`` of a tree, in pieces; all of it is verified before the first comes.

        Raises:
            BlobNotFound, TreeNotFound, PathNotFound: it is not there.
            InvalidInput: the path is a directory or a link, or the digest is a tree's and no path is given.
            DamagedObject: content is not what its digest says.
        """
        return content_api.read_content(self.transport, digest, None if path is None else os.fsencode(path))

    def ls(
        self, digest: TreeDigest | str, path: str | bytes = b"", *, recursive: bool = False
    ) -> AsyncGenerator[TreeEntry, None]:
        """What lies at ``path`` of a tree, in path order: a file or link itself, a directory's children.

        Args:
            digest: the tree.
            path: where; empty for the top.
            recursive: everything below, and the directory itself first.

        Raises:
            TreeNotFound, PathNotFound: it is not there.
            DigestMismatch, MalformedDocument: the tree breaks a rule.
        """
        tree = digest if isinstance(digest, TreeDigest) else TreeDigest.parse(digest)
        return content_api.list_tree(self.transport, tree, os.fsencode(path).strip(b"/"), recursive=recursive)

    async def artifacts(
        self,
        *,
        name: str | None = None,
        label: str | None = None,
        after: str | None = None,
        limit: int = LIST_LIMIT_DEFAULT,
    ) -> ArtifactList:
        """What was pushed, newest first.

        Args:
            name: only those of this name.
            label: only those with this label, ``key=value``.
            after: ``next`` of the page before.
            limit: 1 to ``LIST_LIMIT_MAX``.
        """
        return await content_api.list_artifacts(self.transport, name=name, label=label, after=after, limit=limit)

    async def remove_artifacts(self, target: str, *, all: bool = False, dry_run: bool = False) -> ArtifactsRemoved:
        """Forget artifacts: number, name and labels.  Content stays until collection finds that nothing needs it.

        Args:
            target: a number, or a name.
            all: every artifact of that name; without it there must be one.
            dry_run: change nothing.

        Raises:
            ArtifactNotFound: there is none.
            Conflict: several have that name.
            NotPermitted: the token may not operate.
        """
        return await care_api.remove_artifacts(self.transport, target, all=all, dry_run=dry_run)

    async def backup(
        self, directory: str, *, keys: bool = True, link: bool = True, prune: bool = False
    ) -> BackupReport:
        """Have the server copy its store to a directory of its own machine.

        Args:
            directory: an absolute path there: empty, not there, or an earlier backup, which is brought up to date.
            keys: copy the server's keys too.
            link: give packs a second name instead of copying them, where the file system allows.
            prune: afterwards, remove packs that the backup does not need.

        Raises:
            InvalidInput, DestinationExists: the directory cannot be used.
            NotPermitted: the token may not operate, or the server writes no backups there.
            RequestInProgress, StoreBusy: one is being made.
            StoreFull, Unavailable: it cannot be written; the backup before stays valid.
        """
        request = BackupRequest(directory=directory, keys=keys, link=link, prune=prune)
        return await care_api.backup(self.transport, request)

    async def export(
        self,
        targets: Sequence[str],
        file: str | os.PathLike[str],
        *,
        since: Sequence[str] = (),
        since_files: Sequence[str] = (),
        parents: bool = False,
        directory: bool = False,
    ) -> Exported:
        """Write chosen snapshots, trees and blobs with everything that they need to a file, for a site without a network.

        Args:
            targets: snapshots, trees, blobs, pointers or artifacts, as people name them.
            file: what it will be called; must not exist.
            since: what the other side has: snapshots, trees or blobs of this server; pages and chunks of those are left out.
            since_files: earlier exports, whose content the other side has.
            parents: also the snapshots that these follow, and those that those follow.
            directory: a directory instead of a ZIP.

        Raises:
            NotFound: a target is not there.
            DestinationExists, InvalidInput, CapacityError: the file cannot be written; nothing is there under its name.
            DamagedObject, DigestMismatch, MalformedDocument: the server gave something else than was asked for.
        """
        name = os.fspath(file)
        return await export(
            self, targets, name, since=since, since_files=since_files, parents=parents, directory=directory
        )

    async def import_file(
        self,
        file: str | os.PathLike[str],
        *,
        publish: bool = False,
        why: str = "",
        trust: TrustFile | None = None,
    ) -> Imported:
        """Bring an export into this server: everything is verified, only what is missing is sent.

        Args:
            file: the export, a ZIP or a directory.
            publish: publish its snapshots in the log of this server.
            why: stands in the log for ever.
            trust: of the log that the export comes from: each snapshot must be proven to lie in it.

        Raises:
            DamagedObject: it is cut short or damaged; nothing was committed.
            VerificationError: a snapshot is not proven to lie in the log that ``trust`` names; nothing was sent.
            SnapshotIncomplete: it lacks what its base has, and this server does too.
            And as :meth:`push` and, with ``publish``, :meth:`snapshot_create`.
        """
        return await import_file(self, os.fspath(file), publish=publish, why=why, trust=trust)

    async def diff(self, one: str, other: str) -> Diff:
        """What differs between two trees or two snapshots, as the server says.

        Raises:
            NotFound: one of them is not there.
        """
        return await content_api.compare(self.transport, str(one), str(other))

    async def gc(self, *, dry_run: bool = False) -> GcReport:
        """Have the server collect what nothing needs any more; waits for the end of the run.

        Args:
            dry_run: change nothing; say what would be done, and what is kept for whom.

        Raises:
            NotPermitted: the token may not operate.
            RequestInProgress: a run is under way.
        """
        return await collect_api.gc(self.transport, dry_run=dry_run)

    async def gc_undo(self) -> GcUndone:
        """Make live again all that is condemned.

        Raises:
            NotPermitted: the token may not operate.
            RequestInProgress: a run is under way.
        """
        return await collect_api.gc_undo(self.transport)

    async def gc_dropped(self, digest: str) -> GcDropped:
        """What a collection dropped, by name: the list that a ``gc`` entry of the log names, held against its digest.

        Raises:
            NotFound: the server does not keep it any more.
            DigestMismatch: what it shows is another list.
        """
        return await collect_api.gc_dropped(self.transport, digest)

    async def pin(self, target: str, *, owner: str, reason: str, until: str | None = None) -> Pin:
        """Keep something with all that it needs, whatever its age.

        Args:
            target: a snapshot, tree or blob by its digest (which may be shortened), or an artifact by its name (the newest).
            owner: for whom.
            reason: why.
            until: when it ends by itself, RFC 3339; None: when it is taken away.

        Raises:
            NotFound, SnapshotIncomplete: it is not there, or not all of it.
            NotPermitted: the token may not operate.
        """
        return await collect_api.pin(self.transport, target, owner=owner, reason=reason, until=until)

    async def pins(self) -> PinList:
        """All pins, oldest first.

        Raises:
            NotPermitted: the token may not operate.
        """
        return await collect_api.pins(self.transport)

    async def unpin(self, id: str) -> None:
        """Take a pin away.

        Raises:
            PinNotFound: there is none of this id.
            NotPermitted: the token may not operate.
        """
        await collect_api.unpin(self.transport, id)

    async def find_digests(self, prefix: str) -> list[str]:
        """Whole digests of trees, artifacts and snapshots that begin so.

        Raises:
            InvalidDigest: not 4 to 64 lower-case hex digits.
        """
        return await content_api.find_digests(self.transport, prefix)

    async def resolve_artifact(self, text: str) -> tuple[Kind, str]:
        """Kind and whole digest of what a person names: a digest, an artifact's name (the newest), a shortened digest.

        Raises:
            ArtifactNotFound, BlobNotFound: there is no such thing.
            InvalidDigest: a shortened digest that may mean several.
        """
        return await content_api.resolve_artifact(self.transport, text)
