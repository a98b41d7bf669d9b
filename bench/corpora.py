"""The trees that the benches push: two releases each of a Python and a JavaScript environment, from real packages.

Built once into the bench folder with the ordinary clients (``pip``, ``npm``) and kept there.  Pinned, so that figures of two days speak
of the same bytes.  Where a client or its registry is missing the corpus is left out, and the bench says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

PYTHON_1 = [
    "numpy==2.3.3",
    "scipy==1.16.2",
    "pandas==2.3.2",
    "pyarrow==21.0.0",
    "matplotlib==3.10.6",
    "scikit-learn==1.7.2",
    "sympy==1.14.0",
    "django==5.2.6",
    "botocore==1.40.30",
]
PYTHON_2 = [
    "numpy==2.3.4",
    "scipy==1.16.2",
    "pandas==2.3.3",
    "pyarrow==21.0.0",
    "matplotlib==3.10.7",
    "scikit-learn==1.7.2",
    "sympy==1.14.0",
    "django==5.2.7",
    "botocore==1.40.50",
]
NODE_1 = [
    "date-fns@3.6.0",
    "@mui/icons-material@5.15.0",
    "@mui/material@5.15.0",
    "react@18.2.0",
    "react-dom@18.2.0",
    "rxjs@7.8.1",
    "lodash@4.17.21",
    "typescript@5.4.5",
    "webpack@5.91.0",
    "core-js@3.37.0",
    "@babel/preset-env@7.24.5",
    "@babel/core@7.24.5",
    "eslint@8.57.0",
    "jest@29.7.0",
]
NODE_2 = [
    "date-fns@3.6.0",
    "@mui/icons-material@5.15.0",
    "@mui/material@5.15.2",
    "react@18.3.1",
    "react-dom@18.3.1",
    "rxjs@7.8.1",
    "lodash@4.17.21",
    "typescript@5.4.5",
    "webpack@5.92.0",
    "core-js@3.37.1",
    "@babel/preset-env@7.24.6",
    "@babel/core@7.24.6",
    "eslint@8.57.0",
    "jest@29.7.0",
]


@dataclass(frozen=True)
class Corpus:
    """Two releases of one kind of tree."""

    name: str
    release_1: Path
    release_2: Path
    files: int
    size_bytes: int


def bench_dir() -> Path:
    """Where corpora and stores of the benches lie: ``$CASSTORE_BENCH_DIR``, by default ``.bench`` in the checkout."""
    path = Path(os.environ.get("CASSTORE_BENCH_DIR") or Path(__file__).parents[1] / ".bench")
    path.mkdir(parents=True, exist_ok=True)
    return path


def corpora(names: Collection[str]) -> list[Corpus]:
    """Those of these corpora that can be had here, built where they are not yet."""
    found = []
    for name, build, releases in (
        ("python", _pip_install, (PYTHON_1, PYTHON_2)),
        ("javascript", _npm_install, (NODE_1, NODE_2)),
    ):
        if name not in names:
            continue
        paths = [(bench_dir() / f"{name}-{number}").resolve() for number in (1, 2)]
        try:
            for path, packages in zip(paths, releases, strict=True):
                if not path.exists():
                    print(f"building {path.name} …", flush=True)
                    _build(path, build, packages)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"the {name} corpus is left out: {error}")
            continue
        files, size = measure(paths[0])
        found.append(Corpus(name, paths[0], paths[1], files, size))
    return found


def measure(path: Path) -> tuple[int, int]:
    """Regular files below ``path``, and their bytes."""
    sizes = [entry.lstat().st_size for entry in path.rglob("*") if entry.is_file() and not entry.is_symlink()]
    return len(sizes), sum(sizes)


def _build(path: Path, build: object, packages: list[str]) -> None:
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    assert callable(build)
    build(partial, packages)
    partial.rename(path)


def _pip_install(path: Path, packages: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*command, "--target", str(path), *packages], check=True)


def _npm_install(path: Path, packages: list[str]) -> None:
    (path / "package.json").write_text(json.dumps({"name": "corpus", "version": "1.0.0", "private": True}))
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run([*command, *packages], check=True, cwd=path)
