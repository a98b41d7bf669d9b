"""The ``casstore`` command.

A command's module is imported when that command is called, not before: ``casstore version`` stays quick, and the commands of
the server (``init``, ``serve``, ``fsck``) live in ``casstore_server`` and are found by name, so that the client does not
import the server.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casstore.errors import CasstoreError


def main() -> None:
    """Run the command line; ends the process with one of the codes in :mod:`casstore_client.cli.exit_codes`."""
    import click

    from casstore_client.cli.commands import casstore

    try:
        code = casstore.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as ending:
        sys.exit(ending.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. Nothing was left half done.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`casstore ls … | head`): that is its right.
        # The interpreter flushes stdout once more at its end; what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        from casstore.errors import CasstoreError

        if not isinstance(error, CasstoreError):
            raise
        sys.exit(_report(error))


def _report(error: CasstoreError) -> int:
    import click
    import msgspec

    from casstore_client.cli.exit_codes import EXIT_CODES, FAILURE

    if "--json" in sys.argv:
        document = {
            "schema": 1,
            "error": {"code": error.code, "detail": error.detail, "hint": error.hint, **error.fields},
        }
        click.echo(msgspec.json.encode(document).decode())
    else:
        click.echo(f"casstore: {error.detail}", err=True)
        if error.hint:
            click.echo(f"  hint: {error.hint}", err=True)
    return EXIT_CODES.get(error.code, FAILURE)


if __name__ == "__main__":
    main()
