"""Taking in one pack, piece by piece, verified as it comes.

Owns the rule that nothing wrong is ever stored under a name: a frame is decompressed (capped), and hashed against its
id, while its bytes go to a file that has no name yet; the name is given after the footer agreed with every frame
seen.

    ORDER: frames before the pack's name, the pack before the index.

Three ends are possible, and a retry meets each of them:

* the store does not have the pack: it is stored;
* the index knows the pack: the bytes are counted and dropped, the answer is that of the first time, ``duplicate`` is
  set;
* CRASH: the pack has its name but the index does not know it (the process died between the two): what lies there is
  verified from the first byte to the last, like a stranger's, and then recorded.

Memory: one frame (large ones are counted, see :mod:`casstore.engine.room`), and one row of some 200 bytes for each frame
(at most ``PACK_FRAMES_MAX``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from casstore.engine.file_runs import PackRuns, PushRuns
from casstore.engine.packs import PackService
from casstore.engine.room import Rooms
from casstore.errors import (
    Conflict,
    DamagedObject,
    DigestMismatch,
    InvalidInput,
    MalformedDocument,
    TooLarge,
)
from casstore.formats.pack import ObjectKind, PackDecoder, PackSummary, open_frame
from casstore.ids import PackId
from casstore.limits import MIB, PACK_SIZE_MAX_BYTES, RUNS_SIZE_MAX_BYTES
from casstore.storage.roles import FrameRow, Location, PackRecord, PackWriter
from casstore.wire import PackStored, decode_runs

# What a push may bring.  Documents come by a signed intent (POST /v1/snapshots), never in a push's pack.
PUSHED_KINDS: Final = frozenset({ObjectKind.CHUNK, ObjectKind.PAGE, ObjectKind.ROOT, ObjectKind.LAYOUT})
_READ_BYTES: Final = MIB


class PackReader:
    """Verifies the bytes of a pack as they come and lists its frames.

    Args:
        pack: the name that the bytes must carry.
        rooms: where large objects are taken apart.
        kinds: the kinds of objects that are accepted.

    :meth:`close` must be called at the end, if the pack was not read to its end.
    """

    def __init__(self, pack: PackId, rooms: Rooms, *, kinds: frozenset[ObjectKind] = PUSHED_KINDS) -> None:
        self._pack = pack
        self._rooms = rooms
        self._taken: tuple[ObjectKind, int] | None = None
        self._kinds = kinds
        self._decoder = PackDecoder(pack)
        self.runs: PackRuns | None = None
        """Told of each chunk that was verified."""

    def feed(self, data: bytes | memoryview) -> None:
        """Verify more bytes.

        Raises:
            MalformedDocument: not a pack, not this one, or a frame that does not decompress to what it promises.
            DigestMismatch: a frame's bytes are not the object that it names.
            InvalidInput: a kind of object that is not accepted here.
            TooLarge: the pack or an object in it exceeds its bound.
            Overloaded: other large layouts or roots are being taken in.
        """
        frames = self._decoder.feed(data)
        awaited = self._decoder.awaited
        if frames or awaited is None:
            self.close()  # what was awaited is here: it is opened in its turn
        for frame in frames:
            if frame.kind not in self._kinds:
                raise InvalidInput(f"a {frame.kind.name.lower()} does not come in a push's pack")
            try:
                with self._rooms.hold(frame.kind, frame.plain_length):
                    plain = open_frame(frame)
                if self.runs is not None and frame.kind is ObjectKind.CHUNK:
                    self.runs.take(frame.id, plain)
            except DamagedObject as error:
                # Bytes from outside are not damage in the store: the sender is wrong.
                detail = f"pack {self._pack}: {error.detail}"
                if isinstance(error.__cause__, DigestMismatch):
                    raise DigestMismatch(detail, expected=error.expected, found=error.found) from error
                raise MalformedDocument(detail) from error

        # LIMIT: of large objects that come in slowly, no more are held than are worked on; nobody's thread waits for them.
        if awaited is not None and self._taken is None:
            self._taken = (awaited.kind, self._rooms.take(awaited.kind, awaited.plain_length, wait_s=0))

    def close(self) -> None:
        """Give back the room of an object that did not come to its end; harmless when called again."""
        taken, self._taken = self._taken, None
        if taken is not None:
            self._rooms.give_back(*taken)

    def finish(self) -> PackSummary:
        """Check the footer against the frames.

        Raises:
            MalformedDocument: the pack is truncated, its footer tells of other frames, or it has another name.
        """
        return self._decoder.finish()


class PackIngest:
    """One pack on its way in; made by :meth:`casstore.engine.pushes.PushService.begin_pack`.

    Call :meth:`feed` for each piece, then :meth:`seal` and :meth:`record` (or :meth:`finish`); call :meth:`abort` in
    any case at the end, it is harmless after success.

    Threads: one at a time; :meth:`feed`, :meth:`seal` and :meth:`abort` on a worker thread, :meth:`record` on the
    index writer.

    Args:
        packs: where the pack goes.
        pack: its name.
        learned: told where the layouts of the pack lie, once it is recorded.
        ended: told once when the pack is no longer coming in: whether the index knows it.
        runs: takes what the file runs prove that stand in front of the pack.
        runs_size: how many bytes of them.

    Raises:
        TooLarge: more than ``RUNS_SIZE_MAX_BYTES``.
    """

    def __init__(
        self,
        packs: PackService,
        pack: PackId,
        *,
        learned: Callable[[Sequence[tuple[bytes, Location]]], None],
        ended: Callable[[bool], None],
        runs: PushRuns | None = None,
        runs_size: int = 0,
    ) -> None:
        if runs_size > RUNS_SIZE_MAX_BYTES:
            raise TooLarge(f"file runs have at most {RUNS_SIZE_MAX_BYTES} bytes", limit=RUNS_SIZE_MAX_BYTES)
        self._runs = runs
        self._front_missing = runs_size
        self._front = b""
        self._packs = packs
        self._pack = pack
        self._learned = learned
        self._ended: Callable[[bool], None] | None = ended
        self._recorded = False
        self._summary: PackSummary | None = None
        self._dropped = 0
        self._reader = PackReader(pack, packs.rooms)
        self._writer = self._create()
        self.duplicate = self._writer is None and packs.index.pack(pack) is not None

    def feed(self, data: bytes | memoryview) -> None:
        """Verify and write more bytes.

        Raises:
            InvalidInput: the bytes are wrong (``MalformedDocument``, ``DigestMismatch``, ``TooLarge``); nothing stays
            behind.
            StoreFull: no space is left; nothing stays behind.
            Overloaded: other large layouts or roots are being taken in; nothing stays behind.
        """
        if self._front_missing:
            data = self._take_front(memoryview(data))
        if self._writer is None:
            self._dropped += len(data)
            if self._dropped > PACK_SIZE_MAX_BYTES:
                raise TooLarge(f"a pack has at most {PACK_SIZE_MAX_BYTES} bytes", limit=PACK_SIZE_MAX_BYTES)
            return
        accepted = False
        try:
            self._reader.feed(data)
            self._writer.write(data)
            accepted = True
        finally:
            if not accepted:
                self.abort()

    def _take_front(self, data: memoryview) -> memoryview:
        """Gather the file runs; returns what belongs to the pack."""
        taken = data[: self._front_missing]
        self._front += taken
        self._front_missing -= len(taken)
        if not self._front_missing:
            try:
                runs = decode_runs(self._front)
            except InvalidInput:
                self.abort()
                raise
            self._front = b""
            if self._runs is not None:
                self._reader.runs = PackRuns(self._runs, runs)
        return data[len(taken) :]

    def seal(self) -> None:
        """Check the footer and give the pack its name.

        Durability: the pack survives a power cut; nobody can find it until :meth:`record`.

        Raises:
            MalformedDocument: the pack is truncated or its footer tells of other frames; nothing stays behind.
            Conflict: a pack of that name lies in the store and is damaged.
            StoreFull, OutcomeUnknown: as the pack store says.
        """
        sealed = False
        try:
            if self._writer is not None:
                summary = self._reader.finish()
                try:
                    self._writer.commit()
                    self._summary = summary
                except Conflict:
                    # Another connection brought the same pack and was first.
                    self.duplicate = self._packs.index.pack(self._pack) is not None
            if self._summary is None:
                self._summary = self._adopt()
            sealed = True
        finally:
            if not sealed:
                self.abort()

    def record(self) -> PackStored:
        """Make the pack's objects findable: chunks, pages and roots for everyone, layouts for this push until they
        are proven.

        Durability: durable when this returns.
        Threads: index writer.

        Raises:
            LeaseLost: the push is not known any more; the pack is stored all the same.
            PackNotFound: it lay in the store, retired, and was deleted; the client sends it again.
            StoreFull, OutcomeUnknown: as the index says.
        """
        summary = self._summary
        assert summary is not None, "seal() comes before record()"
        layouts: list[tuple[bytes, Location]] = []
        believed: list[FrameRow] = []
        plain_bytes = 0
        for kind, id, offset, stored_length, plain_length, _ in summary.rows:
            plain_bytes += plain_length
            if kind is ObjectKind.LAYOUT:
                layouts.append((id, Location(self._pack, offset, stored_length, plain_length)))
            else:
                believed.append(FrameRow(kind, id, offset, stored_length, plain_length))
        try:
            if self.duplicate and self._packs.index.pack(self._pack) is None:
                self.duplicate = False  # collection has retired it since
            if not self.duplicate:
                # ORDER: packs are deleted on this thread, so what lies here now is not deleted before it is recorded.
                self._packs.store.size(self._pack)
                self._packs.index.add_pack(PackRecord(self._pack, summary.size, len(summary.rows)), believed)
            self._recorded = True
            self._learned(layouts)
        finally:
            self.abort()
        return PackStored(
            pack=str(self._pack),
            frames=len(summary.rows),
            stored_bytes=summary.size,
            plain_bytes=plain_bytes,
            duplicate=self.duplicate,
        )

    def finish(self) -> PackStored:
        """:meth:`seal` and :meth:`record` in one thread.

        Threads: index writer.

        Raises:
            CasstoreError: as those two.
        """
        self.seal()
        return self.record()

    def abort(self) -> None:
        """Drop what was written, unless it has its name already; harmless when called again."""
        self._reader.close()
        if self._writer is not None:
            self._writer.abort()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self._recorded)

    def _create(self) -> PackWriter | None:
        """A writer, or None if the store has a pack of this name."""
        try:
            return self._packs.store.create(self._pack)
        except Conflict:
            return None

    def _adopt(self) -> PackSummary:
        """Take the pack that lies in the store under this name for the one that was sent."""
        if self.duplicate:
            return self._packs.read_footer(self._pack)
        # TRUST: it was verified on its way in, but who says that this is that pack?  All of it is verified again.
        store = self._packs.store
        size = store.size(self._pack)
        reader = PackReader(self._pack, self._packs.rooms)
        try:
            for offset in range(0, size, _READ_BYTES):
                reader.feed(store.read(self._pack, offset, min(_READ_BYTES, size - offset)))
            return reader.finish()
        except (InvalidInput, DamagedObject) as error:
            raise Conflict(
                f"a pack named {self._pack} lies in the store and is damaged: {error.detail}",
                hint="send the objects in a pack of another name",
            ) from error
        finally:
            reader.close()
