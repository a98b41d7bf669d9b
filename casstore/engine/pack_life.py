"""The end of a pack: when nothing lies in it any more it is retired, and later deleted.

Owns the one way in which a file of a pack goes.  Both steps look once more, on the thread that takes packs into use, so nothing can
come between the look and the step.

Threads: index writer.
"""

from __future__ import annotations

from casstore.engine.packs import PackService
from casstore.errors import PackNotFound
from casstore.formats.pack import ObjectKind
from casstore.ids import PackId


def is_used(packs: PackService, pack: PackId) -> bool:
    """Whether something that is live, condemned or in quarantine lies in a pack, by what the pack itself lists.

    Raises:
        DamagedObject: the pack does not say what it holds.
        Unavailable: it cannot be read now.
    """
    try:
        rows = packs.read_footer(pack).rows
    except PackNotFound:
        return False
    for kind in ObjectKind:
        ids = [row.id for row in rows if row.kind is kind]
        if any(place is not None and place.pack == pack for place in packs.index.locate(kind, ids)):
            return True
        if any(row is not None and row.location.pack == pack for row in packs.index.find_quarantined(kind, ids)):
            return True
    return False


def retire_pack(packs: PackService, pack: PackId, *, at_ms: int) -> bool:
    """Retire a pack in which nothing lies any more.

    Returns:
        False, and nothing is changed, if something does.

    Raises:
        DamagedObject, Unavailable: as :func:`is_used`.
        StoreFull, OutcomeUnknown: as the index says.
    """
    if is_used(packs, pack):
        return False
    packs.index.retire_pack(pack, at_ms=at_ms)
    return True


def delete_retired(packs: PackService, pack: PackId) -> bool:
    """Delete a pack that is retired, and forget it.

    Returns:
        False, and nothing is changed, if it is not retired (any more).

    Durability: the pack is gone, or will be when this is called again after a crash.

    Raises:
        StoreFull, OutcomeUnknown: as the index says.
    """
    if not packs.index.is_retired(pack):
        return False
    # ORDER: the file, then its row.  CRASH: in between the row names a file that is gone; deleting it again is harmless.
    packs.store.delete(pack)
    packs.index.forget_pack(pack)
    return True
