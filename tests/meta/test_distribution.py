"""What is installed: a stray top-level name in the wheel would shadow other people's packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The built wheel, opened."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_exactly_the_three_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"casstore", "casstore_server", "casstore_client"}


def test_wheel_carries_types_licence_and_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    for package in ("casstore", "casstore_server", "casstore_client"):
        assert f"{package}/py.typed" in names
    (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert f"{info}/licenses/LICENSE" in names
    assert "casstore = casstore_client.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_every_module_of_the_tree_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    on_disk = {
        str(path.relative_to(base))
        for base, package in (
            (ROOT, "casstore"),
            (ROOT / "server", "casstore_server"),
            (ROOT / "client", "casstore_client"),
        )
        for path in (base / package).rglob("*.py")
    }
    assert on_disk == {name for name in wheel.namelist() if name.endswith(".py")}


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_client_loads_neither_lmdb_nor_the_engine() -> None:
    """A host that only pulls must not carry the store."""
    names = "Client, AsyncClient"
    loaded = _modules_after(
        f"import casstore_client\nfrom casstore_client import {names}\nimport casstore_client.audit, casstore_client.ledger_api"
    )
    assert "casstore_client" in loaded
    heavy = {m for m in loaded if m.partition(".")[0] in ("lmdb", "casstore_server")}
    heavy |= {
        m for m in loaded if m.startswith(("casstore.engine", "casstore.storage", "casstore.store", "casstore.admin"))
    }
    assert not heavy


def test_casstore_itself_imports_nothing() -> None:
    """``import casstore`` is for the version: it must cost nothing."""
    loaded = {m for m in _modules_after("import casstore") if m.startswith("casstore")}
    assert loaded == {"casstore"}


def test_version_command_loads_no_http_and_no_crypto() -> None:
    """`casstore version` is what scripts call to see whether we are there: it has 150 ms."""
    loaded = _modules_after(
        "import sys; sys.argv = ['casstore', 'version']\n"
        "from casstore_client.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert not {"aiohttp", "cryptography", "rich", "lmdb", "zstandard"} & loaded
