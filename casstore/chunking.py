"""Where content is cut.

Large files are cut by FastCDC-2020, each file from its own beginning.  Small files are gathered into bundles: chunks
that hold consecutive small files of a tree, cut where the content says.  Where the cuts fall decides what deduplicates,
not what anything is called: another version may cut otherwise without a digest changing.

Threads: a :class:`FileChunker` belongs to one thread at a time; cutting releases the GIL.

Source: docs/formats/layout.md; "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems" (IEEE TPDS 2020)
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, cast

from pyfastcdc import FastCDC

from casstore.hashing import Buffer
from casstore.ids import BlobDigest
from casstore.limits import (
    BUNDLE_CUT_DIVISOR_BYTES,
    BUNDLE_CUT_MIN_BYTES,
    CHUNK_AVG_BYTES,
    CHUNK_MAX_BYTES,
    CHUNK_MIN_BYTES,
    SMALL_FILE_BYTES,
)

ALGORITHM: Final = "fastcdc-2020"


class Parameters(NamedTuple):
    """How a store wants content cut.  They belong to its format: clients that cut otherwise still work, but share less.

    ``min_bytes``, ``avg_bytes``, ``max_bytes``, ``seed``, ``normalization`` are FastCDC's; files below
    ``small_file_bytes`` are bundled; a bundle may be cut from ``bundle_cut_min_bytes`` on, on average every
    ``bundle_cut_divisor_bytes`` after that.
    """

    min_bytes: int = CHUNK_MIN_BYTES
    avg_bytes: int = CHUNK_AVG_BYTES
    max_bytes: int = CHUNK_MAX_BYTES
    seed: int = 0
    normalization: int = 1
    small_file_bytes: int = SMALL_FILE_BYTES
    bundle_cut_min_bytes: int = BUNDLE_CUT_MIN_BYTES
    bundle_cut_divisor_bytes: int = BUNDLE_CUT_DIVISOR_BYTES


DEFAULT_PARAMETERS: Final = Parameters()


class FileChunker:
    """Cuts files into chunks.

    Threads: one at a time; make one a thread.
    """

    def __init__(self, parameters: Parameters = DEFAULT_PARAMETERS) -> None:
        self.parameters = parameters
        self._cdc = FastCDC(
            parameters.avg_bytes,
            min_size=parameters.min_bytes,
            max_size=parameters.max_bytes,
            normalized_chunking=cast(Literal[0, 1, 2, 3], parameters.normalization),
            seed=parameters.seed,
        )

    def cut(self, data: Buffer) -> list[int]:
        """The lengths of the chunks of a whole file, in bytes; they add up to ``len(data)``."""
        return [chunk.length for chunk in self._cdc.cut_buf(data)]

    def cut_front(self, window: Buffer, final: bool) -> list[int]:
        """The lengths of the chunks at the front of ``window`` that later bytes cannot change.

        Args:
            window: bytes of a file from a cut on (at first: from its beginning).
            final: whether the file ends with ``window``.

        Returns:
            Lengths in bytes.  What they leave over, less than ``max_bytes``, belongs at the front of the next window.
            If ``final``, nothing is left over.
        """
        size = len(window)
        # Where a chunk ends depends on at most max_bytes from its beginning: with that many there, the cut stands.
        settled = size if final else size - self.parameters.max_bytes
        lengths: list[int] = []
        if settled < 0:
            return lengths
        for chunk in self._cdc.cut_buf(window):
            if not final and chunk.offset > settled:
                break
            lengths.append(chunk.length)
        return lengths


class StreamCutter:
    """Cuts one file that comes in pieces, at the places where :meth:`FileChunker.cut` cuts it whole.

    Memory: less than ``max_bytes`` of what was fed, and the piece.

    Args:
        chunker: to cut with; lent for as long as the file takes.
    """

    def __init__(self, chunker: FileChunker) -> None:
        self._chunker = chunker
        self._rest = b""

    def feed(self, data: Buffer, final: bool = False) -> list[memoryview]:
        """Take the next piece of the file, return the chunks that are settled.

        Args:
            data: pieces of a few MiB cost least: each call copies what the one before left over.
            final: whether the file ends here.

        Returns:
            Their bytes, in order; views of ``data`` or of a copy.
        """
        view = memoryview(b"".join((self._rest, data)) if self._rest else data)
        chunks: list[memoryview] = []
        position = 0
        for length in self._chunker.cut_front(view, final):
            chunks.append(view[position : position + length])
            position += length
        self._rest = bytes(view[position:])
        return chunks


class BundleCutter:
    """Says where bundles of small files are cut.

    Push every small file of a tree in path order; skip large ones (they do not end a bundle) and empty ones (they lie
    nowhere).
    """

    def __init__(self, parameters: Parameters = DEFAULT_PARAMETERS) -> None:
        self._parameters = parameters
        self.size = 0
        """Bytes in the open bundle."""

    def add(self, digest: BlobDigest, size: int) -> tuple[bool, bool]:
        """Put a file into the bundle.

        Args:
            digest: of the file: it decides, so that the place depends on content.
            size: in bytes, 1 to below ``small_file_bytes``.

        Returns:
            (cut before): the open bundle ends and this file begins the next one; (cut after): the bundle ends with it.
        """
        assert 0 < size <= self._parameters.max_bytes, "large and empty files are not bundled"
        before = self.size + size > self._parameters.max_bytes
        self.size = size if before else self.size + size
        # The chance is proportional to bytes, so bundles are cut as often whether files are small or tiny.
        after = (
            self.size >= self._parameters.bundle_cut_min_bytes
            and int.from_bytes(digest[:8], "big") < (size << 64) // self._parameters.bundle_cut_divisor_bytes
        )
        if after:
            self.size = 0
        return before, after
