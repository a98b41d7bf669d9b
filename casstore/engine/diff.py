"""What differs between two trees, or two snapshots.

Owns the comparison.  Pages that two trees share need not be read: a path lies on a shared page in one tree exactly if
it does in the other, and is the same there.  So the price is that of the pages that differ, not that of the trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from casstore.engine.packs import PackService
from casstore.engine.snapshots import SnapshotService
from casstore.engine.trees import TreeService
from casstore.errors import InvalidInput, NotFound
from casstore.formats.canonical import encode_b64
from casstore.formats.pack import ObjectKind
from casstore.formats.snapshot import Component
from casstore.formats.tree import EntryType, PageRef, TreeEntry, decode_page
from casstore.ids import BlobDigest, PageDigest, SnapshotDigest, TreeDigest
from casstore.wire import Diff, DiffComponent, DiffFile

# LIMIT: paths that one answer lists, over all components; some 200 bytes each as JSON.
DIFF_FILES_MAX: Final = 10_000
# What a diff of two trees calls its one component.
TREE_COMPONENT: Final = "."


class DiffService:
    """Differences.

    Args:
        packs: where objects are read.
        trees: trees by digest.
        snapshots: snapshots by digest.
    """

    def __init__(self, packs: PackService, trees: TreeService, snapshots: SnapshotService) -> None:
        self._packs = packs
        self._trees = trees
        self._snapshots = snapshots

    def diff(self, before: str, after: str, *, limit: int = DIFF_FILES_MAX) -> Diff:
        """What differs between two trees, or between two snapshots.

        Args:
            before, after: digests as text, of two trees or two snapshots.
            limit: how many paths are listed at most, 1 to ``DIFF_FILES_MAX``; a component that has more is
                ``truncated``.

        Raises:
            InvalidDigest: not a digest.
            NotFound: neither a tree nor a snapshot of the store.
            InvalidInput: a tree against a snapshot, or a bad limit.
            DamagedObject: an object cannot be read.
        """
        if not 1 <= limit <= DIFF_FILES_MAX:
            raise InvalidInput(f"limit is 1 to {DIFF_FILES_MAX}, not {limit}")
        kinds = [self._kind(digest) for digest in (before, after)]
        if kinds[0] != kinds[1]:
            raise InvalidInput("a tree is compared with a tree, a snapshot with a snapshot")
        if kinds[0] is ObjectKind.ROOT:
            components = []
            if before != after:
                files, truncated = self.trees(TreeDigest.parse(before), TreeDigest.parse(after), limit=limit)
                component = DiffComponent(
                    name=TREE_COMPONENT, change="changed", from_=before, to=after, files=files, truncated=truncated
                )
                components.append(component)
        else:
            components = self._snapshots_diff(SnapshotDigest.parse(before), SnapshotDigest.parse(after), limit)
        return Diff(from_=before, to=after, components=components)

    def trees(self, before: TreeDigest, after: TreeDigest, *, limit: int) -> tuple[list[DiffFile], bool]:
        """The paths that differ between two trees, in path order, at most ``limit``, and whether there are more.

        Raises:
            TreeNotFound: the store lacks a tree, or a page of it.
            DamagedObject: a page cannot be read.
        """
        old, new = self._trees.pages(before), self._trees.pages(after)
        shared = {page.digest for page in old} & {page.digest for page in new}
        files: list[DiffFile] = []
        for change in _merge(self._entries(old, shared), self._entries(new, shared)):
            if len(files) == limit:
                return files, True
            files.append(change)
        return files, False

    def _entries(self, pages: Sequence[PageRef], shared: set[PageDigest]) -> Iterator[TreeEntry]:
        for page in pages:
            if page.digest not in shared:
                yield from decode_page(self._packs.read_object(ObjectKind.PAGE, page.digest))

    def _snapshots_diff(self, before: SnapshotDigest, after: SnapshotDigest, limit: int) -> list[DiffComponent]:
        old: dict[str, Component] = {item.name: item for item in self._snapshots.get(before).components}
        new: dict[str, Component] = {item.name: item for item in self._snapshots.get(after).components}
        answers: list[DiffComponent] = []
        for name in sorted(old.keys() | new.keys()):
            a, b = old.get(name), new.get(name)
            if a is None and b is not None:
                answers.append(DiffComponent(name=str(name), change="added", to=str(b.digest)))
            elif b is None and a is not None:
                answers.append(DiffComponent(name=str(name), change="removed", from_=str(a.digest)))
            elif a is not None and b is not None and a != b:
                files: list[DiffFile] = []
                truncated = False
                if a.kind == b.kind == "tree":
                    files, truncated = self.trees(TreeDigest(a.digest), TreeDigest(b.digest), limit=limit)
                    limit -= len(files)
                answers.append(
                    DiffComponent(
                        name=str(name),
                        change="changed",
                        from_=str(a.digest),
                        to=str(b.digest),
                        files=files,
                        truncated=truncated,
                    )
                )
        return answers

    def _kind(self, digest: str) -> ObjectKind:
        id = BlobDigest.parse(digest)
        for kind in (ObjectKind.ROOT, ObjectKind.DOCUMENT):
            if self._packs.available(kind, [id])[0]:
                return kind
        raise NotFound(f"{digest} is neither a tree nor a snapshot of this store")


def _merge(old: Iterator[TreeEntry], new: Iterator[TreeEntry]) -> Iterator[DiffFile]:
    """Walk two lists in path order side by side."""
    a, b = next(old, None), next(new, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.path < b.path):
            assert a is not None, "one of the two is there"
            yield _describe(a, None)
            a = next(old, None)
        elif a is None or b.path < a.path:
            yield _describe(None, b)
            b = next(new, None)
        else:
            if a != b:
                yield _describe(a, b)
            a, b = next(old, None), next(new, None)


def _describe(a: TreeEntry | None, b: TreeEntry | None) -> DiffFile:
    entry = a or b
    assert entry is not None, "one of the two is there"
    what: list[str] = []
    if a is not None and b is not None:
        if a.type != b.type:
            what.append("type")
        elif a.digest != b.digest:
            what.append("content")
        elif a.target != b.target:
            what.append("target")
        if a.mode != b.mode and EntryType.LINK not in (a.type, b.type):
            what.append("mode")
    path, path_b64 = _spell(entry.path)
    return DiffFile(
        change="added" if a is None else "removed" if b is None else "changed",
        path=path,
        path_b64=path_b64,
        from_size=a.size if a is not None and a.type == EntryType.FILE else None,
        to_size=b.size if b is not None and b.type == EntryType.FILE else None,
        what=what,
    )


def _spell(path: bytes) -> tuple[str | None, str | None]:
    try:
        return path.decode("utf-8"), None
    except UnicodeDecodeError:
        return None, encode_b64(path)
