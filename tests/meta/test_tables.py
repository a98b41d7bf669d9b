"""Tables keyed by error code are total: a new error can not fall through to 500 or to exit code 1 unnoticed."""

from __future__ import annotations

import importlib

import casstore_client.errors  # noqa: F401  registers the client's codes
from casstore import errors
from casstore_client.cli.commands import COMMANDS, GROUPS
from casstore_client.cli.exit_codes import EXIT_CODES
from casstore_server.errors import STATUS

CLIENT_ONLY = {"transport-error", "protocol-error"}


def test_exit_codes_are_total() -> None:
    assert set(EXIT_CODES) == set(errors.codes())


def test_http_statuses_are_total() -> None:
    assert set(STATUS) == set(errors.codes()) - CLIENT_ONLY


def test_codes_are_unique_and_rebuild_the_same_error() -> None:
    classes = list(errors._all_classes(errors.CasstoreError))
    assert len({cls.code for cls in classes}) == len(classes)
    for cls in classes:
        built = errors.from_code(cls.code, "a sentence", hint="a hint", fields={"no_such_field": 1})
        assert type(built) is cls
        assert (built.detail, built.hint, str(built)) == ("a sentence", "a hint", "a sentence")


def test_the_tree_in_the_docstring_names_every_class() -> None:
    """The drawing at the top of the module is what people read first."""
    drawing = errors.__doc__ or ""
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, errors.CasstoreError):
            assert cls.__name__ in drawing


def test_every_command_in_the_table_exists_and_has_help() -> None:
    for name, (group, where, line) in COMMANDS.items():
        module, _, attribute = where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert group in GROUPS
        assert line.endswith(".")
        assert command.help, name
