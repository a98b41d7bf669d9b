"""What a run measured, as JSON keeps it, and what is worked out from it: medians, ratios round by round, the measures.

A ratio is worked out within each round, from steps that were taken minutes apart on the same machine, and the median of those is shown;
a ratio of two medians would mix rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.competitors import Measured
from bench.steps import STANDS_FOR


@dataclass
class Sample:
    """One step of one competitor in one round."""

    round: int
    competitor: str
    step: str
    measured: Measured


@dataclass
class Limit:
    """The limit of one step in one round, and the way that was quickest."""

    round: int
    step: str
    seconds: float
    way: str


@dataclass
class CorpusRun:
    """All rounds of one corpus."""

    name: str
    files: int
    size_bytes: int
    samples: list[Sample] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What it is, in words."""
        name = {"python": "Python environment", "javascript": "JavaScript tree"}.get(self.name, self.name)
        return f"{name}: {self.files:,} files, {self.size_bytes / 1e6:.0f} MB"

    def competitors(self) -> list[str]:
        """In the order in which they first came."""
        return list(dict.fromkeys(sample.competitor for sample in self.samples))

    def of(self, competitor: str, step: str) -> list[Measured]:
        """What one competitor measured for one step, round by round."""
        return [s.measured for s in self.samples if (s.competitor, s.step) == (competitor, step)]

    def seconds(self, competitor: str, step: str) -> dict[int, float]:
        """Seconds by round."""
        return {s.round: s.measured.seconds for s in self.samples if (s.competitor, s.step) == (competitor, step)}

    def limit_s(self, step: str) -> dict[int, float]:
        """The limit by round."""
        return {limit.round: limit.seconds for limit in self.limits if limit.step == step}


@dataclass
class Run:
    """One run of the peers' bench."""

    command: str
    date: str
    machine: str
    file_system: str
    load: float
    competitors: dict[str, dict[str, str | bool]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    corpora: list[CorpusRun] = field(default_factory=list)

    def is_peer(self, name: str) -> bool:
        """Whether it is not casstore."""
        return bool(self.competitors[name]["is_peer"])

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read what :meth:`write` kept."""
        document = json.loads(path.read_text())
        corpora = [
            CorpusRun(
                c["name"],
                c["files"],
                c["size_bytes"],
                [Sample(s["round"], s["competitor"], s["step"], Measured(**s["measured"])) for s in c["samples"]],
                [Limit(**limit) for limit in c["limits"]],
            )
            for c in document.pop("corpora")
        ]
        return cls(**document, corpora=corpora)


def fastest_peer(run: Run, corpus: CorpusRun, step: str) -> str | None:
    """The peer with the least median time for ``step``, or for the step that stands for it."""
    step = STANDS_FOR.get(step, step)
    found = [
        (median(seconds.values()), name)
        for name in corpus.competitors()
        if run.is_peer(name) and (seconds := corpus.seconds(name, step))
    ]
    return min(found)[1] if found else None


def ratio(over: dict[int, float], under: dict[int, float]) -> float | None:
    """The median of the ratios of those rounds that both have."""
    both = [over[number] / under[number] for number in over if number in under]
    return median(both) if both else None


def times_faster(run: Run, corpus: CorpusRun, competitor: str, step: str) -> float | None:
    """How many times faster than the fastest peer."""
    peer = fastest_peer(run, corpus, step)
    if peer is None:
        return None
    return ratio(corpus.seconds(peer, STANDS_FOR.get(step, step)), corpus.seconds(competitor, step))


def middle(measured: Iterable[Measured], what: Callable[[Measured], float]) -> float:
    """The median of one figure."""
    return median([what(m) for m in measured])
