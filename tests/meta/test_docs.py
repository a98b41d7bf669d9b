"""The documents say what the program does: whoever reads them at night must not be sent astray.

What is held: links, commands, error codes, limits, the indexes of formats and decisions, the test files that promises name,
and that no document speaks of the machine that it was written on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import casstore_client.errors  # noqa: F401  registers the client's codes
from casstore import errors, limits
from casstore_client.cli.commands import COMMANDS
from casstore_client.cli.commands import casstore as cli
from casstore_client.cli.exit_codes import EXIT_CODES
from casstore_server.errors import STATUS

ROOT = Path(__file__).parents[2]
FORMATS = ROOT / "docs" / "formats"
DECISIONS = ROOT / "docs" / "adr"
COMMAND_PAGE = ROOT / "docs" / "cli.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(r"^```.*?^```[ \t]*$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_SIZES = {"KiB": limits.KIB, "MiB": limits.MIB, "GiB": limits.GIB}


def read(page: Path) -> str:
    return page.read_text("utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# --- links -----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", read(page))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()
        base = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number, anchor = 0, base
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_CODE.sub("", _FENCE.sub("", read(page)))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


@every_page
def test_no_page_names_the_machine_that_it_was_written_on(page: Path) -> None:
    found = re.findall(r"(?<![\w.~$}:/-])/(?:home|root|work|tmp|Users|mnt|media|private)\b[/\w.-]*", read(page))
    assert not found


@every_page
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """A promise whose test is gone is no promise."""
    named = [found.rstrip(".") for found in re.findall(r"\btests/[\w/-]+\.[\w.-]+", read(page))]
    assert not [path for path in named if not (ROOT / path).is_file()]


# --- commands --------------------------------------------------------------------------------------------------------


def test_every_command_is_on_the_command_page() -> None:
    text = read(COMMAND_PAGE)
    # In a table as `push PATH`, in a block as `casstore push …`.
    assert not [name for name in COMMANDS if not re.search(rf"(?:`|casstore ){name}\b", text)]


def spoken_commands(page: Path) -> Iterator[list[str]]:
    """The words behind ``casstore`` wherever a page shows a command: in a block, or as code in a sentence."""
    text = read(page)
    blocks = "\n".join(block.partition("\n")[2].rpartition("\n")[0] for block in _FENCE.findall(text))
    blocks = blocks.replace("\\\n", " ")
    # What stands behind another path or word than these is data, such as the name of a log or of a unit.
    in_blocks = re.findall(r"(?:^|[$;&|(]|/bin/)[ \t]*casstore ([a-z][^\n]*)", blocks, re.MULTILINE)
    in_sentences = re.findall(r"`casstore ([a-z][^`\n]*)`", _FENCE.sub("", text))
    for line in (*in_blocks, *in_sentences):
        # `casstore v1 page` is the context of a hash.
        if not re.match(r"v\d", line):
            yield line.split()


@every_page
def test_no_page_shows_a_command_that_does_not_exist(page: Path) -> None:
    unknown = [words for words in spoken_commands(page) if problem_of(words)]
    assert not unknown, [problem_of(words) for words in unknown]


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a shown command: its name, its subcommand, or a flag that it does not take."""
    if words[0] not in COMMANDS:
        return f"no command {words[0]}"
    context = click.Context(cli)
    command, rest = cli.get_command(context, words[0]), words[1:]
    if isinstance(command, click.Group):
        # `snapshot create|list` speaks of several at once, `snapshot` alone of the group.
        for sub in rest[0].split("|") if rest and re.match(r"[a-z|]+\Z", rest[0]) else ():
            if command.get_command(context, sub) is None:
                return f"no command {words[0]} {sub}"
        command = command.get_command(context, rest[0]) if rest else command
    if command is None or isinstance(command, click.Group):
        return None
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    flags = {word.strip("[]().,;:").partition("=")[0] for word in rest if word.strip("[(").startswith("--")}
    wrong = sorted(flags - known - {"--help"})
    return f"{words[0]} has no {', '.join(wrong)}" if wrong else None


# --- error codes and limits ------------------------------------------------------------------------------------------


def error_rows() -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    section = read(FORMATS / "wire.md").partition("\n## Errors\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"`[a-z-]+`", cells[0]):
            assert cells[0].strip("`") not in rows, f"{cells[0]} stands there twice"
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def test_every_error_code_is_on_the_wire_page_and_no_other() -> None:
    assert set(error_rows()) == set(errors.codes())


@pytest.mark.parametrize("code", sorted(errors.codes()))
def test_an_error_is_described_as_it_is(code: str) -> None:
    """Scripts branch on status and exit code, and decide by *again* whether to repeat a flip."""
    status, exit_code, again, fields, _ = error_rows()[code]
    cls = errors.codes()[code]
    assert status == (str(STATUS[code]) if code in STATUS else "")
    assert exit_code == str(EXIT_CODES[code])
    assert again == ("yes" if cls.retryable else "no")
    assert set(re.findall(r"`(\w+)`", fields)) == set(cls._fields)


def test_every_exit_code_in_the_recovery_table_is_that_of_its_codes() -> None:
    rows = re.findall(
        r"^\| (\d+) \| ([^|]*`[a-z-]+`[^|]*) \|", read(ROOT / "docs/operations/recovery.md"), re.MULTILINE
    )
    assert rows
    for exit_code, cell in rows:
        for code in re.findall(r"`([a-z-]+)`", cell):
            assert EXIT_CODES[code] == int(exit_code), code


def limit_values() -> list[tuple[str, str, str]]:
    """Rows of tables whose first cell names a limit: page, name, and what the second cell says."""
    found = []
    for page in PAGES:
        for name, value in re.findall(r"^\| `([A-Z][A-Z0-9_]+)` \| ([^|]+?) \|", read(page), re.MULTILINE):
            found.append((name_of(page), name, value))
    return found


def test_there_are_limits_to_hold() -> None:
    assert len(limit_values()) >= 20


@pytest.mark.parametrize(("page", "name", "value"), limit_values())
def test_a_limit_is_what_the_program_keeps(page: str, name: str, value: str) -> None:
    number, _, unit = value.replace(",", "").partition(" ")
    assert hasattr(limits, name), f"{page}: there is no limit {name}"
    assert int(number) * (_SIZES[unit] if unit else 1) == getattr(limits, name)


# --- indexes ---------------------------------------------------------------------------------------------------------


def linked(index: Path) -> list[str]:
    """What the rows of an index's tables link to, in their first cell."""
    return re.findall(r"^\| \[[^\]]+\]\(([^)]+)\) \|", read(index), re.MULTILINE)


def test_every_format_page_is_in_the_index_once() -> None:
    assert sorted(linked(FORMATS / "README.md")) == sorted(
        p.name for p in FORMATS.glob("*.md") if p.name != "README.md"
    )


@pytest.mark.parametrize("page", sorted(FORMATS.glob("*.md")), ids=name_of)
def test_every_format_page_says_what_a_reader_must_do(page: Path) -> None:
    """Bytes without a duty leave the next reader to guess what to refuse."""
    assert re.search(r"\bMUST\b", read(page))


def test_every_decision_is_in_the_index_once_and_in_order() -> None:
    files = sorted(p.name for p in DECISIONS.glob("*.md") if p.name != "README.md")
    assert linked(DECISIONS / "README.md") == files
    numbers = [name[:4] for name in files]
    assert len(set(numbers)) == len(numbers), "two decisions have one number"


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("0*.md")), ids=name_of)
def test_a_decision_names_its_price(page: Path) -> None:
    """A decision without bad consequences was not thought through, or not written down."""
    text = read(page)
    number, title = re.match(r"# (\d{4})\. (.+)\n", text).groups()  # type: ignore[union-attr]
    assert page.name.startswith(number + "-")
    assert f"| [{number}]({page.name}) | {title} |" in read(DECISIONS / "README.md")
    assert {"Context", "Decision", "Bad consequences"} <= set(re.findall(r"^## (.+)$", text, re.MULTILINE))
    assert re.search(r"^Status: \w", text, re.MULTILINE)
