"""BLAKE3, as the rest of the code calls it.

Owns the three contexts that keep the kinds of identity apart: a page, a tree and a snapshot are hashed with BLAKE3's
``derive_key`` mode, each under its own context, so that no file can be built whose digest passes for a tree's.

Threads: everything here may be called from any thread; the GIL is released while more than a few KiB are hashed.

Source: docs/formats/tree.md, the BLAKE3 paper (section 2.3 for ``derive_key``)
"""

from __future__ import annotations

from typing import Final, TypeAlias

from blake3 import blake3 as Blake3Hasher

Buffer: TypeAlias = bytes | bytearray | memoryview

CONTEXT_PAGE: Final = "casstore v1 page"
CONTEXT_TREE: Final = "casstore v1 tree"
CONTEXT_SNAPSHOT: Final = "casstore v1 snapshot"

__all__ = ["CONTEXT_PAGE", "CONTEXT_SNAPSHOT", "CONTEXT_TREE", "Blake3Hasher", "Buffer", "blake3_256", "derive"]


def blake3_256(data: Buffer) -> bytes:
    """BLAKE3-256 of ``data``: what names a chunk, a file, a blob."""
    return Blake3Hasher(data).digest()


def derive(context: str, data: Buffer) -> bytes:
    """BLAKE3-256 of ``data`` in ``derive_key`` mode under ``context``."""
    return Blake3Hasher(data, derive_key_context=context).digest()
