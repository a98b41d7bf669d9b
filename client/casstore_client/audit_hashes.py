"""Level 1 of an audit: every tile is fetched, every entry is hashed, the whole log tree is computed anew.

Owns the fetching of the log in its public form (C2SP tiles), so that what is judged is what everybody else is shown.  It must not
know what entries mean, nor keys.

The bytes of each entry are hashed and held against the level-0 tile: an entry that was edited where the tree was not touched is
named by its index.  Two trees are grown side by side, one over the entries' bytes and one over the tiles' hashes; where they part,
the root of the checkpoint says which of the two is the damaged one.

Memory: 40 bytes an entry; the entries themselves lie in a temporary file without a name.

Source: https://c2sp.org/tlog-tiles, RFC 6962 §2.1
"""

from __future__ import annotations

import asyncio
import tempfile
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple, Self, TypeAlias

from casstore.errors import AccessError, CasstoreError, MalformedDocument, Unavailable
from casstore.formats.checkpoint import Checkpoint
from casstore.limits import TILE_WIDTH
from casstore.merkle import EMPTY_ROOT, HASH_BYTES, Frontier, leaf_hash
from casstore.tiles import (
    ENTRIES,
    ENTRY_MAX_BYTES,
    TILE_HEIGHT,
    TilePath,
    decode_entries_tile,
    decode_hash_tile,
    format_tile_path,
    tiles_for_size,
)
from casstore_client.audit_report import FINDINGS_MAX, AuditFinding, Findings
from casstore_client.errors import TransportError
from casstore_client.transport import Transport
from casstore_client.workers import first_fault

_BATCH_TILES: Final = 4  # LIMIT: tiles under way at a time; 256 entries of 60 KiB each are 15 MiB
_TILE_MAX_BYTES: Final = TILE_WIDTH * (ENTRY_MAX_BYTES + 2)
_MEDIA: Final = "application/octet-stream"


_Upper: TypeAlias = dict[int, list[bytes]]


class LogImage:
    """The log as it was fetched: entries, and the root at every size.

    Threads: one at a time.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="casstore-audit-")  # noqa: SIM115 (closed by close)
        self._ends = array("Q")
        self._missing: set[int] = set()
        self._roots = bytearray(EMPTY_ROOT)
        self.fits = False
        """Whether the tree over what was fetched has the checkpoint's root."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, entry: bytes | None, root: bytes) -> None:
        """Take the next entry (None: it could not be fetched) and the root with it."""
        if entry is None:
            self._missing.add(len(self._ends))
        self._file.write(entry or b"")
        self._ends.append((self._ends[-1] if self._ends else 0) + len(entry or b""))
        self._roots += root

    @property
    def size(self) -> int:
        """How many entries have a known leaf hash: up to the first that neither its bytes nor its tile could be fetched of."""
        return len(self._ends)

    def entry(self, index: int) -> bytes | None:
        """The bytes of an entry, None if they could not be fetched."""
        if index in self._missing:
            return None
        start = self._ends[index - 1] if index else 0
        self._file.seek(start)
        return self._file.read(self._ends[index] - start)

    def entries(self, first: int, end: int) -> Iterator[tuple[int, bytes | None]]:
        """Entries ``[first, end)`` with their indices."""
        for index in range(first, min(end, self.size)):
            yield index, self.entry(index)

    def root_at(self, size: int) -> bytes:
        """The root of the first ``size`` entries."""
        return bytes(self._roots[size * HASH_BYTES : (size + 1) * HASH_BYTES])

    def replace_roots(self, roots: bytearray) -> None:
        """Take the roots of the other tree."""
        self._roots = roots


class _Mismatch(NamedTuple):
    """An entry whose bytes do not hash to what its tile says."""

    idx: int
    in_tile: bytes
    of_bytes: bytes


class _Growing:
    """The two trees, as they grow."""

    def __init__(self, image: LogImage) -> None:
        self._image = image
        self.by_tile = Frontier()
        self.by_bytes = Frontier()
        self.roots_by_bytes = bytearray(EMPTY_ROOT)
        self.upper: tuple[_Upper, _Upper] = ({}, {})
        """Hashes that the tiles of level 1 and above must hold, by level: by the tiles below, and by the entries' bytes."""
        self.mismatches: list[_Mismatch] = []
        self.mismatch_count = 0

    def take(self, entries: list[bytes] | None, hashes: list[bytes] | None, width: int) -> None:
        """Take what was fetched of one run of ``width`` entries; at least one of the two is there."""
        for at in range(width):
            entry = None if entries is None else entries[at]
            of_bytes = None if entry is None else leaf_hash(entry)
            in_tile = of_bytes if hashes is None else hashes[at]
            assert in_tile is not None, "the caller has one of the two"
            of_bytes = of_bytes or in_tile
            if in_tile != of_bytes:
                self.mismatch_count += 1
                if len(self.mismatches) < FINDINGS_MAX:
                    self.mismatches.append(_Mismatch(self.by_tile.size, in_tile, of_bytes))
            for tree, leaf, upper in ((self.by_tile, in_tile, self.upper[0]), (self.by_bytes, of_bytes, self.upper[1])):
                for (level, _), value in tree.append(leaf):
                    if level and level % TILE_HEIGHT == 0:
                        upper.setdefault(level // TILE_HEIGHT, []).append(value)
            self._image.append(entry, self.by_tile.root)
            # The second tree differs only behind a mismatch; before one, its roots are those of the first.
            self.roots_by_bytes += self.by_bytes.root if self.mismatch_count else self.by_tile.root


async def hash_log(transport: Transport, checkpoint: Checkpoint, findings: Findings) -> LogImage:
    """Fetch the whole log and compute its tree.

    Args:
        transport: the server.
        checkpoint: says how large the log is and which root it must have; its signature is another level's matter.
        findings: gets what does not hold.

    Returns:
        the log, to be closed by the caller.

    Raises:
        TransportError, Unavailable, AccessError: the server does not answer, or not to us; nothing is said of its log.
    """
    image = LogImage()
    try:
        growing = _Growing(image)
        await _fetch_leaves(transport, checkpoint.size, growing, findings)
        tiles_are_bad = _judge(checkpoint, image, growing, findings)
        if image.size == checkpoint.size:
            await _hold_upper_tiles(transport, checkpoint.size, growing.upper[tiles_are_bad], findings)
    except BaseException:
        image.__exit__()
        raise
    return image


async def _fetch_leaves(transport: Transport, size: int, growing: _Growing, findings: Findings) -> None:
    for start in range(0, size, TILE_WIDTH * _BATCH_TILES):
        firsts = range(start, min(size, start + TILE_WIDTH * _BATCH_TILES), TILE_WIDTH)
        tiles = [(first // TILE_WIDTH, min(TILE_WIDTH, size - first)) for first in firsts]
        try:
            async with asyncio.TaskGroup() as tasks:
                fetching = [
                    (
                        tasks.create_task(_fetch_entries(transport, n, width, findings)),
                        tasks.create_task(_fetch_hashes(transport, TilePath(0, n, width), findings)),
                    )
                    for n, width in tiles
                ]
        except BaseExceptionGroup as group:
            raise first_fault(group) from None
        for (_, width), (entries, hashes) in zip(tiles, fetching, strict=True):
            if entries.result() is None and hashes.result() is None:
                return  # every later root depends on this: what follows cannot be judged
            await asyncio.to_thread(growing.take, entries.result(), hashes.result(), width)
        findings.tell(1, growing.by_tile.size, size)


async def _hold_upper_tiles(transport: Transport, size: int, upper: dict[int, list[bytes]], findings: Findings) -> None:
    """Hold the tiles of level 1 and above against the hashes that were computed."""
    for tile in tiles_for_size(size):
        if tile.level in (0, ENTRIES):
            continue
        found = await _fetch_hashes(transport, tile, findings)
        first = tile.n * TILE_WIDTH
        expected = upper[int(tile.level)][first : first + tile.width]
        for at, (want, have) in enumerate(zip(expected, found or expected, strict=True)):
            if want != have:
                covers = (first + at) << (TILE_HEIGHT * int(tile.level))
                findings.add(
                    AuditFinding(
                        level=1,
                        code="tile-mismatch",
                        object=f"hash {at} of {_path(tile)}, over the entries from {covers} on",
                        where=_path(tile),
                        expected=want.hex(),
                        found=have.hex(),
                    ),
                    covers,
                )
                break


def _judge(checkpoint: Checkpoint, image: LogImage, growing: _Growing, findings: Findings) -> bool:
    """Say which side of each mismatch is the damaged one, and hold the root against the checkpoint.

    Returns:
        whether it is the tiles that are damaged, and not the entries.
    """
    fits_tiles = image.size == checkpoint.size and growing.by_tile.root == checkpoint.root
    fits_bytes = image.size == checkpoint.size and growing.by_bytes.root == checkpoint.root
    image.fits = fits_tiles or fits_bytes
    tile_is_bad = fits_bytes and not fits_tiles
    if tile_is_bad:
        image.replace_roots(growing.roots_by_bytes)
    for index, in_tile, of_bytes in growing.mismatches:
        n, at = divmod(index, TILE_WIDTH)
        width = min(TILE_WIDTH, checkpoint.size - n * TILE_WIDTH)
        findings.add(
            AuditFinding(
                level=1,
                code="tile-mismatch" if tile_is_bad else "entry-mismatch",
                object=f"leaf hash of entry {index}" if tile_is_bad else f"entry {index}",
                where=f"position {at} of {_path(TilePath(0 if tile_is_bad else ENTRIES, n, width))}",
                expected=(of_bytes if tile_is_bad else in_tile).hex(),
                found=(in_tile if tile_is_bad else of_bytes).hex(),
            ),
            index,
        )
    if not image.fits and image.size == checkpoint.size:
        findings.add(
            AuditFinding(
                level=1,
                code="root-mismatch",
                object=f"root of {checkpoint.size} entries",
                where="checkpoint",
                expected=checkpoint.root.hex(),
                found=growing.by_tile.root.hex(),
            ),
            growing.mismatches[0].idx if growing.mismatches else None,
        )
    return tile_is_bad


async def _fetch_entries(transport: Transport, n: int, width: int, findings: Findings) -> list[bytes] | None:
    tile = TilePath(ENTRIES, n, width)
    data = await _fetch(transport, tile, findings)
    try:
        return None if data is None else await asyncio.to_thread(decode_entries_tile, data, width)
    except MalformedDocument as error:
        _lost(tile, error, findings)
        return None


async def _fetch_hashes(transport: Transport, tile: TilePath, findings: Findings) -> list[bytes] | None:
    data = await _fetch(transport, tile, findings)
    try:
        return None if data is None else decode_hash_tile(data, tile.width)
    except MalformedDocument as error:
        _lost(tile, error, findings)
        return None


async def _fetch(transport: Transport, tile: TilePath, findings: Findings) -> bytes | None:
    try:
        reply = await transport.request(
            "GET", f"/log/{_path(tile)}", step="tile", media=_MEDIA, max_bytes=_TILE_MAX_BYTES
        )
    except (TransportError, Unavailable, AccessError):
        raise
    except CasstoreError as error:
        _lost(tile, error, findings)
        return None
    return reply.body


def _lost(tile: TilePath, error: CasstoreError, findings: Findings) -> None:
    height = 0 if tile.level == ENTRIES else TILE_HEIGHT * int(tile.level)
    first = (tile.n * TILE_WIDTH) << height
    findings.add(
        AuditFinding(
            level=1,
            code=error.code,
            object=_path(tile),
            where=f"over the entries from {first} on",
            expected=f"a tile of width {tile.width}",
            found=error.detail,
        ),
        first,
    )


def _path(tile: TilePath) -> str:
    return format_tile_path(*tile)
