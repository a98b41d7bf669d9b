"""The demo's input: two releases of real files, and the comparison that owes nothing to casstore."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SIZE_MAX_BYTES: Final = 250_000_000  # an interpreter with heavy packages would make the demo long, not better
_CHANGED: Final = 5


def copy_release(sources: Iterable[Path], dest: Path) -> None:
    """Copy directories into ``dest``, each under its own name, until there is enough."""
    dest.mkdir()
    copied = 0
    for number, source in enumerate(sources):
        below = dest / ("lib", "packages")[number]
        for directory, names, files in os.walk(source):
            names[:] = sorted(name for name in names if name not in ("site-packages", "dist-packages"))
            here = below / Path(directory).relative_to(source)
            here.mkdir(parents=True, exist_ok=True)
            for name in sorted(files):
                path = Path(directory, name)
                if (
                    copied > _SIZE_MAX_BYTES
                    or not (path.is_symlink() or path.is_file())
                    or not os.access(path, os.R_OK)
                ):
                    continue
                shutil.copy2(path, here / name, follow_symlinks=False)
                copied += path.lstat().st_size


def measure_tree(path: Path) -> tuple[int, int]:
    """Regular files below ``path``, and their bytes."""
    sizes = [Path(d, f).lstat().st_size for d, _, files in os.walk(path) for f in files if not Path(d, f).is_symlink()]
    return len(sizes), sum(sizes)


def change_release(path: Path) -> str:
    """Change, add and remove a few things; says what."""
    modules = sorted(p for p in (path / "lib").glob("*.py") if not p.is_symlink() and p.stat().st_size > 4096)
    changed, removed = modules[:_CHANGED], modules[_CHANGED : _CHANGED + 2]
    for file in changed:
        file.chmod(file.stat().st_mode | stat.S_IWUSR)
        with file.open("ab") as stream:
            stream.write(b"\n# release 2\n")
    for file in removed:
        file.unlink()
    news = path / "news"
    news.mkdir()
    (news / "release-2.txt").write_text("What is new in release 2.\n")
    (news / "latest").symlink_to("release-2.txt")
    (news / "empty").mkdir()
    modules[-1].chmod(0o755)
    return (
        f"{len(changed)} files changed, {len(removed)} removed, a folder with a file, a symlink and an empty folder added, "
        "and one mode changed"
    )


def compare_trees(a: Path, b: Path) -> str | None:
    """None if two trees are equal byte for byte, mode for mode, link for link; else the first difference."""
    entries_a, entries_b = _entries(a), _entries(b)
    only = sorted(set(entries_a) ^ set(entries_b))
    if only:
        return f"{only[0]} is in one of them only"
    for name, info in entries_a.items():
        other = entries_b[name]
        if stat.S_IFMT(info.st_mode) != stat.S_IFMT(other.st_mode):
            return f"{name} has another type"
        if stat.S_ISLNK(info.st_mode):
            if (a / name).readlink() != (b / name).readlink():
                return f"{name} points elsewhere"
        elif stat.S_IMODE(info.st_mode) != stat.S_IMODE(other.st_mode):
            return f"{name} has another mode"
        elif stat.S_ISREG(info.st_mode) and not filecmp.cmp(a / name, b / name, shallow=False):
            return f"{name} has other bytes"
    return None


def _entries(path: Path) -> dict[str, os.stat_result]:
    found = {".": path.lstat()}
    for directory, names, files in os.walk(path):
        for name in [*names, *files]:
            full = Path(directory, name)
            found[str(full.relative_to(path))] = full.lstat()
    return found
