"""Writes a run into docs/performance.md, between its markers, and draws the chart beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.chart import draw
from bench.printed import kept_texts
from bench.results import Run
from bench.tables import markdown_report

_DOCS = Path(__file__).parents[1] / "docs"
BEGIN = "<!-- figures: written by `python -m bench --write-docs` -->"
END = "<!-- end of figures -->"


def between(page: str, figures: str) -> str:
    """``page`` with ``figures`` between its markers.

    Raises:
        ValueError: it lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{figures.strip()}\n\n{END}{after}"


def write_document(results: Path, scenarios: Sequence[str]) -> list[Path]:
    """Make page and chart from the results of a run, and from what the scenarios printed last; returns what was written."""
    run = Run.read(results)
    chart, page = _DOCS / "performance.svg", _DOCS / "performance.md"
    chart.write_text(draw(run))
    figures = "![Seconds of each step, casstore and its peers](performance.svg)\n\n" + markdown_report(run)
    for name, text in kept_texts(scenarios).items():
        figures += f"\n\n### Scenario: {name}\n\n```\n{text.strip()}\n```"
    page.write_text(between(page.read_text(), figures))
    return [page, chart]
