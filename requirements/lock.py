"""Renew the pinned requirements: versions and hashes, never the address of an index.

Run by ``make lock`` after installing pip-tools.  ``run.txt`` is what casstore needs, ``build.txt`` what building it needs,
``dev.txt`` all of it with the tests' and checkers' packages.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMON = [
    "--quiet",
    "--strip-extras",
    "--generate-hashes",
    "--allow-unsafe",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-emit-trusted-host",
    "--no-annotate",
    "--no-header",
    "--resolver=backtracking",
]


def compile_pins(output: str, *arguments: str, source: str = "pyproject.toml") -> None:
    """Write one file of pins next to this one."""
    command = [sys.executable, "-m", "piptools", "compile", *COMMON, *arguments, "-o", str(HERE / output), source]
    subprocess.run(command, check=True, cwd=HERE.parent)  # noqa: S603  our own words


if __name__ == "__main__":
    compile_pins("run.txt")
    compile_pins("build.txt", source="requirements/build.in")
    compile_pins("dev.txt", "--extra", "dev")
