"""Converting a store to the format of this program: one step a version, each safe to break off and to repeat.

Owns the registry of steps.  A step changes the store so that the next version's program can open it, and may run any
number of times; once it has returned, ``format`` is replaced by one that names the next version, by rename and fsync.

# CRASH: in a step, ``format`` still names the version before it: the step runs again.  Behind it, the next one begins.
There is no way back: the backup that was made before is the way back.

Adding a step: raise ``FORMAT_VERSION``, put the step under the version that it starts from, and describe both in
docs/operations/store-directory.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Final, NamedTuple

from casstore.errors import Unsupported
from casstore.limits import FORMAT_VERSION
from casstore.storage.local.files import Files
from casstore.storage.local.home import Home, check_format
from casstore.storage.local.index import LocalChunkIndex
from casstore.storage.local.ledger import LocalLedger


class Step(NamedTuple):
    """What leads from one version to the next."""

    title: str
    """What it does, for people."""
    run: Callable[[Home, bool], list[str]]
    """Takes the open directory and whether to change nothing; returns what it changed, in words."""


class Done(NamedTuple):
    """A step that was taken, or would be."""

    version: int
    """The format that it leads to."""
    title: str
    changes: list[str]


def _add_tables(home: Home, dry_run: bool) -> list[str]:
    index = LocalChunkIndex.add_missing_tables(home.path, home.files, dry_run=dry_run)
    ledger = LocalLedger.add_missing_tables(home.path, home.files, dry_run=dry_run)
    return [f"index: table {name}" for name in index] + [f"ledger: table {name}" for name in ledger]


STEPS: Final[Mapping[int, Step]] = {1: Step("makes the tables that index and ledger lack", _add_tables)}
"""By the version that they start from."""


def upgrade_store(
    directory: str | os.PathLike[str], files: Files, *, dry_run: bool = False, target: int = FORMAT_VERSION
) -> list[Done]:
    """Convert a store that no server has open.

    Args:
        directory: the store.
        files: how.
        dry_run: only say what would be done.
        target: the version to reach.

    Returns:
        the steps, in order; none if the store has that format already.

    Raises:
        StoreNotFound, NotInitialised: it is not a store.
        StoreBusy: a process has it open.
        StoreTooNew: it is newer than this program.
        Unsupported: no step leads on from its version.
        StoreFull, ReadOnly, Unavailable, OutcomeUnknown: the disk refuses; do it again.

    Durability: each step when the next begins, all when this returns.
    """
    done: list[Done] = []
    with closing(Home.open(directory, files, any_format=True)) as home:
        version = check_format(home.path, files, any_format=True)
        while version < target:
            step = STEPS.get(version)
            if step is None:
                raise Unsupported(
                    f"no step leads on from format {version}: this is too old for this version of casstore"
                )
            changes = step.run(home, dry_run)
            version += 1
            if not dry_run:
                # ORDER: what the step wrote is durable before the version says so.
                home.set_format(version)
            done.append(Done(version, step.title, changes))
    return done
