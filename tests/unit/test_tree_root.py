"""Roots of trees: what one row may say, and what is found from the root alone."""

from __future__ import annotations

import struct

import pytest

from casstore.errors import MalformedDocument
from casstore.formats.tree import (
    BuiltPage,
    EntryType,
    PageCutter,
    PageRef,
    TreeEntry,
    decode_root,
    encode_page,
    encode_root,
    page_digest,
    split_root_for_path,
    tree_digest,
)
from casstore.hashing import blake3_256
from casstore.ids import PageDigest
from casstore.limits import PAGE_SIZE_MAX_BYTES

ROOT = TreeEntry(b"", EntryType.DIRECTORY, 0o755)


def big_tree() -> list[BuiltPage]:
    """The pages of a directory of 5,000 directories."""
    cutter = PageCutter()
    entries = [ROOT, *(TreeEntry(b"d%06d" % number, EntryType.DIRECTORY, 0o755) for number in range(5000))]
    pages = [page for entry in entries if (page := cutter.add(entry))] + cutter.finish()
    assert len(pages) > 2
    return pages


REF = PageRef(PageDigest(bytes(32)), 100, 5000, 10, b"")


@pytest.mark.parametrize(
    "pages",
    [
        [],
        [REF._replace(first_path=b"a")],
        [REF, REF],
        [REF, REF._replace(first_path=b"b"), REF._replace(first_path=b"a")],
        [REF, REF._replace(first_path=b"../a")],
        [REF, REF._replace(first_path=b"/a")],
        [REF, REF._replace(first_path=b"a\0")],
        [REF._replace(entries=0)],
        [REF._replace(entries=4097)],
        [REF._replace(page_bytes=5)],
        [REF._replace(page_bytes=PAGE_SIZE_MAX_BYTES + 1)],
        [REF._replace(entries=63), REF._replace(first_path=b"a")],
    ],
)
def test_a_root_that_no_tree_has_is_refused(pages: list[PageRef]) -> None:
    with pytest.raises(MalformedDocument):
        encode_root(pages)
    raw = b"CASR\x01" + struct.pack(">I", len(pages))
    for page in pages:
        raw += page.digest + struct.pack(">IIQH", *page[1:4], len(page.first_path)) + page.first_path
    with pytest.raises(MalformedDocument):
        decode_root(raw)


def test_a_root_must_be_whole() -> None:
    root = encode_root([page.ref for page in big_tree()])
    for length in range(len(root)):
        with pytest.raises(MalformedDocument):
            decode_root(root[:length])
    with pytest.raises(MalformedDocument):
        decode_root(root + b"\0")
    with pytest.raises(MalformedDocument):
        decode_root(b"CASR\x01\xff\xff\xff\xff")


def test_the_page_of_a_path_is_found_from_the_root_alone() -> None:
    """``casstore cat DIGEST PATH`` must not read the whole listing."""
    pages = big_tree()
    refs = [page.ref for page in pages]
    for number, page in enumerate(pages):
        for entry in page.entries:
            assert split_root_for_path(refs, entry.path) == number
    assert split_root_for_path(refs, b"zzz") == len(refs) - 1
    assert split_root_for_path([], b"a") is None


def test_page_tree_and_file_digests_never_meet() -> None:
    """A file with the bytes of a root must not be pullable as that tree."""
    data = encode_page([ROOT])
    assert len({bytes(page_digest(data)), bytes(tree_digest(data)), blake3_256(data)}) == 3
