"""The ``casstore`` command.

A command's module is imported when that command is called, not before: ``casstore version`` stays quick, and the commands of
the server (``init``, ``serve``, ``fsck``) live in ``casstore_server`` and are found by name, so that the client does not
import the server.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from casstore.errors import CasstoreError

_FLAGS: Final = {
    "snapshot-bad": "if you mean it, `casstore flip --clear-bad` takes the mark away",
    "held": "`casstore release` ends the hold; with --clear-hold the flip does",
}
"""What the server can only say in general, in this command's words."""


class _Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP: a service manager, a CI's time limit, a lost connection.  It tidies up as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


def _end(number: int, _: object) -> None:
    raise _Ended(number)


def main() -> None:
    """Run the command line; ends the process with one of the codes in :mod:`casstore_client.cli.exit_codes`."""
    import click

    from casstore_client.cli.commands import ReaderGone, casstore
    from casstore_client.cli.output import printable

    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # not what nohup ignores
                signal.signal(number, _end)
        code = casstore.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as ending:
        sys.exit(ending.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as ending:
        click.echo("Interrupted. Nothing was left half done: an act was carried out, or it was not.", err=True)
        by = ending.__cause__  # click turns every interrupt into an Abort
        sys.exit(128 + (by.number if isinstance(by, _Ended) else signal.SIGINT))
    except ReaderGone:
        # The reader of our output has gone (`casstore ls … | head`): that is its right.
        _abandon_stdout()
        sys.exit(0)
    except OSError as error:
        # What the client meets is in its own errors: this is our output, or a file that was named on the command line.
        _abandon_stdout()
        where = f"{error.filename}: " if error.filename is not None else "cannot write the output: "
        click.echo(f"casstore: {printable(where)}{error.strerror or error}", err=True)
        sys.exit(1)
    except Exception as error:
        from casstore.errors import CasstoreError

        if not isinstance(error, CasstoreError):
            raise
        sys.exit(_report(error))


def _abandon_stdout() -> None:
    """The interpreter flushes stdout once more at its end: what is left goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def _report(error: CasstoreError) -> int:
    import click
    import msgspec

    from casstore_client.cli.exit_codes import EXIT_CODES, FAILURE
    from casstore_client.cli.output import short, tell

    if "--json" in sys.argv:
        document = {
            "schema": 1,
            "error": {"code": error.code, "detail": error.detail, "hint": error.hint, **error.fields},
        }
        click.echo(msgspec.json.encode(document).decode())
    else:
        tell(f"casstore: {error.detail}", err=True)
        for one in error.fields.get("skipped") or ():
            tell(f"  skipped {short(one['snapshot'])} (f{one['flip']}): {one['why']}", err=True)
        hint = _FLAGS.get(error.code, error.hint)
        if hint:
            tell(f"  hint: {hint}", err=True)
    return EXIT_CODES.get(error.code, FAILURE)


if __name__ == "__main__":
    main()
