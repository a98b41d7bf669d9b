"""How commands speak, and how they take words: people get sentences, programs get documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from casstore.ids import ComponentName
from casstore_client.cli.commands import COMMANDS, casstore
from casstore_client.cli.operate import parse_duration, write_secret
from casstore_client.cli.output import Output, human_bytes, path_fields, print_path, print_table, short, tell
from casstore_client.cli.pointers import parse_flip
from casstore_client.cli.session import parse_labels

ROOT = Path(__file__).resolve().parents[2]


def test_one_json_document_with_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """A program reads one line and knows which version it is."""
    Output(json=True).emit({"name": ComponentName("app"), "raw": b"\xff"}, lambda: pytest.fail("people were spoken to"))
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "name": "app", "raw": "/w=="}
    Output().emit({}, lambda: click.echo("for people"))
    Output(quiet=True).say("nothing")
    Output().say("a sentence")
    spoken = capsys.readouterr()
    assert (spoken.out, spoken.err) == ("for people\n", "a sentence\n")


def test_names_cannot_steer_a_terminal() -> None:
    """A file called ESC [2J must not clear the screen of whoever lists it."""
    assert print_path(b"a\x1b[2J\n\xff") == "a\\x1b[2J\\n\\xff"
    assert path_fields("é".encode()) == {"path": "é"}
    assert path_fields(b"\xff") == {"path_b64": "/w=="}


def test_what_others_wrote_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A hold's reason is anybody's who may hold, an error's words are the server's."""
    evil = "a\x1b[2J\x9b1m\u202e\nprod/api  f9"
    shown = "a\\x1b[2J\\x9b1m\\u202e\\nprod/api  f9"
    tell(f"  reason: {evil}")
    tell(evil, err=True)
    print_table(["label"], [[evil]])
    Output().say(evil)
    spoken = capsys.readouterr()
    assert spoken.out == f"  reason: {shown}\nlabel\n{shown}\n"
    assert spoken.err == f"{shown}\n{shown}\n"


def test_numbers_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns line up, numbers to the right."""
    print_table(["name", "size"], [["a", 1], ["long", 1000]], right=(1,))
    assert capsys.readouterr().out == "name  size\na        1\nlong  1000\n"
    assert [human_bytes(size) for size in (0, 1536, 5 << 40)] == ["0 B", "1.5 KiB", "5.0 TiB"]
    assert short("blake3:" + "ab" * 32) == "ab" * 6
    assert short(None) == "-"


@pytest.mark.parametrize("text", ["1043", "f", "f01", "f-1", "F1", "f1 ", "f١", "f²", "f" + "1" * 5000])
def test_a_flip_has_one_spelling(text: str) -> None:
    """`--expect` guards production: nothing is guessed."""
    assert parse_flip("f1043") == 1043
    with pytest.raises(click.UsageError):
        parse_flip(text)


def test_labels_and_durations() -> None:
    """What cannot be meant is refused before anything is sent."""
    assert parse_labels(("a=1", "b=x=y")) == {"a": "1", "b": "x=y"}
    for pairs in (("a",), ("=1",), ("a=1", "a=2")):
        with pytest.raises(click.UsageError):
            parse_labels(pairs)
    assert parse_duration("30d") == 30 * 86_400
    for text in ("30", "d", "0s", "1w", "1.5h"):
        with pytest.raises(click.UsageError):
            parse_duration(text)


def test_a_secret_is_written_once_for_its_owner(tmp_path: Path) -> None:
    """A key that is overwritten is lost."""
    from casstore.errors import ConfigurationError

    write_secret(tmp_path / "key", "text")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="key"):
        write_secret(tmp_path / "key", "other")
    assert (tmp_path / "key").read_text() == "text\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_itself(name: str) -> None:
    """The table of commands names modules by text: each must be found, with all of its sub-commands."""
    context = click.Context(casstore, info_name="casstore")
    command = casstore.get_command(context, name)
    assert command is not None
    commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for leaf in [command, *commands]:
        assert leaf.help
        assert leaf.get_help(click.Context(leaf, info_name=name, parent=context))
    for leaf in commands:
        takes = {option for parameter in leaf.params for option in parameter.opts}
        assert name in ("cat", "completion") or {"--json", "--quiet", "--verbose"} <= takes


def test_version_imports_next_to_nothing() -> None:
    """Every prompt and every health check runs it: no network library, no engine."""
    code = (
        "import sys\n"
        "sys.argv = ['casstore', 'version']\n"
        "from casstore_client.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'aiohttp', 'asyncio', 'lmdb', 'rich', 'cryptography', 'blake3', 'casstore_server'} & set(sys.modules)\n"
        "print(sorted(heavy))\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "server"), str(ROOT / "client")])
    environ = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    version, heavy = done.stdout.splitlines()
    assert version.startswith("casstore ")
    assert heavy == "[]"


def test_the_documents_name_every_setting_and_level() -> None:
    """Documents that lag mislead at 2 AM."""
    from casstore_client.audit_report import LEVELS
    from casstore_client.config import SETTINGS

    settings = (ROOT / "docs" / "operations" / "configuration.md").read_text("utf-8")
    assert [name for name in SETTINGS if f"`{name}`" not in settings] == []
    audit = (ROOT / "docs" / "operations" / "audit.md").read_text("utf-8")
    assert [name for number, name in LEVELS.items() if f"| {number} | {name} |" not in audit] == []
