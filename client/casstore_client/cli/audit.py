"""``casstore audit``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore_client.cli.commands import speaking
from casstore_client.cli.exit_codes import VERIFICATION_FAILED
from casstore_client.cli.output import Output, colours, print_table, tell
from casstore_client.cli.progress import ProgressLine
from casstore_client.cli.session import connecting, open_client

if TYPE_CHECKING:
    from casstore_client.audit_report import Affected, AuditReport
    from casstore_client.config import Settings


@click.command()
@click.option("--full", is_flag=True, help="Fetch and hash all content, and put every file together.")
@connecting
@speaking
def audit(full: bool, settings: Settings, out: Output) -> None:
    """Verify the whole log, level by level, and that its content is there; with --full all of its content.

    Needs a trust file and no trust in the server: hashes, signatures, who was entitled to what, and that the state follows from the signed
    acts are all computed anew. Ends with exit code 6 if anything does not hold.
    """
    with open_client(settings) as client, ProgressLine(out) as progress:
        report = client.audit(full=full, progress=progress.update_audit)
    out.emit(report, lambda: _show(report))
    if not report.ok:
        raise click.exceptions.Exit(VERIFICATION_FAILED)


def _show(report: AuditReport) -> None:
    tell(f"{report.origin}, {report.size} entries, root {report.root[:16]}…")
    rows = []
    for level in report.levels:
        first = "" if level.first_bad_index is None else f"first at {level.first_bad_index}"
        rows.append([level.level, level.name, "ok" if level.ok else "FAILED", first, level.detail])
    print_table(["level", "", "", "", "what was checked"], rows)
    for finding in report.findings:
        tell(f"level {finding.level}: {finding.object}: {finding.code}")
        tell(f"  where     {finding.where}")
        tell(f"  expected  {finding.expected}")
        tell(f"  found     {finding.found}")
        for needy in finding.affects:
            tell(f"  needed by {_needy(needy)}")
    if report.truncated:
        tell("There is more; the list was cut.")
    verdict = "Everything holds." if report.ok else "DOES NOT HOLD."
    click.echo(click.style(verdict, fg="green" if report.ok else "red", bold=True) if colours() else verdict)


def _needy(needy: Affected) -> str:
    import base64

    from casstore_client.cli.output import print_path, short

    path = base64.b64decode(needy.path_b64) if needy.path_b64 is not None else (needy.path or "").encode()
    return " ".join(part for part in (f"snapshot {short(needy.snapshot)}", needy.component, print_path(path)) if part)
