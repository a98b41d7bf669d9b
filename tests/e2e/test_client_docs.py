"""docs/client.md: what people copy from it works."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from casstore_client import AsyncClient, Client
from tests.support.filetrees import make_tree, read_tree
from tests.support.server import ROOT, Running

PAGE = ROOT / "docs" / "client.md"


def test_every_example_runs(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one program, as a reader would."""
    home = tmp_path / "home"
    make_tree(home, {b"build/app/main.py": b"print('hello')\n", b"build/app/empty": b"", b"build/README": b"read me\n"})
    (home / "trust.json").write_bytes(server.created.trust_file)
    (home / "operator.key").write_text(server.created.operator_key.encode())
    monkeypatch.chdir(home)
    assert server.created.token.secret is not None
    monkeypatch.setenv("CASSTORE_URL", server.url)
    monkeypatch.setenv("CASSTORE_TOKEN", server.created.token.secret)
    monkeypatch.setenv("CASSTORE_TRUST_FILE", str(home / "trust.json"))
    monkeypatch.setenv("CASSTORE_KEY_FILE", str(home / "operator.key"))
    text = PAGE.read_text()
    namespace: dict[str, Any] = {"__name__": "example"}
    examples = [(found.start(1), found[1]) for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)]
    assert len(examples) >= 8
    for start, example in examples:
        line = text.count("\n", 0, start)
        exec(compile("\n" * line + example, str(PAGE), "exec"), namespace)
    assert read_tree(home / "other") == read_tree(home / "build")
    assert not [name for name in os.listdir(home) if ".casstore-" in name]


def test_every_method_of_the_content_part_is_on_the_page() -> None:
    text = PAGE.read_text()
    for name in ("push", "push_stream", "pull", "cat", "ls", "artifacts", "diff", "resolve_artifact", "stats"):
        assert f".{name}" in text
        assert hasattr(Client, name)
        assert hasattr(AsyncClient, name)


def test_both_clients_have_the_same_methods() -> None:
    """A program that outgrows one must find everything in the other."""
    asynchronous = {name for name in dir(AsyncClient) if not name.startswith("_")}
    blocking = {name for name in dir(Client) if not name.startswith("_")}
    assert blocking - {"log"} <= asynchronous  # an attribute there, a property here
    assert asynchronous - blocking <= {"verified_log"}, "that one is for the parts of the client itself"
