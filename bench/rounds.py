"""The peers' bench: all competitors take each step one after the other, round after round, on fresh stores.

Within a round the competitors alternate step by step, and each round begins with another one, so that what the machine does besides hits
all of them.  Before each step everything that the one before left is written out (``sync``); files that are read lie in the page cache
for everybody.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bench import machine
from bench.casstore_store import Casstore, CasstoreWithoutFsync
from bench.competitors import PEERS, Competitor
from bench.corpora import Corpus
from bench.limit import limit_s
from bench.processes import StepFailed
from bench.results import CorpusRun, Limit, Run, Sample
from bench.scratch import discard, scratch_dir, settle
from bench.steps import (
    PULL_1,
    PULL_1_NO_SYNC,
    PULL_2,
    PULL_2_LINK,
    PUSH_1,
    PUSH_2,
    PUSH_SAME,
    TITLES,
    VERIFY,
    needed,
)

ALL: tuple[type[Competitor], ...] = (Casstore, CasstoreWithoutFsync, *PEERS)

# Which work of bench.limit is the least for a step, and whether it is done to release 2.
_LIMITS = {
    PUSH_1: ("push", False),
    PUSH_SAME: ("walk", False),
    PUSH_2: ("push-on", True),
    VERIFY: ("verify", False),
    PULL_1: ("write", False),
    PULL_1_NO_SYNC: ("write", False),
    PULL_2: ("write", True),
    PULL_2_LINK: ("link", True),
}


def run_rounds(
    corpora: Sequence[Corpus], *, rounds: int, only: Sequence[str], steps: Sequence[str], command: str, limits: bool
) -> Run:
    """Measure.

    Args:
        corpora: what to push.
        rounds: how often.
        only: names of the competitors that take part; empty for all.
        steps: the steps that count; what they need is done as well.
        command: what was typed, for the record.
        limits: whether the limit of each step is measured, too.
    """
    run = Run(
        command,
        datetime.now(UTC).strftime("%Y-%m-%d"),
        machine.describe(),
        machine.file_system(scratch_dir()),
        machine.load(),
    )
    taking_part = _taking_part(run, only)
    for corpus in corpora:
        found = CorpusRun(corpus.name, corpus.files, corpus.size_bytes)
        run.corpora.append(found)
        for number in range(1, rounds + 1):
            at = (number - 1) % len(taking_part)
            one = _Round(run, found, corpus, number, needed(list(steps)), limits)
            one.take([*taking_part[at:], *taking_part[:at]])
            settle()
    return run


def _taking_part(run: Run, only: Sequence[str]) -> list[type[Competitor]]:
    found = []
    for kind in ALL:
        if only and kind.name not in only:
            continue
        if reason := kind.missing():
            run.left_out[kind.name] = reason
            print(f"{kind.name} is left out: {reason}", flush=True)
            continue
        run.competitors[kind.name] = {
            "version": kind.version(),
            "about": kind.about,
            "durable": kind.durable,
            "is_peer": kind.is_peer,
        }
        found.append(kind)
    if not found:
        raise SystemExit(f"nobody takes part: known are {', '.join(kind.name for kind in ALL)}")
    return found


@dataclass(frozen=True)
class _Round:
    """One round of one corpus."""

    run: Run
    found: CorpusRun
    corpus: Corpus
    number: int
    steps: Sequence[str]
    limits: bool

    def take(self, kinds: Sequence[type[Competitor]]) -> None:
        """Open all stores, take all steps, remove all."""
        print(f"\n{self.corpus.name}, round {self.number}", flush=True)
        releases = (self.corpus.release_1, self.corpus.release_2)
        open_ones: list[Competitor] = []
        try:
            for kind in kinds:
                competitor = kind(scratch_dir() / kind.name, releases)
                open_ones.append(competitor)
                try:
                    competitor.open()
                except StepFailed as error:
                    self._leave_out(competitor, open_ones, f"no store: {error}")
            for step in self.steps:
                for competitor in list(open_ones):
                    if step in competitor.steps():
                        self._step(competitor, open_ones, step)
                if self.limits:
                    self._limit(step)
        finally:
            for competitor in open_ones:
                competitor.close()

    def _step(self, competitor: Competitor, open_ones: list[Competitor], step: str) -> None:
        os.sync()  # what the step before left to be written back is not this one's
        try:
            measured = competitor.take(step)
        except StepFailed as error:
            self._leave_out(competitor, open_ones, f"{TITLES[step]}: {error}")
            return
        self.found.samples.append(Sample(self.number, competitor.name, step, measured))
        cpu = measured.client_cpu_s + measured.server_cpu_s
        print(f"  {step:15} {competitor.name:20} {measured.seconds:7.2f} s  {cpu:7.2f} CPU s", flush=True)

    def _leave_out(self, competitor: Competitor, open_ones: list[Competitor], reason: str) -> None:
        self.run.left_out[competitor.name] = reason
        print(f"  {competitor.name} is left out from here: {reason}", flush=True)
        open_ones.remove(competitor)
        competitor.close()

    def _limit(self, step: str) -> None:
        work, second = _LIMITS[step]
        source = self.corpus.release_2 if second else self.corpus.release_1
        if work == "link":
            # Only what lies on the same file system can be linked: a copy stands for what was pulled before.
            copied = scratch_dir() / "linked"
            discard(copied)
            subprocess.run(["cp", "-a", str(source), str(copied)], check=True)
            source = copied
        earlier = self.corpus.release_1 if work == "push-on" else None
        seconds, way = limit_s(work, scratch_dir() / "limit", source, earlier)
        if work == "link":
            discard(source)
        self.found.limits.append(Limit(self.number, step, seconds, way))
        print(f"  {step:15} {'limit, by ' + way:20} {seconds:7.2f} s", flush=True)
