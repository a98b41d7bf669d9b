"""Every operation on the disk goes through one object, or the fault tests do not reach it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "casstore"
FILES = ROOT / "storage" / "local" / "files.py"
CONTRACTS = ROOT / "storage" / "contracts"  # tests that are shipped
MODULES = sorted(
    path
    for part in ("storage", "engine")
    for path in (ROOT / part).rglob("*.py")
    if path != FILES and CONTRACTS not in path.parents
)
# Of the module os, what only computes, or tells about the process and not about the disk.
HARMLESS_OF_OS = {
    "PathLike", "cpu_count", "environ", "fsdecode", "fsencode", "fspath", "geteuid", "getpid", "path", "sched_getaffinity",
    "sep", "stat_result", "strerror", "urandom",
}  # fmt: skip
# Looked at once, before a store is opened, to say in a sentence what is missing; nothing is decided by it later.
HARMLESS_OF_PATH = {
    "abspath", "basename", "dirname", "exists", "isdir", "isfile", "islink", "join", "lexists", "normpath", "realpath", "relpath",
    "split",
}  # fmt: skip
FORBIDDEN_MODULES = {"fcntl", "mmap", "shutil", "tempfile"}
FORBIDDEN_METHODS = {"mkdir", "read_bytes", "read_text", "rmdir", "touch", "write_bytes", "write_text"}


def chain_of(node: ast.expr) -> list[str]:
    """``a.b.c`` as names; empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def passed_by(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that goes to the disk past ``Files``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            yield node.lineno, "open()"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"os", *FORBIDDEN_MODULES}:
            yield node.lineno, f"from {node.module} import"
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name in FORBIDDEN_MODULES)
        if isinstance(node, ast.Attribute):
            names = chain_of(node)
            if names[:1] == ["os"] and len(names) == 2 and names[1] not in HARMLESS_OF_OS:
                yield node.lineno, ".".join(names)
            if names[:2] == ["os", "path"] and len(names) == 3 and names[2] not in HARMLESS_OF_PATH:
                yield node.lineno, ".".join(names)
            if node.attr in FORBIDDEN_METHODS and names[:1] not in (["files"], ["self"]):
                yield node.lineno, f".{node.attr}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_disk_is_reached_through_files_alone(path: Path) -> None:
    found = list(passed_by(ast.parse(path.read_text("utf-8"))))
    assert not found, f"{path}: {found}"


def test_the_search_finds_what_it_should() -> None:
    source = "import os, mmap\nos.open('x', 0)\nopen('y')\nos.path.getsize('z')\nP('a').write_bytes(b'')\nos.path.join('a')\n"
    assert sorted(line for line, _ in passed_by(ast.parse(source))) == [1, 2, 3, 4, 5]
