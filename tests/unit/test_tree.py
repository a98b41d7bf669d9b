"""Trees: what a listing may say, where pages end, and that nothing hostile gets past encoder or decoder."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import pytest

from casstore.errors import DigestMismatch, HostileTree, MalformedDocument, TooLarge
from casstore.formats.tree import (
    EMPTY_DIGEST,
    PAGE_MAGIC,
    BuiltPage,
    EntryType,
    PageCutter,
    TreeEntry,
    TreeVerifier,
    decode_page,
    decode_root,
    encode_entry,
    encode_page,
    encode_root,
    page_digest,
    tree_digest,
)
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest, PageDigest, TreeDigest
from casstore.limits import (
    PAGE_CUT_DIVISOR,
    PAGE_ENTRIES_MAX,
    PAGE_ENTRIES_MIN,
    PAGE_SIZE_CUT_BYTES,
    PAGE_SIZE_MAX_BYTES,
)

ROOT = TreeEntry(b"", EntryType.DIRECTORY, 0o755)


def file(path: bytes, content: bytes = b"x", mode: int = 0o644) -> TreeEntry:
    return TreeEntry(path, EntryType.FILE, mode, len(content), BlobDigest(blake3_256(content)))


def directory(path: bytes, mode: int = 0o755) -> TreeEntry:
    return TreeEntry(path, EntryType.DIRECTORY, mode)


def link(path: bytes, target: bytes = b"elsewhere") -> TreeEntry:
    return TreeEntry(path, EntryType.LINK, 0, target=target)


def raw_entry(entry: TreeEntry) -> bytes:
    """An entry as the format's document spells it, written without the code under test and without its checks."""
    head = struct.pack(">H", len(entry.path)) + entry.path + struct.pack(">BH", entry.type, entry.mode)
    if entry.type == EntryType.FILE:
        assert entry.digest is not None
        return head + struct.pack(">Q", entry.size) + entry.digest
    if entry.type == EntryType.LINK:
        return head + struct.pack(">H", len(entry.target)) + entry.target
    return head


def raw_page(entries: Iterable[TreeEntry]) -> bytes:
    return b"CASP\x01" + b"".join(raw_entry(entry) for entry in entries)


def raw_root(pages: Sequence[Sequence[TreeEntry]]) -> bytes:
    """A root over these pages, whatever they hold: what a hostile client would send."""
    data = b"CASR\x01" + struct.pack(">I", len(pages))
    for entries in pages:
        page = raw_page(entries)
        first = entries[0].path
        size = sum(entry.size for entry in entries)
        data += page_digest(page) + struct.pack(">IIQH", len(entries), len(page), size, len(first)) + first
    return data


def cut(entries: Iterable[TreeEntry]) -> list[BuiltPage]:
    cutter = PageCutter()
    pages = [page for entry in entries if (page := cutter.add(entry)) is not None]
    return pages + cutter.finish()


def verify(root: bytes, pages: Iterable[bytes], expected: TreeDigest | None = None) -> list[TreeEntry]:
    verifier = TreeVerifier(root, expected)
    entries = [entry for page in pages for entry in verifier.add_page(page)]
    verifier.finish()
    return entries


def hash_cuts(path: bytes) -> bool:
    return int.from_bytes(blake3_256(path)[:8], "little") % PAGE_CUT_DIVISOR == 0


def names(count: int, *, cuts: bool, prefix: bytes = b"f") -> list[bytes]:
    """``count`` ascending names of which the path's hash cuts behind all, or behind none."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        name = prefix + b"%09d" % number
        if hash_cuts(name) == cuts:
            found.append(name)
        number += 1
    return found


EVERYTHING = [
    ROOT,
    directory(b"a"),
    file(b"a-b"),
    directory(b"a/empty"),
    file(b"a/x", b"content", 0o4755),
    file(b"caf\xe9\n\x80", b"not UTF-8, with a newline"),
    file(b"n" * 255),
    TreeEntry(b"none", EntryType.FILE, 0o400, 0, EMPTY_DIGEST),
    link(b"to", b"../../etc/passwd"),
    link(b"to2", b"/"),
]


def test_a_page_of_every_kind_of_entry_comes_back_as_it_was() -> None:
    data = encode_page(EVERYTHING)
    assert data == raw_page(EVERYTHING)
    assert decode_page(data) == EVERYTHING
    assert all(type(entry.digest) in (BlobDigest, type(None)) for entry in decode_page(data))


def test_an_entry_is_spelled_as_the_document_says() -> None:
    for entry in EVERYTHING:
        assert encode_entry(entry) == raw_entry(entry)


HOSTILE = {
    "dot-dot": [ROOT, file(b"..")],
    "dot-dot below": [ROOT, directory(b"a"), file(b"a/..")],
    "dot-dot in the middle": [ROOT, directory(b"a"), directory(b"a/.."), file(b"a/../b")],
    "dot": [ROOT, file(b".")],
    "absolute": [ROOT, file(b"/etc/passwd")],
    "empty component": [ROOT, directory(b"a"), file(b"a//b")],
    "trailing slash": [ROOT, directory(b"a/")],
    "NUL": [ROOT, file(b"a\0b")],
    "NUL between slashes": [ROOT, directory(b"a"), directory(b"a/\0"), file(b"a/\0/b")],
    "duplicate": [ROOT, file(b"a"), file(b"a")],
    "not sorted": [ROOT, file(b"b"), file(b"a")],
    "file below a link": [ROOT, link(b"a"), file(b"a/b")],
    "file below a file": [ROOT, file(b"a"), file(b"a/b")],
    "link below a link": [ROOT, link(b"a"), link(b"a/b")],
    "no parent": [ROOT, file(b"a/b")],
    "no parent, a sibling's name is its prefix": [ROOT, directory(b"a"), directory(b"a-"), file(b"a.b/c")],
    "root is a file": [TreeEntry(b"", EntryType.FILE, 0o644, 1, BlobDigest(bytes(32)))],
    "root is a link": [link(b"")],
    "root twice": [ROOT, ROOT],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_listing_is_refused_wherever_it_shows_up(entries: list[TreeEntry]) -> None:
    """Whoever restores such a tree would write outside of the destination, or through a link."""
    with pytest.raises(HostileTree):
        encode_page(entries)
    with pytest.raises(HostileTree):
        decode_page(raw_page(entries))
    with pytest.raises(HostileTree):
        cut(entries)
    with pytest.raises(HostileTree):
        verify(raw_root([entries]), [raw_page(entries)])


@pytest.mark.parametrize(
    "entries", [[], [file(b"a")], [directory(b"a"), file(b"a/b")]], ids=["nothing", "file", "rest"]
)
def test_a_tree_begins_with_its_root_directory(entries: list[TreeEntry]) -> None:
    with pytest.raises(HostileTree):
        cut(entries)
    if entries:
        with pytest.raises(HostileTree):
            verify(raw_root([entries]), [raw_page(entries)])


UNLIKELY = {
    "mode": TreeEntry(b"a", EntryType.FILE, 0o10000, 1, BlobDigest(bytes(32))),
    "directory's mode": directory(b"a", 0o10000),
    "link's mode": TreeEntry(b"a", EntryType.LINK, 0o777, target=b"b"),
    "link to nothing": TreeEntry(b"a", EntryType.LINK, 0),
    "link with NUL": link(b"a", b"b\0c"),
    "empty file with a digest": TreeEntry(b"a", EntryType.FILE, 0o644, 0, BlobDigest(bytes(32))),
    "larger than a file can be": TreeEntry(b"a", EntryType.FILE, 0o644, 2**63, BlobDigest(bytes(32))),
}


@pytest.mark.parametrize("entry", UNLIKELY.values(), ids=UNLIKELY.keys())
def test_fields_that_no_file_system_gives_are_refused(entry: TreeEntry) -> None:
    """An empty file with another file's digest would be acknowledged and could never be restored."""
    with pytest.raises(MalformedDocument):
        encode_page([ROOT, entry])
    with pytest.raises(MalformedDocument):
        decode_page(raw_page([ROOT, entry]))
    with pytest.raises(MalformedDocument):
        cut([ROOT, entry])


@pytest.mark.parametrize(
    "entry",
    [
        TreeEntry(b"a", EntryType.FILE, 0o644, 1, None),
        TreeEntry(b"a", EntryType.FILE, 0o644, 1, BlobDigest(bytes(32)), b"target"),
        TreeEntry(b"a", EntryType.FILE, -1, 1, BlobDigest(bytes(32))),
        TreeEntry(b"a", EntryType.DIRECTORY, 0o755, 1),
        TreeEntry(b"a", EntryType.DIRECTORY, 0o755, target=b"b"),
        TreeEntry(b"a", EntryType.LINK, 0, 1, target=b"b"),
    ],
)
def test_fields_of_another_type_are_not_dropped_silently(entry: TreeEntry) -> None:
    with pytest.raises(MalformedDocument):
        encode_entry(entry)


def test_a_page_must_be_whole() -> None:
    data = encode_page(EVERYTHING)
    for length in range(len(data)):
        try:
            entries = decode_page(data[:length])
        except MalformedDocument:
            continue
        assert encode_page(entries) == data[:length]  # cut between two entries: a shorter page, with another digest
    for extra in (b"\0", b"\0\0", b"CASP\x01", data):
        with pytest.raises(MalformedDocument):
            decode_page(data + extra)


@pytest.mark.parametrize("data", [b"", b"CASP", b"CASP\x02", b"CASP\x01", b"casp\x01", b"CASR\x01\0\0\0\0"])
def test_what_is_no_page_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedDocument):
        decode_page(data)


def test_an_entry_type_that_does_not_exist_is_refused() -> None:
    for kind in (0, 4, 255):
        with pytest.raises(MalformedDocument):
            decode_page(raw_page([ROOT]) + b"\0\x01a" + struct.pack(">BH", kind, 0) + bytes(50))


def test_lengths_are_bounded() -> None:
    with pytest.raises(TooLarge):
        encode_entry(file(b"n" * 65_536))
    with pytest.raises(TooLarge):
        encode_entry(link(b"n", b"t" * 65_536))
    with pytest.raises(TooLarge):
        decode_page(PAGE_MAGIC + bytes(PAGE_SIZE_MAX_BYTES))
    with pytest.raises(MalformedDocument):
        encode_page([ROOT, *(file(name) for name in names(PAGE_ENTRIES_MAX, cuts=False))])


# --- where pages end -------------------------------------------------------------------------------------------------


def test_a_page_is_cut_behind_the_first_path_that_says_so_once_it_is_long_enough() -> None:
    quiet = names(200, cuts=False)
    early = names(1, cuts=True, prefix=b"a")[0]
    late = names(1, cuts=True, prefix=b"f")[0]
    paths = sorted({*quiet, early, late})
    pages = cut([ROOT, *(file(path) for path in paths)])
    assert paths.index(early) + 2 < PAGE_ENTRIES_MIN < paths.index(late) + 2
    assert [page.entries[-1].path for page in pages] == [late] if paths[-1] == late else [late, paths[-1]]


def test_a_page_of_the_least_size_is_cut_at_its_64th_entry() -> None:
    quiet = names(PAGE_ENTRIES_MIN - 2, cuts=False, prefix=b"a")
    loud = names(3, cuts=True, prefix=b"b")
    pages = cut([ROOT, *(file(path) for path in (*quiet, *loud))])
    assert [page.ref.entries for page in pages] == [PAGE_ENTRIES_MIN, 2]
    assert [page.ref.first_path for page in pages] == [b"", loud[1]]


def test_a_page_is_cut_at_4096_entries() -> None:
    paths = names(PAGE_ENTRIES_MAX + 10, cuts=False)
    pages = cut([ROOT, *(file(path) for path in paths)])
    assert [page.ref.entries for page in pages] == [PAGE_ENTRIES_MAX, 11]
    root = encode_root([page.ref for page in pages])
    assert len(verify(root, [page.data for page in pages], tree_digest(root))) == PAGE_ENTRIES_MAX + 11


def test_a_page_is_cut_at_a_mebibyte_and_never_exceeds_its_bound() -> None:
    """Long targets fill a page with few entries; the last one may be as long as an entry can be."""
    entries = [ROOT, *(link(b"%03d" % number + b"n" * 60_000, b"t" * 60_000) for number in range(30))]
    pages = cut(entries)
    assert [entry for page in pages for entry in page.entries] == entries
    for page in pages[:-1]:
        assert PAGE_SIZE_CUT_BYTES <= len(page.data) <= PAGE_SIZE_MAX_BYTES
    root = encode_root([page.ref for page in pages])
    assert verify(root, [page.data for page in pages]) == entries

    longest = [ROOT, link(b"a" * 65_535, b"t" * 65_535)]
    fill = PAGE_SIZE_CUT_BYTES - 1 - len(encode_page(longest))
    while fill > 70_000:
        longest.append(link(b"b%03d" % len(longest), b"t" * 60_000))
        fill = PAGE_SIZE_CUT_BYTES - 1 - len(encode_page(longest))
    longest.append(link(b"c", b"t" * (fill - 8)))
    assert len(encode_page(longest)) == PAGE_SIZE_CUT_BYTES - 1
    longest.append(link(b"d" * 65_535, b"t" * 65_535))
    (page,) = cut(longest)
    assert len(page.data) <= PAGE_SIZE_MAX_BYTES
    assert decode_page(page.data) == longest


def big_tree() -> list[TreeEntry]:
    entries = [ROOT]
    for number in range(40):
        entries.append(directory(b"d%02d" % number))
        entries += [file(b"d%02d/f%03d" % (number, at), b"%d" % (number * at)) for at in range(120)]
        entries.append(file(b"d%02d0" % number))
    return sorted(entries)


def test_a_changed_file_rewrites_one_page_and_an_inserted_one_normally_one() -> None:
    """Deduplication of listings, and the speed of an unchanged push, live from this."""
    before = big_tree()
    digests = {page.ref.digest for page in cut(before)}
    assert len(digests) > 5
    changed = [file(b"d20/f050", b"changed") if entry.path == b"d20/f050" else entry for entry in before]
    assert len({page.ref.digest for page in cut(changed)} - digests) == 1
    added = sorted([*before, file(b"d20/f0505")])
    assert len({page.ref.digest for page in cut(added)} - digests) == 1
    removed = [entry for entry in before if entry.path != b"d20/f051"]
    assert len({page.ref.digest for page in cut(removed)} - digests) == 1


# --- the verifier ----------------------------------------------------------------------------------------------------


def test_a_tree_of_many_pages_verifies() -> None:
    entries = big_tree()
    pages = cut(entries)
    root = encode_root([page.ref for page in pages])
    assert decode_root(root) == [page.ref for page in pages]
    assert verify(root, [page.data for page in pages], tree_digest(root)) == entries


def test_a_tree_200_deep_verifies() -> None:
    parts = [b"x" * 20] * 200
    entries = [ROOT, *(directory(b"/".join(parts[:depth])) for depth in range(1, 200)), file(b"/".join(parts))]
    pages = cut(entries)
    root = encode_root([page.ref for page in pages])
    assert verify(root, [page.data for page in pages]) == entries


def test_the_verifier_wants_the_root_and_the_pages_that_were_asked_for() -> None:
    pages = cut(big_tree())
    root = encode_root([page.ref for page in pages])
    other = encode_root([page.ref for page in cut([ROOT])])
    with pytest.raises(DigestMismatch) as caught:
        TreeVerifier(other, tree_digest(root))
    assert caught.value.expected == str(tree_digest(root))
    assert caught.value.found == str(tree_digest(other))
    with pytest.raises(DigestMismatch):
        verify(root, [pages[1].data])
    with pytest.raises(MalformedDocument, match="ends after"):
        verify(root, [page.data for page in pages[:-1]])
    with pytest.raises(MalformedDocument, match="one more"):
        verify(root, [*(page.data for page in pages), pages[-1].data])


def chopped(entries: Sequence[TreeEntry], ends: Sequence[int]) -> tuple[bytes, list[bytes]]:
    """The tree with its pages cut at these indices instead."""
    starts = [0, *ends]
    runs = [entries[start:end] for start, end in zip(starts, [*ends, len(entries)], strict=True)]
    return raw_root(runs), [raw_page(run) for run in runs]


def test_a_page_that_ends_where_the_rule_does_not_say_is_refused() -> None:
    """Else one directory would have many digests."""
    entries = big_tree()
    ends: list[int] = []
    for page in cut(entries)[:-1]:
        ends.append((ends[-1] if ends else 0) + page.ref.entries)
    root, pages = chopped(entries, ends)
    assert verify(root, pages) == entries
    for wrong, message in (
        (ends[1:], "goes on behind"),
        ([*ends[:3], *ends[4:]], "goes on behind"),
        (ends[:-1], "goes on behind"),
        ([ends[0] - 1, *ends[1:]], "ends before"),
        ([70, *ends], "ends before"),
        ([*ends, ends[-1] + 70], "ends before"),
        ([30, *ends], "before the rule allows"),
    ):
        root, pages = chopped(entries, wrong)
        with pytest.raises(MalformedDocument, match=message):
            verify(root, pages)


def test_a_page_that_goes_on_behind_a_mebibyte_is_refused() -> None:
    entries = [ROOT, *(link(b"%03d" % number, b"t" * 60_000) for number in range(18)), file(b"z")]
    assert len(raw_page(entries[:-1])) >= PAGE_SIZE_CUT_BYTES
    with pytest.raises(MalformedDocument, match="goes on behind"):
        verify(raw_root([entries]), [raw_page(entries)])


def test_what_lies_below_a_link_on_an_earlier_page_is_refused() -> None:
    """By itself the later page looks innocent: only the whole tree shows it."""
    quiet = names(PAGE_ENTRIES_MIN - 3, cuts=False, prefix=b"a")
    last = names(1, cuts=True, prefix=b"z")[0]
    for culprit in (link(b"b"), file(b"b")):
        first = [ROOT, *(file(path) for path in quiet), culprit, file(last)]
        # The hash cuts behind `last`, so the next page begins with a path that sorts behind it.
        second = [file(b"z" + b"z" * 20 + b"/below")]
        with pytest.raises(HostileTree):
            verify(raw_root([first, second]), [raw_page(first), raw_page(second)])
    below = names(1, cuts=True, prefix=b"b-")[0]
    first = [ROOT, *(file(path) for path in quiet), link(b"b"), file(below)]
    second = [file(b"b/below")]
    assert decode_page(raw_page(second)) == second
    with pytest.raises(HostileTree):
        verify(raw_root([first, second]), [raw_page(first), raw_page(second)])
    with pytest.raises(HostileTree):
        cut([*first, *second])
    honest = [ROOT, *(file(path) for path in quiet), directory(b"b"), file(below)]
    assert verify(raw_root([honest, second]), [raw_page(honest), raw_page(second)]) == honest + second


def test_a_page_that_goes_on_behind_its_64th_entry_is_refused_where_the_rule_cuts_there() -> None:
    """The first place where a path can cut, and so the one where an off-by-one would split identities."""
    quiet = names(PAGE_ENTRIES_MIN - 2, cuts=False, prefix=b"a")
    loud = names(1, cuts=True, prefix=b"b")[0]
    entries = [ROOT, *(file(path) for path in (*quiet, loud, b"c"))]
    assert [page.ref.entries for page in cut(entries)] == [PAGE_ENTRIES_MIN, 1]
    with pytest.raises(MalformedDocument, match="goes on behind"):
        verify(raw_root([entries]), [raw_page(entries)])


def test_a_directory_stays_open_while_siblings_sort_before_its_children() -> None:
    """``-`` and ``.`` sort before ``/``: half of all source trees have such names side by side."""
    entries = [
        ROOT,
        directory(b"a"),
        directory(b"a-"),
        directory(b"a-/b"),
        directory(b"a.d"),
        file(b"a.d/x"),
        file(b"a/x"),
    ]
    assert decode_page(encode_page(entries)) == entries
    (page,) = cut(entries)
    assert verify(encode_root([page.ref]), [page.data]) == entries


def test_pages_out_of_order_are_refused() -> None:
    quiet = names(PAGE_ENTRIES_MIN - 2, cuts=False, prefix=b"a")
    first = [ROOT, *(file(path) for path in quiet), file(names(1, cuts=True, prefix=b"b")[0])]
    second = [file(quiet[5])]
    with pytest.raises(HostileTree):
        verify(raw_root([first, second]), [raw_page(first), raw_page(second)])


def test_a_root_that_describes_a_page_falsely_is_refused() -> None:
    """Sizes in the root are shown to people and decide what is fetched: they must be true."""
    (page,) = cut(EVERYTHING)
    for lie in (
        page.ref._replace(entries=page.ref.entries + 1),
        page.ref._replace(page_bytes=page.ref.page_bytes + 1),
        page.ref._replace(content_bytes=page.ref.content_bytes - 1),
    ):
        with pytest.raises(MalformedDocument):
            verify(encode_root([lie]), [page.data])
    with pytest.raises(DigestMismatch):
        verify(encode_root([page.ref._replace(digest=PageDigest(bytes(32)))]), [page.data])


def test_content_beyond_what_a_root_counts_is_refused() -> None:
    huge = [TreeEntry(b"%d" % n, EntryType.FILE, 0o644, 2**63 - 1, BlobDigest(bytes(32))) for n in range(3)]
    with pytest.raises(MalformedDocument):
        cut([ROOT, *huge])
