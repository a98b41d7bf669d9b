"""The results as tables: the same rows for a terminal and for a document."""

from __future__ import annotations

from statistics import median
from typing import Final

from bench.measures import measures
from bench.results import CorpusRun, Run, middle, times_faster
from bench.steps import PUSHES, TITLES, VERIFY

_MIB = 1024 * 1024
_HEAD: Final = [
    "store",
    "s",
    "times the fastest peer's speed",
    "MB/s",
    "CPU s client + server",
    "peak MiB client + server",
    "MB sent",
    "MB stored",
]


def step_rows(run: Run, corpus: CorpusRun, step: str) -> list[list[str]]:
    """The rows of one step, quickest first, the limit last."""
    rows = []
    for name in corpus.competitors():
        found = corpus.of(name, step)
        if not found:
            continue
        seconds = middle(found, lambda m: m.seconds)
        times = times_faster(run, corpus, name, step)
        sent = middle(found, lambda m: m.wire_bytes) / 1e6
        stored = middle(found, lambda m: m.stored_bytes) / 1e6
        cpu = [f"{middle(found, lambda m: m.client_cpu_s):.1f}"]
        peak = [f"{middle(found, lambda m: m.client_peak_bytes) / _MIB:.0f}"]
        if not run.is_peer(name):
            cpu.append(f"{middle(found, lambda m: m.server_cpu_s):.1f}")
            peak.append(f"{middle(found, lambda m: m.server_peak_bytes) / _MIB:.0f}")
        row = [
            name,
            f"{seconds:.2f}",
            "" if times is None else f"{times:.2f}",
            f"{corpus.size_bytes / 1e6 / seconds:.0f}",
            " + ".join(cpu),
            " + ".join(peak),
            f"{sent:.1f}" if step in PUSHES else "",
            f"{stored:.1f}" if step in PUSHES else "",
        ]
        rows.append((seconds, row))
    rows.sort()
    limits = [limit for limit in corpus.limits if limit.step == step]
    lines = [row for _, row in rows]
    if limits and lines:
        seconds = median(limit.seconds for limit in limits)
        way = max({limit.way for limit in limits}, key=[limit.way for limit in limits].count)
        lines.append([f"limit, by {way}", f"{seconds:.2f}", "", f"{corpus.size_bytes / 1e6 / seconds:.0f}", *[""] * 4])
    return lines


def measure_rows(run: Run, corpus: CorpusRun) -> list[list[str]]:
    """The goals, what was found, and whether it is enough."""
    return [
        [m.what, m.goal, f"{m.found:.2f}", "reached" if m.reached else "**not reached**"] for m in measures(run, corpus)
    ]


def steps_of(corpus: CorpusRun) -> list[str]:
    """The steps that anybody took."""
    return [step for step in TITLES if any(sample.step == step for sample in corpus.samples)]


def text_report(run: Run) -> str:
    """Everything, for a terminal."""
    parts = [f"{run.machine}, {run.file_system}; {run.load:.1f} processes were waiting when it began"]
    for corpus in run.corpora:
        parts.append(f"\n{corpus.title}")
        for step in steps_of(corpus):
            parts += [f"\n{TITLES[step]}", _text_table(_HEAD, step_rows(run, corpus, step))]
        rows = [[cell.replace("*", "") for cell in row] for row in measure_rows(run, corpus)]
        if rows:
            parts += ["", _text_table(["measure", "goal", "found", ""], rows, left=(0, 3))]
    parts += [f"{name} is left out: {reason}" for name, reason in run.left_out.items()]
    return "\n".join(parts)


def markdown_report(run: Run) -> str:
    """Everything, for a document."""
    parts = [
        f"Measured on {run.date} with `{run.command}`: {_rounds(run)} rounds, medians; ratios are medians of the ratios of each round.",
        f"Machine: {run.machine}, {run.file_system}; {run.load:.1f} processes were waiting when it began.",
        "",
        _markdown_table(
            ["store", "version", "how it was used", "a push is durable"], _competitor_rows(run), left=(0, 1, 2, 3)
        ),
    ]
    if run.left_out:
        parts += ["", "Left out: " + "; ".join(f"{name} ({reason})" for name, reason in run.left_out.items()) + "."]
    for corpus in run.corpora:
        parts += [
            "",
            f"### {corpus.title}",
            "",
            _markdown_table(["measure", "goal", "found", ""], measure_rows(run, corpus), left=(0, 3)),
        ]
        for step in steps_of(corpus):
            title = TITLES[step][0].upper() + TITLES[step][1:]
            parts += ["", f"**{title}**{_note(step)}", "", _markdown_table(_HEAD, step_rows(run, corpus, step))]
    return "\n".join(parts)


def _note(step: str) -> str:
    if step == VERIFY:
        return " (MB/s: plain bytes of release 1; the stores hold both releases)"
    return ""


def _rounds(run: Run) -> int:
    return max((sample.round for corpus in run.corpora for sample in corpus.samples), default=0)


def _competitor_rows(run: Run) -> list[list[str]]:
    return [
        [name, str(found["version"]), str(found["about"]), "yes" if found["durable"] else "no"]
        for name, found in run.competitors.items()
    ]


def _text_table(head: list[str], rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [
            cell.ljust(w) if at in left else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _markdown_table(head: list[str], rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    marks = ["---" if at in left else "---:" for at in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])
