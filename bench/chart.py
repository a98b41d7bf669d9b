"""The chart of a run: one SVG, by hand, readable on light and on dark pages, and without colour.

One panel a step, one bar a store; casstore's bar is filled, those of peers are grey, a line marks the limit.  Each panel has a scale of its
own, for an unchanged push is a hundredth of a first one; each bar has its seconds beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Final
from xml.sax.saxutils import escape

from bench.results import CorpusRun, Run
from bench.steps import PULL_1, PULL_2, PULL_2_LINK, PUSH_1, PUSH_2, PUSH_SAME, TITLES, VERIFY

_STEPS: Final = (PUSH_1, PUSH_SAME, PUSH_2, VERIFY, PULL_1, PULL_2, PULL_2_LINK)
_LEFT_OUT: Final = ("casstore-no-fsync",)
_COLUMN: Final = 470
_GAP: Final = 30
_NAME: Final = 112
_BAR: Final = 14
_PITCH: Final = 19
_VALUE: Final = 62
_STYLE: Final = """
  .page { fill: #ffffff } .text { fill: #1f2328 } .faint { fill: #59636e } .peer { fill: #b6bec9 } .own { fill: #0969da }
  .limit { stroke: #cf222e; stroke-width: 2 } text { font: 12px system-ui, sans-serif } .head { font-size: 16px; font-weight: 600 }
  .title { font-weight: 600 } .value { paint-order: stroke; stroke: #ffffff; stroke-width: 3px }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #e6edf3 } .faint { fill: #9198a1 } .peer { fill: #4b535d } .own { fill: #4493f8 }
    .limit { stroke: #ff7b72 } .value { stroke: #0d1117 }
  }
"""


@dataclass(frozen=True)
class Panel:
    """One step of one corpus: seconds by store, quickest first, and the limit."""

    title: str
    bars: list[tuple[str, float, bool]]
    limit_s: float | None

    @property
    def height(self) -> int:
        """In pixels."""
        return 26 + _PITCH * len(self.bars) + 16


def panels(run: Run, corpus: CorpusRun) -> list[Panel]:
    """What there is to show of one corpus."""
    found = []
    for step in _STEPS:
        bars = [
            (name, median(seconds.values()), not run.is_peer(name))
            for name in corpus.competitors()
            if name not in _LEFT_OUT and (seconds := corpus.seconds(name, step))
        ]
        if bars:
            limits = corpus.limit_s(step)
            limit = median(limits.values()) if limits else None
            found.append(Panel(TITLES[step], sorted(bars, key=lambda bar: bar[1]), limit))
    return found


def draw(run: Run) -> str:
    """The SVG."""
    columns = [(corpus, panels(run, corpus)) for corpus in run.corpora]
    heights = [56 + sum(panel.height for panel in found) for _, found in columns]
    width = _GAP + (_COLUMN + _GAP) * len(columns)
    height = max(heights, default=56) + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>Seconds a step, less is better; {escape(run.date)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="6"/>',
    ]
    for number, (corpus, found) in enumerate(columns):
        left = _GAP + number * (_COLUMN + _GAP)
        title = corpus.title
        parts.append(f'<text class="text head" x="{left}" y="32">{escape(title)}</text>')
        top = 56
        for panel in found:
            parts += _panel(panel, left, top)
            top += panel.height
    note = "Seconds, less is better; each panel has its own scale. Line: the same work by the libraries alone."
    parts.append(f'<text class="faint" x="{_GAP}" y="{height - 14}">{note}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: int, top: int) -> list[str]:
    longest = max([seconds for _, seconds, _ in panel.bars] + [panel.limit_s or 0.0])
    room = _COLUMN - _NAME - _VALUE
    parts = [f'<text class="text title" x="{left}" y="{top + 12}">{escape(panel.title)}</text>']
    values = []
    for number, (name, seconds, own) in enumerate(panel.bars):
        y = top + 24 + number * _PITCH
        length = max(1.5, room * seconds / longest)
        kind = "own" if own else "peer"
        weight = "text title" if own else "text"
        parts += [
            f'<text class="{weight}" x="{left + _NAME - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{left + _NAME}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>',
        ]
        values.append(f'<text class="text value" x="{left + _NAME + length + 6:.1f}" y="{y + 11}">{seconds:.2f}</text>')
    if panel.limit_s is not None:
        x = left + _NAME + room * panel.limit_s / longest
        bottom = top + 24 + len(panel.bars) * _PITCH - 2
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 20}" y2="{bottom}"/>')
    return parts + values
