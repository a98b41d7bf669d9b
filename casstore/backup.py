"""Backups: a copy of a store that serves meanwhile, and the judge of such a copy.

Owns the order in which the parts are copied, so that the copy is a store of one moment::

    hold deletions  →  signed heads  →  ledger  →  index  →  packs that this index names  →  manifest

- heads before the ledger: none of them lies ahead of the ledger's copy, so what is restored may sign;
- the ledger before the index before the packs: each is written in the opposite order, so the copy of the ledger finds
  all that it names in the copy of the index, and that in the packs;
- nothing is removed from the first step to the last (:mod:`casstore.engine.holds`).

Source: docs/operations/backup.md
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, closing, suppress
from typing import Final, NamedTuple

from casstore import __version__
from casstore.clock import SystemClock
from casstore.engine.artifacts import ArtifactService
from casstore.engine.findings import Findings
from casstore.engine.fsck import fsck_content
from casstore.engine.fsck_ledger import fsck_ledger
from casstore.engine.holds import Hold
from casstore.engine.log import LogHead
from casstore.engine.nodes import node_reader, read_size
from casstore.engine.packs import PackService
from casstore.errors import CasstoreError, DamagedObject, InvalidInput, PackNotFound, Unavailable
from casstore.hashing import Blake3Hasher
from casstore.ids import PackId
from casstore.limits import FORMAT_VERSION
from casstore.merkle import root_at
from casstore.storage.local.backup import (
    ABSENT_MAX,
    MANIFEST_VERSION,
    PACK_LINE_BYTES,
    PACK_LIST,
    BackupDirectory,
    Copied,
    Manifest,
    Part,
    format_pack_line,
    hash_file,
    parse_pack_line,
    read_manifest,
    state_path,
)
from casstore.storage.local.files import Files, read_file, refusal, write_new_file
from casstore.storage.local.heads import encode_record, read_heads
from casstore.storage.local.home import FORMAT
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.local.ledger import LocalLedger
from casstore.storage.local.packs import LocalPackStore
from casstore.storage.roles import ChunkIndex, Copyable, PackStore
from casstore.store import CLOCK_KEY, LOG_KEY, Store
from casstore.wire import BackupReport, FsckReport, format_time

SIGNED_HEADS: Final = "signed-heads"
_ROWS: Final = 1000
_LIST_READ_BYTES: Final = 4096 * PACK_LINE_BYTES


class BackupOptions(NamedTuple):
    """How a backup is made."""

    keys: bool = True
    """Copy the server's keys too.  Without them the log cannot be continued from this backup alone."""
    link: bool = True
    """Give packs a second name instead of copying them, where the file system allows."""
    prune: bool = False
    """Afterwards, remove packs that the backup does not need."""


def backup_store(
    store: Store,
    directory: str | os.PathLike[str],
    options: BackupOptions = BackupOptions(),  # noqa: B008
    *,
    stop: Callable[[], bool] = lambda: False,
) -> BackupReport:
    """Copy a store that is open, and in use.

    Args:
        store: which.
        directory: an empty one, one that is not there, or an earlier backup, which is brought up to date.
        options: how.
        stop: asked between steps; True ends the backup, and the one before stays valid.

    Raises:
        InvalidInput: the directory lies in the store, or the store in it, or holds the backup of another log.
        DestinationExists: something else is there.
        StoreBusy: another backup is being written there.
        StoreFull, ReadOnly, Unavailable: it cannot be written, or it was told to stop; the backup before stays valid.
        LeaseLost: a step took so long that something may have been removed meanwhile.
        DamagedObject: the ledger, the index or the heads cannot be read; or the backup is made, and was not pruned, because
            the store lacks what it needs.

    Durability: all of it when this returns.
    Threads: any; one at a time for a directory.
    """
    path = os.path.realpath(directory)
    _keep_apart(path, os.path.realpath(store.path))
    with BackupDirectory(path, store.home.files) as target:
        earlier = target.manifest()
        if earlier is not None and earlier.origin != store.log.origin:
            raise InvalidInput(f"{path} holds a backup of {earlier.origin}, this is the log {store.log.origin}")
        with store.holds.hold(f"a backup to {path}") as hold:
            return _Run(store, target, options, hold, stop).run()


def _keep_apart(backup: str, store: str) -> None:
    if os.path.commonpath([backup, store]) in (backup, store):
        raise InvalidInput(f"a backup cannot lie in its store, nor the store in it: {backup}, {store}")


class _Run:
    """One backup."""

    def __init__(
        self, store: Store, target: BackupDirectory, options: BackupOptions, hold: Hold, stop: Callable[[], bool]
    ) -> None:
        self._store = store
        self._files = store.home.files
        self._target = target
        self._options = options
        self._hold = hold
        self._stop = stop
        self._parts: list[Part] = []
        self._absent: list[str] = []
        self._absent_count = 0
        self._packs = self._pack_bytes = self._new = self._new_bytes = self._linked = 0

    def run(self) -> BackupReport:
        began = self._store.clock.now_ms()
        run = os.urandom(16).hex()
        state = self._target.begin(run)
        try:
            # ORDER: see the top of the module.
            heads = self._copy_small(state)
            for name, copyable in self._store.copyables.items():
                self._go_on()
                self._copy_environment(os.path.join(state, name, "data.mdb"), f"{name}/data.mdb", copyable)
            head = self._judge_ledger(state, heads)
            self._copy_packs(state)
            self._go_on()
        except OSError as error:
            raise refusal(error, f"copy the store to {self._target.path}") from error
        manifest = Manifest(
            backup=MANIFEST_VERSION,
            casstore=__version__,
            format=FORMAT_VERSION,
            origin=self._store.log.origin,
            log_size=head.size,
            log_root=head.root.hex(),
            began=began,
            ended=self._store.clock.now_ms(),
            run=run,
            keys=self._options.keys,
            parts=self._parts,
            packs=self._packs,
            pack_bytes=self._pack_bytes,
            absent=self._absent,
        )
        self._target.finish(manifest)
        pruned = self._prune(state) if self._options.prune else (0, 0)
        return self._report(manifest, pruned)

    def _go_on(self) -> None:
        """Between steps: keep the hold, and end when told to."""
        if self._stop():
            raise Unavailable("the backup was told to stop: nothing has changed in the one before")
        self._hold.renew()

    def _copy_small(self, state: str) -> list[LogHead]:
        home = self._store.home
        found = read_heads(os.path.join(home.path, SIGNED_HEADS), self._files)
        self._write(state, SIGNED_HEADS, b"".join(map(encode_record, found)))
        self._write(state, FORMAT, read_file(self._files, os.path.join(home.path, FORMAT), 1 << 16))
        for name in home.key_names() if self._options.keys else ():
            self._write(state, f"keys/{name}", home.read_key(name))
        return [LogHead(head.size, head.root) for head in found]

    def _write(self, state: str, name: str, data: bytes) -> None:
        write_new_file(self._files, os.path.join(state, name), data, 0o600)
        self._parts.append(Part(name, len(data), Blake3Hasher(data).hexdigest()))

    def _copy_environment(self, path: str, name: str, copyable: Copyable) -> None:
        # TRUST: the ledger holds the hashes of tokens; the copy is the server's user's alone.
        descriptor = self._files.open_write(path, 0o600)
        try:
            copyable.copy_to(descriptor)
            self._files.fsync(descriptor)
        finally:
            self._files.close(descriptor)
        self._parts.append(Part(name, *hash_file(self._files, path)))

    def _judge_ledger(self, state: str, heads: list[LogHead]) -> LogHead:
        """Which head the copied ledger has; it must reach those that were copied before it, unless the store is fenced."""
        with closing(LocalLedger(state, self._files)) as ledger, ledger.read() as view:
            size = read_size(view)
            root = root_at(size, node_reader(view))
        forget_lock(self._files, os.path.join(state, "ledger"))
        highest = max((head.size for head in heads), default=0)
        if highest > size and self._store.read_only is None:
            raise DamagedObject(
                f"the copy of the ledger has {size} entries, {highest} were signed before it was made",
                object="ledger",
                where=state,
                expected=str(highest),
                found=str(size),
            )
        return LogHead(size, root)

    def _copy_packs(self, state: str) -> None:
        source = self._store.packs.store
        path = os.path.join(state, PACK_LIST)
        hasher, size = Blake3Hasher(), 0
        descriptor = self._files.open_write(path, 0o600)
        try:
            with closing(LocalChunkIndex(state, self._files)) as index:
                for page in _pack_pages(index):
                    lines = [format_pack_line(*row) for row in page if self._copy_pack(source, *row)]
                    data = b"".join(lines)
                    self._files.write(descriptor, data)
                    hasher.update(data)
                    size += len(data)
            self._files.fsync(descriptor)
        finally:
            self._files.close(descriptor)
        forget_lock(self._files, os.path.join(state, "index"))
        self._parts.append(Part(PACK_LIST, size, hasher.hexdigest()))

    def _copy_pack(self, source: PackStore, pack: PackId, size: int) -> bool:
        self._go_on()
        if not self._target.has_pack(pack, size):
            try:
                path = source.path(pack)
                assert path is not None, "a store on a disk has its packs as files"
                linked = self._target.put_pack(pack, path, size, link=self._options.link, before=self._go_on)
            except (PackNotFound, DamagedObject):
                # The backup of a store that is damaged is worth more than none; it says what it lacks.
                self._absent_count += 1
                if len(self._absent) < ABSENT_MAX:
                    self._absent.append(str(pack))
                return False
            self._new += 1
            self._new_bytes += size
            self._linked += linked
        self._packs += 1
        self._pack_bytes += size
        return True

    def _prune(self, state: str) -> tuple[int, int]:
        # TRUST: the index says what is needed, and an index that was built anew without a lost disk does not know what was on
        # it.  The ledger does: as long as it names what the store lacks, the packs of this backup may be the last that have it.
        lacking = self._store.repairs.plan().wanted
        if lacking:
            first = f"{lacking[0].kind} {lacking[0].id}"
            raise DamagedObject(
                f"the backup is made, and nothing was pruned: the store lacks {first} and maybe more, and this backup may hold "
                "the only copy",
                hint="`casstore repair --from` the backup, then back up again",
                object=first,
            )
        with closing(LocalChunkIndex(state, self._files)) as index:
            pruned = self._target.prune(lambda pack: index.pack(pack) is not None)
        forget_lock(self._files, os.path.join(state, "index"))
        return pruned

    def _report(self, manifest: Manifest, pruned: tuple[int, int]) -> BackupReport:
        return BackupReport(
            directory=self._target.path,
            origin=manifest.origin,
            log_size=manifest.log_size,
            log_root=manifest.log_root,
            began_at=format_time(manifest.began),
            ended_at=format_time(manifest.ended),
            keys=manifest.keys,
            packs=manifest.packs,
            pack_bytes=manifest.pack_bytes,
            new_packs=self._new,
            new_bytes=self._new_bytes,
            linked_packs=self._linked,
            pruned_packs=pruned[0],
            pruned_bytes=pruned[1],
            absent_packs=self._absent_count,
            absent=manifest.absent[:20],
        )


def _pack_pages(index: ChunkIndex) -> Iterator[list[tuple[PackId, int]]]:
    after: PackId | None = None
    while page := index.packs(after=after, limit=_ROWS):
        after = page[-1].pack
        yield [(record.pack, record.size_bytes) for record in page]


def forget_lock(files: Files, environment: str) -> None:
    """Remove the lock file that LMDB leaves beside a copy that was looked into."""
    with suppress(OSError):
        files.unlink(os.path.join(environment, "lock.mdb"))


# --- checking ----------------------------------------------------------------------------------------------------------


def verify_backup(
    directory: str | os.PathLike[str],
    *,
    full: bool = True,
    files: Files | None = None,
    pool: Executor | None = None,
    width: int = 1,
) -> FsckReport:
    """Check a backup: every part against the manifest, then ledger, index and packs as ``fsck`` checks those of a store.

    Args:
        directory: the backup; it must be writable, for LMDB makes a lock file.
        full: hash every byte of content and put every file together.
        files: how.
        pool: threads that help with ``full``.
        width: how many threads work at most.

    Raises:
        StoreNotFound, NotInitialised, StoreTooNew: there is no backup, or none that this program knows.
        StoreBusy: one is being written.
        DamagedObject: the manifest does not parse.
    """
    files = files or Files()
    manifest = read_manifest(directory, files)
    with BackupDirectory(directory, files) as target:
        findings = Findings()
        check_parts(target.path, manifest, files, findings)
        state = state_path(target.path, manifest)
        with ExitStack() as stack:
            for name in ("ledger", "index"):
                stack.callback(forget_lock, files, os.path.join(state, name))
            try:
                packs = stack.enter_context(closing(LocalPackStore(target.path, files)))
                index = stack.enter_context(closing(LocalChunkIndex(state, files)))
                ledger = stack.enter_context(closing(LocalLedger(state, files)))
            except CasstoreError as error:
                findings.damage(error, object="backup", where=state)
                return findings.report()
            heads = [LogHead(*head) for head in read_heads(os.path.join(state, SIGNED_HEADS), files)]
            fsck_ledger(ledger, heads, findings, origin=manifest.origin)
            artifacts = ArtifactService(ledger, SystemClock())
            fsck_content(PackService(packs, index), artifacts, ledger, findings, full=full, pool=pool, width=width)
        return findings.report()


def check_parts(directory: str, manifest: Manifest, files: Files, findings: Findings) -> None:
    """Hold the small files of a backup against its manifest."""
    state = state_path(directory, manifest)
    for part in manifest.parts:
        findings.count("parts")
        path = os.path.join(state, part.name)
        try:
            found = hash_file(files, path)
        except OSError as error:
            found = Copied(0, os.strerror(error.errno or 0))
        if found != (part.size, part.blake3):
            findings.error(
                "damaged-part",
                part.name,
                where=path,
                expected=f"{part.size} bytes, blake3:{part.blake3}",
                found=f"{found.size} bytes, {found.blake3}",
                hint="make the backup anew, in another directory",
            )
    wanted = {SIGNED_HEADS, FORMAT, PACK_LIST, "ledger/data.mdb", "index/data.mdb"}
    wanted |= {f"keys/{LOG_KEY}", f"keys/{CLOCK_KEY}"} if manifest.keys else set()
    for name in sorted(wanted - {part.name for part in manifest.parts}):
        findings.error("missing-part", name, where=state, expected="a part", found="none", hint="make it anew")


def read_pack_list(state: str, files: Files) -> Iterator[tuple[PackId, int]]:
    """The packs that a backup needs, with their sizes.

    Raises:
        DamagedObject: a line is none.
        OSError: as the system says.
    """
    descriptor = files.open_read(os.path.join(state, PACK_LIST))
    try:
        offset = 0
        while block := files.pread(descriptor, _LIST_READ_BYTES, offset):
            for at in range(0, len(block), PACK_LINE_BYTES):
                yield parse_pack_line(block[at : at + PACK_LINE_BYTES])
            offset += len(block)
    finally:
        with suppress(OSError):
            files.close(descriptor)
