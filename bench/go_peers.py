"""Builds those peers that are Go modules into ``bin/`` of the bench folder, where Go is and their modules can be had."""

from __future__ import annotations

import os
import shutil
import subprocess

from bench.corpora import bench_dir

_MODULES = {"desync": "github.com/folbricht/desync/cmd/desync@latest", "kopia": "github.com/kopia/kopia@latest"}
_BUILD_TIMEOUT_S = 600


def build() -> None:
    """Build what is not there; says what could not be."""
    target = bench_dir() / "bin"
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    for command, module in _MODULES.items():
        if shutil.which(command) or (target / command).exists():
            continue
        if go is None:
            print(f"{command} is not built: there is no go")
            continue
        try:
            subprocess.run(
                [go, "install", module],
                env={**os.environ, "GOBIN": str(target)},
                check=True,
                capture_output=True,
                text=True,
                timeout=_BUILD_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            print(f"{command} is not built: it took more than {_BUILD_TIMEOUT_S} s")
        except subprocess.CalledProcessError as error:
            print(f"{command} is not built: {error.stderr.strip().splitlines()[-1]}")
