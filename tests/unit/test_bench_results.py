"""What the bench works out from what it measured: a wrong ratio there is a wrong claim in the documents."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.chart import draw
from bench.competitors import Measured
from bench.document import BEGIN, END, between
from bench.measures import measures
from bench.results import CorpusRun, Limit, Run, Sample, fastest_peer, ratio, times_faster
from bench.steps import PULL_2, PULL_2_LINK, PUSH_1, PUSH_2, PUSH_SAME, VERIFY, needed
from bench.tables import markdown_report, step_rows, text_report

ABOUT: dict[str, dict[str, str | bool]] = {
    "casstore": {"version": "1", "about": "", "durable": True, "is_peer": False},
    "quick <peer>": {"version": "2", "about": "", "durable": False, "is_peer": True},
    "slow-peer": {"version": "3", "about": "", "durable": True, "is_peer": True},
}


def run_of(samples: list[Sample], limits: list[Limit] | None = None) -> Run:
    corpus = CorpusRun("javascript", 1000, 200_000_000, samples, limits or [])
    return Run("python -m bench", "2026-01-01", "a machine", "ext4", 0.0, dict(ABOUT), {}, [corpus])


def sample(competitor: str, step: str, seconds: float, number: int = 1, wire: int = 0, stored: int = 0) -> Sample:
    return Sample(number, competitor, step, Measured(seconds, 1.0, 2**20, wire_bytes=wire, stored_bytes=stored))


# --- ratios ----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_each_rounds_own_ratio() -> None:
    # Round 3 ran while the machine was busy: both took ten times as long, and the ratio is as before.
    assert ratio({1: 3.0, 2: 4.0, 3: 30.0}, {1: 1.0, 2: 1.0, 3: 10.0}) == 3.0


def test_a_round_that_only_one_took_part_in_does_not_count() -> None:
    assert ratio({1: 3.0, 2: 100.0}, {1: 1.0}) == 3.0
    assert ratio({1: 3.0}, {2: 1.0}) is None


def test_casstore_is_never_its_own_fastest_peer() -> None:
    run = run_of([sample("casstore", PUSH_1, 1), sample("slow-peer", PUSH_1, 4), sample("quick <peer>", PUSH_1, 2)])
    assert fastest_peer(run, run.corpora[0], PUSH_1) == "quick <peer>"
    assert times_faster(run, run.corpora[0], "casstore", PUSH_1) == 2.0
    assert times_faster(run, run.corpora[0], "slow-peer", PUSH_1) == 0.5


def test_a_linked_pull_is_held_against_a_restore_even_where_a_peer_can_link_too() -> None:
    run = run_of(
        [
            sample("casstore", PULL_2_LINK, 1),
            sample("quick <peer>", PULL_2, 8),
            sample("quick <peer>", PULL_2_LINK, 0.1),
        ]
    )
    assert times_faster(run, run.corpora[0], "casstore", PULL_2_LINK) == 8.0


# --- measures --------------------------------------------------------------------------------------------------------


def test_a_goal_is_reached_at_its_bound_and_not_below() -> None:
    def found(own: float) -> dict[str, bool]:
        run = run_of([sample("casstore", PUSH_1, own), sample("slow-peer", PUSH_1, 6)], [Limit(1, PUSH_1, 1.2, "cp")])
        return {m.what.partition(": ")[2]: m.reached for m in measures(run, run.corpora[0])}

    assert found(2.0) == {"times as fast as the fastest peer": True, "share of the limit": True}
    assert found(2.01) == {"times as fast as the fastest peer": False, "share of the limit": False}


def test_bytes_are_held_against_the_smallest_peer_not_the_fastest() -> None:
    run = run_of(
        [
            sample("casstore", PUSH_2, 1, wire=110, stored=1000),
            sample("quick <peer>", PUSH_2, 2, wire=200, stored=2000),
            sample("slow-peer", PUSH_2, 4, wire=100, stored=1000),
        ]
    )
    found = {m.what: (m.found, m.reached) for m in measures(run, run.corpora[0])}
    assert found["push release 2: bytes on the wire, over the least growth of a peer"] == (1.1, False)
    assert found["stored for both releases, over the smallest peer"] == (1.0, True)


def test_what_was_not_measured_is_no_measure() -> None:
    run = run_of([sample("casstore", VERIFY, 0.1)])
    assert [m.what for m in measures(run, run.corpora[0])] == ["verify everything: GB/s of release 1's plain bytes"]


# --- steps -----------------------------------------------------------------------------------------------------------


def test_what_a_step_needs_is_taken_before_it() -> None:
    assert needed([VERIFY]) == [PUSH_1, PUSH_2, VERIFY]
    assert needed([PUSH_SAME]) == [PUSH_1, PUSH_SAME]
    assert needed([PULL_2]) == [PUSH_1, PUSH_2, "pull-1", PULL_2]


# --- tables, chart, document -----------------------------------------------------------------------------------------


def a_run() -> Run:
    samples = [
        sample(name, step, seconds * (1 + number / 10), number, wire=5, stored=9)
        for number in (1, 2, 3)
        for step in (PUSH_1, PUSH_2, VERIFY)
        for name, seconds in (("casstore", 1.0), ("quick <peer>", 2.0), ("slow-peer", 4.0))
    ]
    return run_of(
        samples,
        [Limit(1, PUSH_1, 0.5, "processes"), Limit(2, PUSH_1, 0.7, "threads"), Limit(3, PUSH_1, 0.6, "threads")],
    )


def test_a_table_begins_with_the_quickest_and_ends_with_the_limit() -> None:
    run = a_run()
    rows = step_rows(run, run.corpora[0], PUSH_1)
    assert [row[0] for row in rows] == ["casstore", "quick <peer>", "slow-peer", "limit, by threads"]
    assert [row[1] for row in rows] == ["1.20", "2.40", "4.80", "0.60"]
    assert [row[2] for row in rows] == ["2.00", "1.00", "0.50", ""]


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = a_run()
    run.left_out["kopia"] = "no command kopia"
    run.write(tmp_path / "results.json")
    again = Run.read(tmp_path / "results.json")
    assert again == run
    assert text_report(again) == text_report(run)
    assert "kopia (no command kopia)" in markdown_report(again)


def test_every_row_of_the_document_has_as_many_cells_as_its_head() -> None:
    width = 0
    for line in markdown_report(a_run()).splitlines():
        if not line.startswith("|"):
            width = 0
        else:
            width = width or line.count("|")
            assert line.count("|") == width, line


def test_the_chart_is_well_formed_and_has_a_bar_for_everybody_in_proportion() -> None:
    root = ElementTree.fromstring(draw(a_run()))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in root.iter(f"{space}rect") if bar.get("class") in ("own", "peer")]
    assert [bar.get("class") for bar in bars] == ["own", "peer", "peer"] * 3
    lengths = [float(bar.attrib["width"]) for bar in bars[:3]]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.2)
    assert lengths[2] == pytest.approx(4 * lengths[0], abs=0.2)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for bar in bars:
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) < width
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) < height
    assert len(list(root.iter(f"{space}line"))) == 1  # one step has a limit


def test_only_what_lies_between_the_markers_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold figures\n{END}\nafter\n"
    once = between(page, "new figures")
    assert once == f"before\n{BEGIN}\n\nnew figures\n\n{END}\nafter\n"
    assert between(once, "new figures") == once
    with pytest.raises(ValueError, match="lacks"):
        between(f"no end {BEGIN}", "new figures")
