"""What a :class:`~casstore.storage.roles.ChunkIndex` promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import sha256

from casstore.errors import PackNotFound, StateError
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId
from casstore.storage.contracts.expect import raises, run_threads
from casstore.storage.contracts.packs import pack_id
from casstore.storage.roles import ChunkIndex, FileProof, FrameRow, Location, Move, PackRecord, PackUsage


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

    def test_more_frames_of_a_known_pack(self) -> None:
        """Layouts are believed once they are proven, which may be later than their pack."""
        index = self.make()
        layout = FrameRow(ObjectKind.LAYOUT, object_id(1), 90, 20, 21)
        with raises(PackNotFound):
            index.add_frames(pack_id(1), [layout])
        add(index, pack_id(1), range(3))
        index.add_frames(pack_id(1), [layout])
        place = Location(pack_id(1), 90, 20, 21)
        assert index.locate(ObjectKind.LAYOUT, [object_id(1)]) == [place]
        assert index.quarantine(ObjectKind.LAYOUT, object_id(1), place, at_ms=1, reason="bits")
        add(index, pack_id(2), range(0))
        index.add_frames(pack_id(2), [layout, FrameRow(ObjectKind.CHUNK, object_id(2), 7, 7, 7)])
        assert index.locate(ObjectKind.LAYOUT, [object_id(1)]) == [Location(pack_id(2), 90, 20, 21)]
        assert index.quarantined(limit=1) == []
        assert index.locate(ObjectKind.CHUNK, [object_id(2)]) == [Location(pack_id(1), 200, 3, 5)]
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

    # --- collection --------------------------------------------------------------------------------------------------

    def test_what_is_condemned_is_missing_and_can_be_read(self) -> None:
        """Whoever reads it still may; whoever would rely on it must bring it again."""
        index = self.make()
        add(index, pack_id(1), range(4))
        before = index.losses
        assert index.condemn(ObjectKind.CHUNK, [object_id(1), object_id(9), object_id(1)], at_ms=7, mark=3) == 1
        assert index.losses > before
        assert index.has(ObjectKind.CHUNK, [object_id(0), object_id(1)]) == [True, False]
        place = Location(pack_id(1), 100, 2, 3)
        assert index.locate(ObjectKind.CHUNK, [object_id(1)]) == [place]
        assert index.locate(ObjectKind.CHUNK, [object_id(1)], live=True) == [None]
        assert index.count(ObjectKind.CHUNK) == 3
        assert object_id(1) not in dict(index.objects(ObjectKind.CHUNK, limit=9))
        (row,) = index.condemned(limit=9)
        assert row == (ObjectKind.CHUNK, object_id(1), place, 7, 3)
        assert index.condemn(ObjectKind.CHUNK, [object_id(1)], at_ms=8, mark=4) == 0
        assert index.condemned(limit=9) == [row]
        index.close()

    def test_a_new_copy_makes_it_live_at_the_new_place(self) -> None:
        """The old copy may be deleted, or be the damaged one."""
        index = self.make()
        add(index, pack_id(1), range(3))
        index.condemn(ObjectKind.CHUNK, [object_id(1)], at_ms=7, mark=3)
        place = index.locate(ObjectKind.CHUNK, [object_id(2)])[0]
        assert place is not None
        assert index.quarantine(ObjectKind.CHUNK, object_id(2), place, at_ms=1, reason="rot")
        add(index, pack_id(2), range(3))
        assert [p and p.pack for p in index.locate(ObjectKind.CHUNK, [object_id(n) for n in range(3)])] == [
            pack_id(1), pack_id(2), pack_id(2),
        ]  # fmt: skip
        assert (index.condemned(limit=9), index.quarantined(limit=9)) == ([], [])
        index.close()

    def test_reviving_is_all_or_nothing(self) -> None:
        """A commit that half succeeded would leave a tree with holes."""
        index = self.make()
        add(index, pack_id(1), range(5))
        ids = [object_id(number) for number in range(5)]
        index.condemn(ObjectKind.CHUNK, ids[:3], at_ms=7, mark=3)
        absent = index.revive([(ObjectKind.CHUNK, ids), (ObjectKind.PAGE, [object_id(0)])])
        assert absent == [(ObjectKind.PAGE, object_id(0))]
        assert index.has(ObjectKind.CHUNK, ids) == [False, False, False, True, True]
        assert index.revive(iter([(ObjectKind.CHUNK, ids), (ObjectKind.CHUNK, ids[:1])])) == []
        assert index.has(ObjectKind.CHUNK, ids) == [True] * 5
        assert index.condemned(limit=9) == []
        assert index.locate(ObjectKind.CHUNK, [object_id(2)]) == [Location(pack_id(1), 200, 3, 5)]
        index.close()

    def test_only_what_is_still_condemned_is_dropped(self) -> None:
        """What was revived since, or condemned anew, must not be lost to an old list."""
        index = self.make()
        add(index, pack_id(1), range(6))
        ids = [object_id(number) for number in range(6)]
        index.condemn(ObjectKind.CHUNK, ids[:3], at_ms=7, mark=3)
        rows = index.condemned(limit=9)
        index.revive([(ObjectKind.CHUNK, ids[:2])])
        index.condemn(ObjectKind.CHUNK, ids[:1], at_ms=9, mark=4)
        before = index.losses
        assert index.drop(rows) == 1
        assert index.losses > before
        assert index.locate(ObjectKind.CHUNK, ids[:3]) == [
            Location(pack_id(1), 0, 1, 1), Location(pack_id(1), 100, 2, 3), None,
        ]  # fmt: skip
        assert index.has(ObjectKind.CHUNK, ids[:3]) == [False, True, False]
        assert [row.id for row in index.condemned(limit=9)] == ids[:1]
        index.close()

    def test_condemned_and_quarantined_are_listed_in_pages(self) -> None:
        """A sweep goes through millions of them."""
        index = self.make()
        for kind in (ObjectKind.CHUNK, ObjectKind.PAGE):
            add(index, pack_id(kind), range(10), kind)
            index.condemn(kind, [object_id(number) for number in range(10)], at_ms=5, mark=1)
        rows = index.condemned(limit=100)
        assert [(row.kind, row.id) for row in rows] == sorted((row.kind, row.id) for row in rows)
        found = index.condemned(limit=7)
        while page := index.condemned(after=(found[-1].kind, found[-1].id), limit=7):
            found += page
        assert found == rows
        for row in rows:
            assert index.quarantine(row.kind, row.id, row.location, at_ms=6, reason="why")
        bad = index.quarantined(limit=100)
        assert [row[:3] for row in bad] == [row[:3] for row in rows]
        assert index.quarantined(after=(bad[3].kind, bad[3].id), limit=2) == bad[4:6]
        assert index.forget_quarantined([bad[0]._replace(at_ms=99), bad[1]]) == 1
        assert index.quarantined(limit=1) == bad[:1]
        index.close()

    def test_a_restarted_grace_begins_for_all(self) -> None:
        """After a clock jumped nobody knows how long ago anything was condemned."""
        index = self.make()
        add(index, pack_id(1), range(3))
        index.condemn(ObjectKind.CHUNK, [object_id(number) for number in range(3)], at_ms=5, mark=1)
        index.restart_grace(77)
        assert [(row.at_ms, row.mark) for row in index.condemned(limit=9)] == [(77, 1)] * 3
        index.close()

    def test_quarantine_hides_and_can_be_undone(self) -> None:
        """Damaged bytes must not be handed out, nor keep the next push from healing them."""
        index = self.make()
        add(index, pack_id(1), range(2))
        place = index.locate(ObjectKind.CHUNK, [object_id(1)])[0]
        assert place is not None
        other = place._replace(offset=1)
        assert not index.quarantine(ObjectKind.CHUNK, object_id(1), other, at_ms=4, reason="elsewhere")
        before = index.losses
        assert index.quarantine(ObjectKind.CHUNK, object_id(1), place, at_ms=4, reason="checksum")
        assert index.losses > before
        assert index.locate(ObjectKind.CHUNK, [object_id(1)]) == [None]
        assert index.has(ObjectKind.CHUNK, [object_id(1)]) == [False]
        assert index.quarantined(limit=9) == [(ObjectKind.CHUNK, object_id(1), place, 4, "checksum")]
        assert index.release(ObjectKind.CHUNK, object_id(1))
        assert not index.release(ObjectKind.CHUNK, object_id(1))
        assert index.locate(ObjectKind.CHUNK, [object_id(1)]) == [place]
        index.close()

    def test_moving_follows_only_what_lies_where_it_was_copied_from(self) -> None:
        """A frame that was healed or dropped while it was copied must not come back."""
        index = self.make()
        add(index, pack_id(1), range(4))
        index.condemn(ObjectKind.CHUNK, [object_id(2)], at_ms=5, mark=1)
        ids = [object_id(number) for number in range(3)]
        moves = [
            Move(
                ObjectKind.CHUNK,
                id,
                Location(pack_id(1), 100 * n + (n == 1), n + 1, 2 * n + 1),
                Location(pack_id(2), 24 + n, n + 1, 2 * n + 1),
            )
            for n, id in enumerate(ids)
        ]
        assert index.move(PackRecord(pack_id(2), 500, 3), moves) == 2
        places = index.locate(ObjectKind.CHUNK, ids)
        assert [place and place.pack for place in places] == [pack_id(2), pack_id(1), pack_id(2)]
        assert index.has(ObjectKind.CHUNK, ids) == [True, True, False]
        assert index.condemned(limit=9)[0][2:] == (Location(pack_id(2), 26, 3, 5), 5, 1)
        assert index.pack(pack_id(2)) == PackRecord(pack_id(2), 500, 3)
        index.close()

    def test_usage_counts_what_rows_point_to(self) -> None:
        """A pack that is deleted although a row points to it is lost content."""
        index = self.make()
        add(index, pack_id(1), range(4))
        add(index, pack_id(2), range(2, 5), ObjectKind.PAGE)
        index.add_pack(PackRecord(pack_id(3), 124, 0), [])
        index.condemn(ObjectKind.CHUNK, [object_id(1), object_id(3)], at_ms=5, mark=1)
        place = index.locate(ObjectKind.CHUNK, [object_id(2)])[0]
        assert place is not None
        index.quarantine(ObjectKind.CHUNK, object_id(2), place, at_ms=5, reason="")
        assert index.usage() == {
            pack_id(1): PackUsage(1, 6, 3, 4), pack_id(2): PackUsage(12, 0, 0, 3), pack_id(3): PackUsage(0, 0, 0, 0),
        }  # fmt: skip
        index.close()

    def test_a_retired_pack_is_forgotten_or_comes_back(self) -> None:
        """Between the decision and the deletion the same pack may be sent again."""
        index = self.make()
        add(index, pack_id(1), range(2))
        add(index, pack_id(2), range(2, 4))
        for pack in (1, 2):
            rows = [object_id(number) for number in range(2 * pack - 2, 2 * pack)]
            index.condemn(ObjectKind.CHUNK, rows, at_ms=5, mark=1)
        index.drop(index.condemned(limit=9))
        for pack in (1, 2):
            index.retire_pack(pack_id(pack), at_ms=40 + pack)
        assert index.packs(limit=9) == []
        assert index.pack(pack_id(1)) is None
        assert index.retired(limit=9) == sorted(
            [(PackRecord(pack_id(1), 4098, 2), 41), (PackRecord(pack_id(2), 4098, 2), 42)]
        )
        assert len(index.retired(limit=1)) == 1
        add(index, pack_id(1), range(2))
        assert index.has(ObjectKind.CHUNK, [object_id(0)]) == [True]
        index.forget_pack(pack_id(1))
        index.forget_pack(pack_id(2))
        assert index.retired(limit=9) == []
        assert index.packs(limit=9) == [PackRecord(pack_id(1), 4098, 2)]
        add(index, pack_id(3), range(7, 9))
        assert index.locate(ObjectKind.CHUNK, [object_id(0), object_id(8)]) == [
            Location(pack_id(1), 0, 1, 1), Location(pack_id(3), 800, 9, 17),
        ]  # fmt: skip
        index.close()

    def test_proofs_of_files_go_with_their_chunk(self) -> None:
        """What remembers millions of files must not outlive them, nor say yes to others."""
        index = self.make()
        add(index, pack_id(1), range(3))
        proofs = [FileProof(object_id(chunk), object_id(key)) for chunk in range(3) for key in (50, 51)]
        index.files_add([])
        index.files_add([*proofs[:5], proofs[0]])
        assert index.files_have([*proofs, FileProof(object_id(50), object_id(0))]) == [True] * 5 + [False] * 2
        index.condemn(ObjectKind.CHUNK, [object_id(1), object_id(2)], at_ms=5, mark=1)
        rows = index.condemned(limit=9)
        index.revive([(ObjectKind.CHUNK, [object_id(2)])])
        assert index.files_have(proofs) == [True] * 5 + [False]
        index.drop(rows)
        assert index.files_have(proofs) == [True, True, False, False, True, False]
        assert index.memo_has([object_id(50)]) == [False]
        with raises(ValueError):
            index.files_add([FileProof(b"short", object_id(1))])
        index.close()

    def test_packs_and_proofs_are_recorded_together(self) -> None:
        """A layout without its memo, or the other way round, costs the next push a proof of everything."""
        index = self.make()
        frame = FrameRow(ObjectKind.LAYOUT, object_id(1), 24, 5, 5)
        packs = [(PackRecord(pack_id(number), 200, 1), [frame._replace(id=object_id(number))]) for number in (1, 2)]
        index.remember()
        index.remember(packs, memo=[object_id(7), object_id(8)], files=[FileProof(object_id(3), object_id(4))])
        assert index.has(ObjectKind.LAYOUT, [object_id(1), object_id(2)]) == [True, True]
        assert index.memo_has([object_id(7), object_id(8), object_id(9)]) == [True, True, False]
        assert index.files_have([FileProof(object_id(3), object_id(4))]) == [True]
        with raises(ValueError):
            index.remember(packs=[(PackRecord(pack_id(3), 200, 1), [frame])], memo=[b"short"])
        assert index.pack(pack_id(3)) is None
        index.close()

    def test_single_rows_are_found_by_their_key(self) -> None:
        """The first and the last key of a table are where a search by neighbours goes wrong."""
        index = self.make()
        ids = [bytes(32), object_id(1), b"\xff" * 32]
        for kind in ObjectKind:
            frames = [FrameRow(kind, id, 24 + n, 5, 5) for n, id in enumerate(ids)]
            index.add_pack(PackRecord(pack_id(kind), 200, 3), frames)
            for n, id in enumerate(ids):
                assert index.find_quarantined(kind, [id]) == [None]
                assert index.quarantine(kind, id, Location(pack_id(kind), 24 + n, 5, 5), at_ms=kind, reason=str(n))
            rows = index.find_quarantined(kind, [ids[2], object_id(9), ids[0]])
            assert [row and (row.kind, row.reason) for row in rows] == [(kind, "2"), None, (kind, "0")]
        for pack in (PackId(bytes(16)), PackId(b"\xff" * 16)):
            index.add_pack(PackRecord(pack, 124, 0), [])
            assert not index.is_retired(pack)
            index.retire_pack(pack, at_ms=1)
            assert index.is_retired(pack)
        assert not index.is_retired(pack_id(77))
        index.close()

    def test_notes_and_the_memo_can_be_taken_back(self) -> None:
        """A scrub that forgets how far it came begins anew for ever."""
        index = self.make()
        assert index.read_note("scrub") is None
        index.write_note("scrub", b"here")
        index.write_note("scrub", b"there")
        assert index.read_note("scrub") == b"there"
        index.write_note("scrub", None)
        index.write_note("scrub", None)
        assert index.read_note("scrub") is None
        with raises(ValueError):
            index.write_note("scrub", bytes(65_537))
        index.memo_add([object_id(1), object_id(2)])
        index.memo_drop([object_id(1), object_id(3)])
        assert index.memo_has([object_id(1), object_id(2)]) == [False, True]
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
        index.condemn(ObjectKind.PAGE, [object_id(10)], at_ms=5, mark=1)
        index.write_note("gc", b"state")
        index = self.reopen(index)
        assert [row[1:] for row in index.condemned(limit=2)] == [
            (object_id(10), Location(pack_id(2), 1000, 11, 21), 5, 1)
        ]
        assert index.read_note("gc") == b"state"
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
