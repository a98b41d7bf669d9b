"""``libeatmydata``, where it is installed: with it in ``LD_PRELOAD`` every sync of a process does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PRELOAD: Final = next(
    (str(path) for folder in ("/usr/lib", "/usr/lib64") for path in sorted(Path(folder).glob("*/libeatmydata.so"))),
    None,
)
"""Its path, or None."""
