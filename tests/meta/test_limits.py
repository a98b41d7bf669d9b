"""The page of limits is whole, and says what the program keeps: an operator who meets a bound finds it there."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import casstore_server
from casstore import limits
from casstore.config import LimitSettings, ServerSettings
from casstore.storage.local import diskroom
from casstore_server.settings import Bounds

PAGE = Path(__file__).parents[2] / "docs" / "operations" / "limits.md"
UNITS = {"": 1, "s": 1, "KiB": limits.KIB, "MiB": limits.MIB, "GiB": limits.GIB}
# What belongs to no request and no connection.
OTHERS = {
    "FORMAT_VERSION",
    "serve.KEPT_BLOCK_MAX_BYTES",
    "serve.STOP_MAX_S",
    "bounds.drain_s",
    "answers.COUNTED_MIN_BYTES",
}


def rows() -> dict[str, tuple[str, str]]:
    """Name → value and what changes it."""
    found: dict[str, tuple[str, str]] = {}
    for line in PAGE.read_text("utf-8").splitlines():
        match = re.match(r"\| `([\w.]+)` \| ([^|]+?) \| [^|]+ \| ([^|]*?) ?\|$", line)
        if match:
            assert match[1] not in found, f"{match[1]} stands there twice"
            found[match[1]] = (match[2], match[3])
    return found


ROWS = rows()


def value_of(name: str) -> Any:
    where, _, what = name.rpartition(".")
    if not where:
        return getattr(limits, what)
    if where == "bounds":
        return getattr(Bounds(), what)
    module = diskroom if where == "diskroom" else importlib.import_module(f"casstore_server.{where}")
    return getattr(module, what)


@pytest.mark.parametrize("name", ROWS)
def test_a_bound_is_what_the_page_says(name: str) -> None:
    number, _, unit = ROWS[name][0].replace(",", "").partition(" ")
    assert float(number) * UNITS[unit] == value_of(name)


def bounds_of_the_program() -> Iterator[str]:
    for name, value in vars(limits).items():
        if name.isupper() and isinstance(value, int) and name not in UNITS and name not in ("KIB", "MIB", "GIB"):
            yield name
    for field in Bounds.__dataclass_fields__:
        yield f"bounds.{field}"
    for module in pkgutil.iter_modules(casstore_server.__path__):
        found = vars(importlib.import_module(f"casstore_server.{module.name}"))
        for name, value in found.items():
            own = re.search(rf"^{name}\b", source_of(module.name), re.MULTILINE)
            if own and re.search(r"_M(AX|IN)(_|$)", name) and name[0] != "_" and isinstance(value, int | float):
                yield f"{module.name}.{name}"


def source_of(module: str) -> str:
    path = Path(casstore_server.__path__[0]) / f"{module}.py"
    return path.read_text("utf-8") if path.is_file() else ""


def test_every_bound_is_on_the_page() -> None:
    assert sorted(set(bounds_of_the_program()) - set(ROWS) - OTHERS) == []


def test_every_setting_is_named_by_the_bound_that_it_changes() -> None:
    named = {name for _, changed_by in ROWS.values() for name in re.findall(r"`limits\.(\w+)`", changed_by)}
    assert named == set(LimitSettings.__struct_fields__)
    known = {f"limits.{name}" for name in named} | set(ServerSettings.__struct_fields__)
    settings = {name for _, changed_by in ROWS.values() for name in re.findall(r"`([a-z_.]+)`", changed_by)}
    assert settings <= known


@pytest.mark.parametrize("name", LimitSettings.__struct_fields__)
def test_a_setting_begins_at_the_bound_beside_it(name: str) -> None:
    (row,) = [row for row, (_, changed_by) in ROWS.items() if f"`limits.{name}`" in changed_by]
    defaults = msgspec.structs.asdict(LimitSettings())
    assert defaults[name] == value_of(row)
