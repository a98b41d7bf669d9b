"""Trees under Hypothesis: round trips, rubbish, and every byte changed."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import InvalidInput
from casstore.formats.tree import (
    EMPTY_DIGEST,
    EntryType,
    PageCutter,
    TreeEntry,
    TreeVerifier,
    decode_page,
    decode_root,
    encode_page,
    encode_root,
    split_root_for_path,
    tree_digest,
)
from casstore.hashing import blake3_256
from casstore.ids import BlobDigest

# Few letters, among them the neighbours of '/', so that names are prefixes of each other and interleave.
COMPONENTS = st.one_of(
    st.lists(st.sampled_from([b"a", b"b", b"-", b".", b"0", b"\xff", b"\n"]), min_size=1, max_size=3).map(b"".join),
    st.binary(min_size=1, max_size=20),
).filter(lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name)


def leaf(path: bytes, chooser: random.Random) -> TreeEntry:
    if chooser.random() < 0.2:
        return TreeEntry(path, EntryType.LINK, 0, target=chooser.randbytes(5).replace(b"\0", b"\1"))
    size = chooser.choice((0, 1, 70_000, 2**40))
    digest = BlobDigest(blake3_256(path)) if size else EMPTY_DIGEST
    return TreeEntry(path, EntryType.FILE, chooser.randrange(0o10000), size, digest)


@st.composite
def trees(draw: st.DrawFn, max_size: int = 40) -> list[TreeEntry]:
    """Entries of a random tree: paths drawn, then completed by their parents."""
    paths = draw(st.sets(st.lists(COMPONENTS, min_size=1, max_size=4).map(tuple), max_size=max_size))
    chooser = random.Random(draw(st.integers(0, 2**32)))
    parents = {path[:depth] for path in paths for depth in range(1, len(path))}
    entries = [TreeEntry(b"", EntryType.DIRECTORY, 0o755)]
    for path in paths | parents:
        name = b"/".join(path)
        if path in parents or chooser.random() < 0.2:
            entries.append(TreeEntry(name, EntryType.DIRECTORY, chooser.randrange(0o10000)))
        else:
            entries.append(leaf(name, chooser))
    return sorted(entries, key=lambda entry: entry.path)


@settings(max_examples=150, deadline=None)
@given(trees())
def test_any_tree_round_trips(entries: list[TreeEntry]) -> None:
    data = encode_page(entries)
    assert decode_page(data) == entries
    cutter = PageCutter()
    pages = [page for entry in entries if (page := cutter.add(entry))] + cutter.finish()
    root = encode_root([page.ref for page in pages])
    verifier = TreeVerifier(root, tree_digest(root))
    assert [entry for page in pages for entry in verifier.add_page(page.data)] == entries
    verifier.finish()
    for number, page in enumerate(pages):
        assert all(split_root_for_path(verifier.pages, entry.path) == number for entry in page.entries)


@settings(max_examples=100, deadline=None)
@given(trees(), st.data())
def test_a_tree_without_one_of_its_parents_is_refused(entries: list[TreeEntry], data: st.DataObject) -> None:
    parents = {entry.path.rpartition(b"/")[0] for entry in entries} - {b""}
    if not parents:
        return
    gone = data.draw(st.sampled_from(sorted(parents)))
    left = [entry for entry in entries if entry.path != gone]
    cutter = PageCutter()
    try:
        for entry in left:
            cutter.add(entry)
    except InvalidInput:
        return
    raise AssertionError(f"{gone!r} has children and is missing, and nobody noticed")


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda rest: b"CASP\x01" + rest)))
def test_rubbish_is_refused_or_is_a_page(data: bytes) -> None:
    try:
        entries = decode_page(data)
    except InvalidInput:
        return
    assert encode_page(entries) == data


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda rest: b"CASR\x01\0\0\0\1" + rest)))
def test_rubbish_is_refused_or_is_a_root(data: bytes) -> None:
    try:
        pages = decode_root(data)
    except InvalidInput:
        return
    assert encode_root(pages) == data


SAMPLE = [
    TreeEntry(b"", EntryType.DIRECTORY, 0o755),
    TreeEntry(b"a", EntryType.DIRECTORY, 0o700),
    TreeEntry(b"a-b", EntryType.FILE, 0o644, 3, BlobDigest(blake3_256(b"abc"))),
    TreeEntry(b"a/e", EntryType.FILE, 0o600, 0, EMPTY_DIGEST),
    TreeEntry(b"a/l", EntryType.LINK, 0, target=b"../x"),
]


def test_a_page_with_any_byte_changed_is_refused_or_is_another_page() -> None:
    data = encode_page(SAMPLE)
    for at in range(len(data)):
        for value in range(256):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                entries = decode_page(changed)
            except InvalidInput:
                continue
            assert encode_page(entries) == changed


def test_a_tree_with_any_byte_of_its_root_changed_is_refused() -> None:
    cutter = PageCutter()
    entries = [SAMPLE[0], *(TreeEntry(b"%06d" % n, EntryType.DIRECTORY, 0o755) for n in range(1200))]
    pages = [page for entry in entries if (page := cutter.add(entry))] + cutter.finish()
    assert len(pages) >= 2
    root = encode_root([page.ref for page in pages])
    digest = tree_digest(root)
    for at in range(len(root)):
        for bit in range(8):
            changed = root[:at] + bytes([root[at] ^ (1 << bit)]) + root[at + 1 :]
            assert tree_digest(changed) != digest
            try:
                refs = decode_root(changed)
            except InvalidInput:
                continue
            assert encode_root(refs) == changed
            # Its digest is another one; and even a root that was hostile from the start does not fit its pages.
            verifier = TreeVerifier(changed)
            try:
                for page in pages:
                    verifier.add_page(page.data)
                verifier.finish()
            except InvalidInput:
                continue
            raise AssertionError(f"byte {at} of a root was changed and every page still verified")
