"""Restoring a backup into a directory that is empty or not there, and only there.

Owns the order of writing and the restore fence: what may have been signed since the backup was made.  A restored ledger
is an older copy of itself.  If the world has seen a longer log, signing on would make two histories under one key; so
whoever restores says what they know: the ``signed-heads`` file of the lost store, a checkpoint that somebody holds, or
that neither exists.  What they give is put beside the backup's own heads, and the server judges all of them when it
opens the store: it is read-only if the ledger does not reach one.

# ORDER: packs, ledger and index, heads, keys; their directories; ``format`` last, which makes the directory a store.
# CRASH: before ``format`` there is no store: remove what is there, and restore again.

Source: docs/operations/backup.md, docs/operations/recovery.md
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from casstore.admin import fsck_directory
from casstore.backup import SIGNED_HEADS, check_parts, read_pack_list
from casstore.engine.findings import Findings
from casstore.errors import (
    ConfigurationError,
    Conflict,
    DamagedObject,
    InvalidInput,
    NotInitialised,
)
from casstore.formats.checkpoint import open_checkpoint
from casstore.ids import PackId
from casstore.limits import FORMAT_VERSION
from casstore.signing import SigningKey
from casstore.storage.local.backup import Manifest, copy_file, read_manifest, state_path
from casstore.storage.local.files import Files, read_file, refusal, write_new_file
from casstore.storage.local.heads import Head, encode_record, read_heads
from casstore.storage.local.home import FORMAT, PARTS, Home
from casstore.store import CLOCK_KEY, LOG_KEY
from casstore.wire import FsckReport

_SMALL_MAX_BYTES: Final = 1 << 16


class Known(NamedTuple):
    """What is known of the time after the backup; see the top of the module."""

    heads: str | None = None
    """Path of the newest ``signed-heads`` that survived."""
    checkpoint: bytes | None = None
    """A checkpoint of this log, signed by its key, that somebody holds."""
    lost: bool = False
    """There is neither: the operator has looked."""


class Restored(NamedTuple):
    """What a restore brought."""

    directory: str
    manifest: Manifest
    head: Head
    """The highest head that was signed, as far as is known."""
    read_only: str | None
    """Why the server will not write, or None."""
    missing: list[str]
    """Packs that the backup should have and has not, or not whole; at most 1000."""
    report: FsckReport | None
    """What fsck found, but for what ``read_only`` says; None where the store has to be upgraded first."""


def restore_backup(
    backup: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    known: Known,
    *,
    keys: str | None = None,
    link: bool = False,
    full: bool = False,
    files: Files | None = None,
    pool: Executor | None = None,
    width: int = 1,
) -> Restored:
    """Make a store out of a backup, then check it.

    Args:
        backup: the backup directory.
        directory: where the store goes: empty or not there.
        known: what is known of the time after the backup.
        keys: a directory with ``log`` and ``clock``, for a backup that was made without them.
        link: give packs a second name instead of copying them: instant, but store and backup share one copy.
        full: hash every object and put every file together.
        files: how.
        pool: threads that help with ``full``.
        width: how many threads work at most.

    Raises:
        InvalidInput: nothing is said about the time after the backup.
        StoreNotFound, NotInitialised, StoreTooNew: no backup, or none that this program knows.
        DestinationExists: something is at ``directory``.
        ConfigurationError: there are no keys.
        DamagedObject: a part of the backup is not what its manifest says; nothing was made.
        NotFound, VerificationError, MalformedDocument: the heads or the checkpoint cannot be used; nothing was made.
        Conflict: the backup was replaced meanwhile; what was made is not a store.
        StoreFull, ReadOnly, Unavailable: the store cannot be written; what is there is not a store.

    Durability: all of it when this returns.
    """
    if known.heads is None and known.checkpoint is None and not known.lost:
        raise InvalidInput(
            "what was signed after this backup is not known: give the lost store's signed-heads, or a checkpoint of its log",
            hint="--signed-heads FILE, --checkpoint FILE, or --heads-lost if there is neither; docs/operations/backup.md",
        )
    files = files or Files()
    manifest = read_manifest(backup, files)
    state = state_path(backup, manifest)
    _refuse_damaged(os.fspath(backup), manifest, files)
    own_keys = _read_keys(os.path.join(state, "keys") if manifest.keys else keys, files)
    heads = _gather_heads(os.path.join(state, SIGNED_HEADS), known, own_keys, manifest, files)
    job = _Job(os.path.abspath(os.fspath(backup)), manifest, files, link=link)

    def fill(home: Home, become: Callable[[bytes], None]) -> None:
        job.copy(home, heads, own_keys)
        if read_manifest(backup, files).run != manifest.run:
            raise Conflict(
                f"the backup at {backup} was replaced meanwhile: what was restored is not a store; begin again"
            )
        # ORDER: last; from here on it is a store.
        become(read_file(files, os.path.join(state, FORMAT), _SMALL_MAX_BYTES))

    Home.receive(directory, files, fill)
    highest = max(heads, key=lambda head: head.size)
    report = None
    if manifest.format == FORMAT_VERSION:
        report = fsck_directory(directory, full=full, files=files, pool=pool, width=width)
    return Restored(
        directory=os.path.abspath(os.fspath(directory)),
        manifest=manifest,
        head=highest,
        read_only=_fence(manifest, heads, report),
        missing=job.missing,
        report=None if report is None else _without_fence(report),
    )


def _fence(manifest: Manifest, heads: Sequence[Head], report: FsckReport | None) -> str | None:
    highest = max(heads, key=lambda head: head.size)
    if highest.size > manifest.log_size:
        return f"a checkpoint of {highest.size} entries was signed, the backup has {manifest.log_size}"
    if report is not None and any(finding.code == "wrong-head" for finding in report.findings):
        return "what was signed is another history than the one in the backup"
    return None


def _without_fence(report: FsckReport) -> FsckReport:
    """A log that is known to have been longer is no damage of what was restored."""
    kept = [finding for finding in report.findings if finding.code != "wrong-head"]
    ok = report.ok or not (report.truncated or any(finding.severity == "error" for finding in kept))
    return FsckReport(ok=ok, checked=report.checked, findings=kept, truncated=report.truncated)


def _refuse_damaged(backup: str, manifest: Manifest, files: Files) -> None:
    findings = Findings()
    check_parts(backup, manifest, files, findings)
    report = findings.report()
    if not report.ok:
        first = report.findings[0]
        raise DamagedObject(
            f"the backup at {backup} is damaged: {first.object} is not what the manifest says; nothing was restored",
            hint="another backup, or what is whole of this one by hand",
            object=first.object,
            where=first.where,
            expected=first.expected,
            found=first.found,
        )


def _read_keys(folder: str | None, files: Files) -> Mapping[str, bytes]:
    if folder is None:
        raise ConfigurationError(
            "the backup was made without the server's keys, and without the log key the log cannot go on",
            hint="give the directory where log and clock lie with --keys",
        )
    try:
        found = {name: read_file(files, os.path.join(folder, name), _SMALL_MAX_BYTES) for name in files.listdir(folder)}
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be read: {error.strerror}") from error
    if missing := {LOG_KEY, CLOCK_KEY} - set(found):
        raise ConfigurationError(f"{folder} has no key {sorted(missing)[0]!r}")
    return found


def _gather_heads(
    own: str, known: Known, keys: Mapping[str, bytes], manifest: Manifest, files: Files
) -> Sequence[Head]:
    """The backup's heads, then those of later that are known."""
    heads = read_heads(own, files)
    log = SigningKey.parse(keys[LOG_KEY].decode("ascii", "replace").strip())
    if log.name != manifest.origin:
        raise ConfigurationError(f"the log key is that of {log.name}, the backup that of {manifest.origin}")
    if known.heads is not None:
        survived = read_heads(known.heads, files)
        if not survived:
            raise InvalidInput(f"{known.heads} holds no head: it says nothing about what was signed")
        heads += survived
    if known.checkpoint is not None:
        checkpoint = open_checkpoint(known.checkpoint, log.verifier, manifest.origin).checkpoint
        heads.append(Head(checkpoint.size, checkpoint.root))
    if not heads:
        raise NotInitialised("the backup has no signed head: the store was never one")
    return list(dict.fromkeys(heads))


class _Job:
    """Copies the parts of one backup."""

    def __init__(self, backup: str, manifest: Manifest, files: Files, *, link: bool) -> None:
        self._backup = backup
        self._state = state_path(backup, manifest)
        self._files = files
        self._link = link
        self.missing: list[str] = []

    def copy(self, home: Home, heads: Sequence[Head], keys: Mapping[str, bytes]) -> None:
        """Everything but ``format``.

        Raises:
            StoreFull, ReadOnly, Unavailable: as the disk says.
        """
        try:
            for pack, size in read_pack_list(self._state, self._files):
                self._copy_pack(home.path, pack, size)
            packs = os.path.join(home.path, "packs")
            for name in self._files.listdir(packs):
                self._files.fsync_dir(os.path.join(packs, name))
            for name in PARTS:
                folder = os.path.join(home.path, name)
                copy_file(self._files, os.path.join(self._state, name, "data.mdb"), os.path.join(folder, "data.mdb"))
                self._files.fsync_dir(folder)
            write_new_file(self._files, os.path.join(home.path, SIGNED_HEADS), b"".join(map(encode_record, heads)))
        except OSError as error:
            raise refusal(error, f"restore {self._backup} to {home.path}") from error
        for name, data in keys.items():
            home.write_key(name, data)

    def _copy_pack(self, store: str, pack: PackId, size: int) -> None:
        name = str(pack)
        source = os.path.join(self._backup, "packs", name[:2], name + ".pack")
        final = os.path.join(store, "packs", name[:2], name + ".pack")
        try:
            found = self._files.stat(source).st_size
        except FileNotFoundError:
            found = -1
        if found != size:
            # One pack less is damage that fsck names and that a push heals; no store at all is worse.
            self.missing = [*self.missing, name][:1000]
            return
        # CRASH: a pack that is cut short has its name here, but the directory is not a store yet.
        if self._link:
            self._files.link_new(source, final)
            return
        try:
            copy_file(self._files, source, final)
        except DamagedObject:
            self._files.unlink(final)
            self.missing = [*self.missing, name][:1000]


def read_note(path: str) -> bytes:
    """A checkpoint from a file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read(_SMALL_MAX_BYTES * 4)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
