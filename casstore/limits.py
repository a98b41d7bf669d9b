"""Every bound, in one place, each with its reason.

A bound that is part of a format (marked *format*) is final; the others may be raised in a later version.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB

# --- trees (format: they decide where pages are cut, and so identity) ------------------------------------------------
PAGE_ENTRIES_MIN: Final = 64
PAGE_ENTRIES_MAX: Final = 4096
PAGE_CUT_DIVISOR: Final = 512
PAGE_SIZE_CUT_BYTES: Final = MIB
PATH_SIZE_MAX_BYTES: Final = 65_535  # u16 on disk
LINK_TARGET_MAX_BYTES: Final = 65_535  # u16 on disk
# An entry is at most 65,535 (path) + 65,535 (target) + 7 bytes beyond the cut: so a page never exceeds this.
PAGE_SIZE_MAX_BYTES: Final = MIB + 2 * 65_535 + 64
ROOT_SIZE_MAX_BYTES: Final = 8 * MIB  # some 100,000 pages, 50 million entries; decoded it takes eight times that

# --- chunks ----------------------------------------------------------------------------------------------------------
CHUNK_MIN_BYTES: Final = 64 * KIB
CHUNK_AVG_BYTES: Final = 256 * KIB
CHUNK_MAX_BYTES: Final = MIB  # format: also the cap when a chunk is decompressed
SMALL_FILE_BYTES: Final = 64 * KIB  # files below this lie in bundles
BUNDLE_CUT_MIN_BYTES: Final = 64 * KIB
BUNDLE_CUT_DIVISOR_BYTES: Final = 128 * KIB
LAYOUT_SIZE_MAX_BYTES: Final = 8 * MIB  # the chunks of some 45 GB of files on one page; decoded it takes 15 times that

# --- snapshots and the log (format) ----------------------------------------------------------------------------------
SNAPSHOT_SIZE_MAX_BYTES: Final = MIB
SNAPSHOT_COMPONENTS_MAX: Final = 1024
ENTRY_SIZE_MAX_BYTES: Final = 61_440  # below the u16 of an entries tile, with room
FLIP_MEMBERS_MAX: Final = 32
BAD_SNAPSHOTS_MAX: Final = 32
POINTERS_MAX: Final = 10_000
NOTE_SIZE_MAX_BYTES: Final = 128 * KIB
NOTE_LINES_MAX: Final = 100
TILE_WIDTH: Final = 256
ORIGIN_SIZE_MAX_BYTES: Final = 255
JSON_DEPTH_MAX: Final = 16  # no document of ours nests deeper than half of this

# --- packs -----------------------------------------------------------------------------------------------------------
PACK_TARGET_BYTES: Final = 16 * MIB  # a push seals its pack here
PACK_SIZE_MAX_BYTES: Final = 128 * MIB  # what a server takes: target + one object of the largest kind, with room
PACK_FRAMES_MAX: Final = 65_536
# Of the objects of one pack, decompressed: else a megabyte of frames could keep a thread busy for minutes.  An honest pack of
# PACK_TARGET_BYTES reaches this where content shrinks to a sixtieth, and is cut there.
PACK_PLAIN_MAX_BYTES: Final = 1024 * MIB
PACK_STRUCTURE_MAX_BYTES: Final = (
    64 * MIB
)  # of that, layouts and roots: taking those apart costs a hundred times as much

# --- the wire --------------------------------------------------------------------------------------------------------
JSON_BODY_MAX_BYTES: Final = 4 * MIB  # a snapshot of 1 MiB in base64 with its intent fits
MISSING_IDS_MAX: Final = 131_072  # 4 MiB of ids
RUNS_SIZE_MAX_BYTES: Final = (
    512 * KIB
)  # file runs in front of a pack: 260,000 small files; what is left out is read at commit
PAGES_REQUEST_MAX: Final = 16_384
LIST_LIMIT_DEFAULT: Final = 100
LIST_LIMIT_MAX: Final = 1000
RANGE_COALESCE_GAP_BYTES: Final = 128 * KIB  # fetching a gap this small is cheaper than another request
RANGE_REQUEST_MAX_BYTES: Final = 8 * MIB

# --- exports (format) -------------------------------------------------------------------------------------------------
EXPORT_MEMBERS_MAX: Final = 262_144  # 4 TiB in packs of the usual size; the list of them is held in memory

# --- the server ------------------------------------------------------------------------------------------------------
WRITER_QUEUE_MAX: Final = 1024
CONNECTIONS_MAX: Final = 8192  # served at a time; an idle one takes some 12 KiB of memory and one descriptor
READER_THREADS: Final = 4
READER_QUEUE_MAX: Final = 512
GROUP_COMMIT_MAX: Final = 256
PUSH_SESSIONS_MAX: Final = 1024
PUSH_SESSIONS_EACH_MAX: Final = 256  # of one principal, so that no one keeps all others out
PUSH_LEASE_MS: Final = 60 * 60 * 1000  # renewed by every request of the push
PACKS_PER_PUSH_IN_FLIGHT: Final = 4
# What a proof hashes beyond each chunk once, such as the zeros of sparse files: some minutes of one thread.
PROOF_REPEATED_MAX_BYTES: Final = 256 * GIB

# --- health ----------------------------------------------------------------------------------------------------------
SCRUB_INTERVAL_S: Final = 7 * 24 * 3600
SCRUB_RATE_BYTES_S: Final = 32 * MIB  # a twentieth of what a core verifies, and little against a disk; 18 TB a week
SCRUB_RATE_MIN_BYTES_S: Final = 64 * KIB  # what anybody asks for; "50" was meant to be 50M, and would take for ever
REPAIR_PACK_MAX_BYTES: Final = 24 * MIB  # held whole; a target of 8 MiB and one object of the largest kind, with room
REPAIR_PLAIN_MAX_BYTES: Final = 64 * MIB  # of its objects, decompressed
OBJECTS_REQUEST_MAX: Final = 1024  # objects that one request names
DAMAGE_REPORT_MAX: Final = 256  # objects in one report of a client
DAMAGE_CHECKS_PER_MINUTE: Final = 1024  # objects of at most 8 MiB that clients can have read, three times each

# --- intents ---------------------------------------------------------------------------------------------------------
INTENT_MAX_MS: Final = 60 * 60 * 1000  # default of a policy rule's max_intent_ms
INTENT_EARLY_MS: Final = 60 * 1000  # how far a signer's clock may run ahead
CHECKPOINT_MAX_AGE_MS: Final = 10 * 60 * 1000
CLOCK_SKEW_MAX_MS: Final = 60 * 1000

# --- storage ---------------------------------------------------------------------------------------------------------
LMDB_MAP_BYTES: Final = 1 << 40  # address space, not memory
FORMAT_VERSION: Final = 2
