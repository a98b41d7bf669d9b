"""The store directory: who may open it, what counts as one, and its keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from casstore.errors import (
    DamagedObject,
    DestinationExists,
    InvalidName,
    NotFound,
    NotInitialised,
    StateError,
    StoreBusy,
    StoreNotFound,
    StoreTooNew,
)
from casstore.formats.pack import ObjectKind
from casstore.limits import FORMAT_VERSION
from casstore.storage.local.files import Files
from casstore.storage.local.home import Home


@pytest.fixture
def store(tmp_path: Path) -> Path:
    Home.create(tmp_path / "store", Files())
    return tmp_path / "store"


def test_a_new_store_has_what_the_documents_say(store: Path) -> None:
    """Operators go by docs/operations/store-directory.md."""
    names = {"packs", "index", "ledger", "tmp", "keys", "signed-heads", "format", "lock"}
    assert set(os.listdir(store)) == names
    assert len(os.listdir(store / "packs")) == 256
    assert json.loads((store / "format").read_text())["format"] == FORMAT_VERSION
    assert os.listdir(store / "tmp") == []
    assert (store / "keys").stat().st_mode & 0o777 == 0o700
    page = Path(__file__).parents[2] / "docs" / "operations" / "store-directory.md"
    text = page.read_text()
    assert [name for name in names if f"`{name}" not in text] == []


def test_all_parts_open(store: Path) -> None:
    """A store that was just made must work."""
    with closing(Home.open(store, Files())) as home:
        assert home.path == str(store)
        with closing(home.open_packs()) as packs:
            assert packs.list(limit=1) == []
        with closing(home.open_index()) as index:
            assert index.count(ObjectKind.CHUNK) == 0
        with closing(home.open_ledger()) as ledger, ledger.read():
            pass
        with closing(home.open_heads()) as heads:
            assert heads.read_all() == []


HOLD = """
import sys
from casstore.storage.local.files import Files
from casstore.storage.local.home import Home
home = Home.open(sys.argv[1], Files())
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_server_is_refused_and_told_who_has_it(store: Path) -> None:
    """Two writers on one store would tear the log; the operator needs to know which process to stop."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreBusy, match=f"process {other.pid}"):
            Home.open(store, Files())
        # Also when it dies without a word.
        other.kill()
    home = Home.open(store, Files())
    assert (store / "lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
        Home.open(store, Files())
    home.close()
    Home.open(store, Files()).close()


def test_a_refused_opening_changes_nothing(store: Path) -> None:
    """A second server that clears tmp/ on its way out would destroy the uploads of the first."""
    with closing(Home.open(store, Files())):
        (store / "tmp" / "upload").write_bytes(b"in progress")
        with pytest.raises(StoreBusy):
            Home.open(store, Files())
        assert (store / "tmp" / "upload").read_bytes() == b"in progress"
        assert (store / "lock").read_text() == f"{os.getpid()}\n"


def test_opening_clears_tmp(store: Path) -> None:
    """Uploads that a crash broke off must not fill the disk."""
    (store / "tmp" / "left").write_bytes(b"by a crash")
    Home.open(store, Files()).close()
    assert os.listdir(store / "tmp") == []


def test_opening_never_creates(tmp_path: Path) -> None:
    """A mistyped path or a missing mount must not become an empty store."""
    with pytest.raises(StoreNotFound):
        Home.open(tmp_path / "missing", Files())
    with pytest.raises(NotInitialised):
        Home.open(tmp_path, Files())
    assert os.listdir(tmp_path) == []


def test_creating_never_overwrites(store: Path, tmp_path: Path) -> None:
    """`init` on the wrong directory must harm neither a store nor somebody's files."""
    with pytest.raises(DestinationExists):
        Home.create(store, Files())
    Home.open(store, Files()).close()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    with pytest.raises(DestinationExists, match="not empty"):
        Home.create(tmp_path / "home", Files())
    assert os.listdir(tmp_path / "home") == ["notes.txt"]
    with pytest.raises(DestinationExists):
        Home.create(tmp_path / "home" / "notes.txt", Files())


def test_an_empty_directory_or_a_fresh_mount_becomes_a_store(tmp_path: Path) -> None:
    """Volumes are mounted before the store is made on them."""
    (tmp_path / "mount" / "lost+found").mkdir(parents=True)
    Home.create(tmp_path / "mount", Files())
    Home.open(tmp_path / "mount", Files()).close()


def test_initialising_is_part_of_creating(tmp_path: Path) -> None:
    """A store without its keys would open and then fail; it must not count as a store."""

    def fail(home: Home) -> None:
        home.write_key("log", b"secret")
        raise KeyError

    with pytest.raises(KeyError):
        Home.create(tmp_path / "store", Files(), fail)
    with pytest.raises(NotInitialised):
        Home.open(tmp_path / "store", Files())
    with pytest.raises(DestinationExists) as caught:
        Home.create(tmp_path / "store", Files())
    assert "interrupted" in str(caught.value.hint)
    Home.create(tmp_path / "second", Files(), lambda home: home.write_key("log", b"secret"))
    with closing(Home.open(tmp_path / "second", Files())) as home:
        assert home.read_key("log") == b"secret"


def test_a_newer_store_is_refused_in_a_sentence(store: Path) -> None:
    """An older program that writes into a newer store destroys what it does not understand."""
    (store / "format").write_text('{"casstore": "9.1", "format": 999}')
    with pytest.raises(StoreTooNew, match=r"format 999, made by casstore 9\.1"):
        Home.open(store, Files())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"1", b"[]", b"{}", b'{"format": "1"}', b'{"format": true}', b'{"format": 0}', b'{"format": 1.5}',
     b'{"format": null}', b"\xff\xfe", b"[" * 4096],
)  # fmt: skip
def test_an_unreadable_format_is_damage(store: Path, content: bytes) -> None:
    """Guessing a format is how stores are lost."""
    (store / "format").write_bytes(content)
    with pytest.raises(DamagedObject, match="format"):
        Home.open(store, Files())


def test_keys_are_written_once_and_for_one_reader(store: Path) -> None:
    """An overwritten log key is a log that nobody can continue; a readable one is a log that anybody can."""
    with closing(Home.open(store, Files())) as home:
        before = os.umask(0)
        try:
            home.write_key("log", b"secret")
        finally:
            os.umask(before)
        with pytest.raises(DestinationExists):
            home.write_key("log", b"other")
        assert home.read_key("log") == b"secret"
        assert (store / "keys" / "log").stat().st_mode & 0o777 == 0o600
        with pytest.raises(NotFound):
            home.read_key("clock")


@pytest.mark.parametrize("name", ["", ".", "..", "../ledger", "a/b", ".hidden", "A", "a" * 64, "a\n", "a\0"])
def test_key_names_stay_in_their_directory(store: Path, name: str) -> None:
    """A name from a command line must not reach another file."""
    with closing(Home.open(store, Files())) as home:
        with pytest.raises(InvalidName):
            home.read_key(name)
        with pytest.raises(InvalidName):
            home.write_key(name, b"")


def test_a_closed_home_opens_nothing(store: Path) -> None:
    """Without the lock another server may be writing."""
    home = Home.open(store, Files())
    home.close()
    home.close()
    for opening in (home.open_packs, home.open_index, home.open_ledger, home.open_heads, lambda: home.read_key("log")):
        with pytest.raises(StateError):
            opening()
