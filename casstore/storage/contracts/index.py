"""What a :class:`~casstore.storage.roles.ChunkIndex` promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import sha256

from casstore.errors import StateError
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.contracts.expect import raises, run_threads
from casstore.storage.contracts.packs import pack_id
from casstore.storage.roles import ChunkIndex, FrameRow, Location, PackRecord


def object_id(number: int) -> bytes:
    """A 32-byte id that looks like a hash."""
    return sha256(number.to_bytes(8, "big")).digest()


def add(index: ChunkIndex, pack: PackId, numbers: range, kind: ObjectKind = ObjectKind.CHUNK) -> None:
    """Record a pack with one frame for each number."""
    frames = [FrameRow(kind, object_id(number), 100 * number, number + 1, 2 * number + 1) for number in numbers]
    index.add_pack(PackRecord(pack, 4096 + len(frames), len(frames)), frames)


class ChunkIndexContract(ABC):
    """Object id → location, and the memo."""

    @abstractmethod
    def make(self) -> ChunkIndex:
        """An empty index."""

    def test_an_empty_index_knows_nothing(self) -> None:
        """The first push to a new store is told that all is missing."""
        index = self.make()
        for kind in ObjectKind:
            assert index.has(kind, [object_id(1), object_id(2)]) == [False, False]
            assert index.locate(kind, [object_id(1)]) == [None]
            assert index.count(kind) == 0
            assert index.objects(kind, limit=10) == []
        assert index.has(ObjectKind.CHUNK, []) == []
        assert index.locate(ObjectKind.CHUNK, []) == []
        assert index.packs(limit=10) == []
        assert index.pack(pack_id(1)) is None
        index.close()

    def test_recorded_objects_are_found_where_they_lie(self) -> None:
        """A wrong location makes a present chunk unreadable."""
        index = self.make()
        add(index, pack_id(1), range(10))
        add(index, pack_id(2), range(10, 20))
        assert index.locate(ObjectKind.CHUNK, [object_id(13), object_id(99), object_id(4)]) == [
            Location(pack_id(2), 1300, 14, 27),
            None,
            Location(pack_id(1), 400, 5, 9),
        ]
        assert index.count(ObjectKind.CHUNK) == 20
        index.close()

    def test_answers_stand_in_the_order_of_the_questions(self) -> None:
        """Implementations sort for speed; a bitmap in sorted order would make clients skip the wrong chunks."""
        index = self.make()
        add(index, pack_id(1), range(200))
        asked = [object_id(number) for number in (7, 500, 3, 3, 501, 199, 0, 7)]
        assert index.has(ObjectKind.CHUNK, asked) == [True, False, True, True, False, True, True, True]
        assert [place and place.offset for place in index.locate(ObjectKind.CHUNK, asked)] == [
            700, None, 300, 300, None, 19900, 0, 700,
        ]  # fmt: skip
        index.close()

    def test_kinds_are_apart(self) -> None:
        """A page and its layout have the same id; one must not pass for the other."""
        index = self.make()
        page = FrameRow(ObjectKind.PAGE, object_id(1), 24, 10, 11)
        layout = FrameRow(ObjectKind.LAYOUT, object_id(1), 90, 20, 21)
        index.add_pack(PackRecord(pack_id(1), 200, 2), [page, layout])
        assert index.locate(ObjectKind.PAGE, [object_id(1)]) == [Location(pack_id(1), 24, 10, 11)]
        assert index.locate(ObjectKind.LAYOUT, [object_id(1)]) == [Location(pack_id(1), 90, 20, 21)]
        assert index.has(ObjectKind.CHUNK, [object_id(1)]) == [False]
        assert [index.count(kind) for kind in ObjectKind] == [0, 1, 0, 1, 0]
        index.close()

    def test_the_first_location_stays(self) -> None:
        """Two pushes upload the same chunk; what readers were told about the first stays true."""
        index = self.make()
        add(index, pack_id(1), range(5))
        add(index, pack_id(2), range(3, 8))
        assert index.locate(ObjectKind.CHUNK, [object_id(3)]) == [Location(pack_id(1), 300, 4, 7)]
        assert index.locate(ObjectKind.CHUNK, [object_id(5)]) == [Location(pack_id(2), 500, 6, 11)]
        assert index.count(ObjectKind.CHUNK) == 8
        index.close()

    def test_a_pack_may_hold_an_object_twice(self) -> None:
        """A rebuild meets whatever old packs hold and must not stop at it."""
        index = self.make()
        rows = [FrameRow(ObjectKind.CHUNK, object_id(1), offset, 5, 5) for offset in (24, 99)]
        index.add_pack(PackRecord(pack_id(1), 200, 2), rows)
        assert index.count(ObjectKind.CHUNK) == 1
        found = index.locate(ObjectKind.CHUNK, [object_id(1)])[0]
        assert found is not None
        assert found.offset in (24, 99)
        index.close()

    def test_recording_a_pack_twice_is_harmless(self) -> None:
        """After a crash a pack may be recorded again."""
        index = self.make()
        add(index, pack_id(1), range(5))
        add(index, pack_id(1), range(5))
        assert index.packs(limit=10) == [PackRecord(pack_id(1), 4101, 5)]
        assert index.count(ObjectKind.CHUNK) == 5
        index.close()

    def test_a_pack_without_frames_is_known(self) -> None:
        """Otherwise it looks like one that a crash left behind, forever."""
        index = self.make()
        index.add_pack(PackRecord(pack_id(1), 124, 0), [])
        assert index.pack(pack_id(1)) == PackRecord(pack_id(1), 124, 0)
        index.close()

    def test_packs_are_listed_in_order_and_in_pages(self) -> None:
        """Checking the store walks this list; a skipped pack is never checked."""
        index = self.make()
        packs = sorted(pack_id(number) for number in (5, 300, 1, 256, 2))
        for pack in reversed(packs):
            index.add_pack(PackRecord(pack, 1 << 33, 7), [])
        assert [record.pack for record in index.packs(limit=100)] == packs
        assert index.packs(limit=0) == []
        assert index.packs(after=packs[1], limit=2) == [PackRecord(pack, 1 << 33, 7) for pack in packs[2:4]]
        assert index.packs(after=packs[-1], limit=2) == []
        index.close()

    def test_objects_are_listed_in_order_and_in_pages(self) -> None:
        """Scrubbing walks this list and resumes by the last id."""
        index = self.make()
        add(index, pack_id(1), range(50))
        ids = sorted(object_id(number) for number in range(50))
        found: list[bytes] = []
        while page := index.objects(ObjectKind.CHUNK, after=found[-1] if found else b"", limit=7):
            assert len(page) <= 7
            assert [place for _, place in page] == index.locate(ObjectKind.CHUNK, [key for key, _ in page])
            found += [key for key, _ in page]
        assert found == ids
        assert index.objects(ObjectKind.CHUNK, limit=0) == []
        assert [key for key, _ in index.objects(ObjectKind.CHUNK, after=ids[9][:31], limit=1)] == [ids[9]]
        index.close()

    def test_the_memo_remembers_what_was_added(self) -> None:
        """A memo that says yes too often lets an unproven page through."""
        index = self.make()
        assert index.memo_has([object_id(1)]) == [False]
        index.memo_add([])
        index.memo_add([object_id(2), object_id(1), object_id(2)])
        index.memo_add([object_id(1)])
        assert index.memo_has([object_id(1), object_id(3), object_id(2)]) == [True, False, True]
        assert index.memo_has([]) == []
        assert index.has(ObjectKind.CHUNK, [object_id(1)]) == [False]
        index.close()

    def test_ids_of_another_length_are_refused(self) -> None:
        """A cut id would match nothing forever, silently."""
        index = self.make()
        for wrong in (b"", b"x" * 31, b"x" * 33):
            with raises(ValueError):
                index.has(ObjectKind.CHUNK, [object_id(1), wrong])
            with raises(ValueError):
                index.locate(ObjectKind.CHUNK, [wrong])
            with raises(ValueError):
                index.memo_add([wrong])
            with raises(ValueError):
                row = FrameRow(ObjectKind.CHUNK, wrong, 0, 1, 1)
                index.add_pack(PackRecord(pack_id(1), 10, 2), [FrameRow(ObjectKind.CHUNK, object_id(1), 0, 1, 1), row])
        assert index.packs(limit=1) == []
        assert index.count(ObjectKind.CHUNK) == 0
        index.close()

    def test_readers_see_a_pack_whole_or_not_at_all(self) -> None:
        """A push must not be told that half of another push's pack is present."""
        index = self.make()
        ids = [object_id(number) for number in range(100)]
        seen: list[set[bool]] = []

        def read() -> None:
            for _ in range(50):
                seen.append(set(index.has(ObjectKind.CHUNK, ids)))

        run_threads([read, read, lambda: add(index, pack_id(1), range(100))])
        assert all(len(answers) == 1 for answers in seen)
        assert index.has(ObjectKind.CHUNK, ids) == [True] * 100
        index.close()

    def test_a_closed_index_refuses(self) -> None:
        """A request that outlives shutdown must fail cleanly."""
        index = self.make()
        index.close()
        index.close()
        with raises(StateError):
            index.has(ObjectKind.CHUNK, [object_id(1)])
        with raises(StateError):
            add(index, pack_id(1), range(1))


class DurableChunkIndexContract(ChunkIndexContract):
    """What also holds for an index that outlives its process."""

    @abstractmethod
    def reopen(self, index: ChunkIndex) -> ChunkIndex:
        """Close ``index`` and open the same one again."""

    def test_everything_survives(self) -> None:
        """A forgotten chunk makes every tree that uses it unreadable until a rebuild."""
        index = self.make()
        add(index, pack_id(1), range(10))
        add(index, pack_id(2), range(10, 12), ObjectKind.PAGE)
        index.memo_add([object_id(77)])
        index = self.reopen(index)
        assert index.count(ObjectKind.CHUNK) == 10
        assert index.locate(ObjectKind.PAGE, [object_id(11)]) == [Location(pack_id(2), 1100, 12, 23)]
        assert [record.frames for record in index.packs(limit=5)] == [10, 2]
        assert index.memo_has([object_id(77)]) == [True]
        add(index, pack_id(3), range(20, 21))
        assert index.locate(ObjectKind.CHUNK, [object_id(0), object_id(20)]) == [
            Location(pack_id(1), 0, 1, 1),
            Location(pack_id(3), 2000, 21, 41),
        ]
        index.close()
