"""What is made of samples: tables, the picture, the README's block and the bars. Nothing is measured here."""

from __future__ import annotations

import platform
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.bench.bars import BARS, bars
from tests.bench.extras import EXTRAS
from tests.bench.figures import Fact, Results, figures, load, save, spread
from tests.bench.machine import about_machine
from tests.bench.plot import plot
from tests.bench.report import BEGIN, END, markdown, report, with_block
from tests.bench.running import Effort, Sample
from tests.bench.subjects import SUBJECTS
from tests.bench.workloads import WORKLOADS
from tests.kit.processes import REPOSITORY
from understudy.proxy.bench.load import Mark

CPU_US = {"direct": 0, "envoy": 50, "haproxy": 15, "understudy": 30, "nginx-cache": 20}
MACHINE = {"processor": "A <fast> & cheap one", "cores": "2 of 2", "kernel": "Linux 6", "python": "3.11.9"}


def _results() -> Results:
    samples = [
        Sample(subject.name, workload.name, number, _mark(CPU_US[subject.name]))
        for number in range(3)
        for workload in WORKLOADS
        for subject in SUBJECTS
        if subject.name in CPU_US and subject.takes(workload)
    ]
    facts = [
        Fact("startup", spread([0.3]), "s", "from the command to the first answered call"),
        Fact("workers-2-to-1", spread([1.2]), "x", "two workers to one", unsure="2 cores"),
    ]
    return Results("2026-06-01T12:00:00Z", MACHINE | {"envoy": "envoy 1.40.0"}, Effort(3, 0.1, 0.5), samples, facts)


def _mark(cpu_us: float) -> Mark:
    return Mark(units=1000, wall_s=0.1, cpu_s=cpu_us / 1e3, p50_s=(10 + cpu_us) / 1e6, p99_s=(20 + 2 * cpu_us) / 1e6)


def _verdicts(results: Results) -> dict[str, str]:
    return {bar.about: bar.verdict(results)[2] for bar in BARS}


def test_the_picture_is_well_formed_and_has_a_bar_for_each_subject_and_workload_that_have_company():
    tree = ET.fromstring(plot(_results(), WORKLOADS))
    names = [one.text for one in tree.iter("{http://www.w3.org/2000/svg}text")]
    with_company = [one for one in WORKLOADS if one.for_all]
    assert names.count("understudy") == len(with_company)
    assert "nginx-cache" not in names
    # the paper and the bars
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}rect"))) == 1 + 3 * len(with_company)
    caption = " ".join(filter(None, names))
    assert "A <fast> & cheap one, 2 of 2 cores" in caption
    assert "envoy 1.40.0" in caption


def test_the_picture_of_nothing_is_still_a_picture():
    ET.fromstring(plot(Results("2026-06-01", MACHINE, Effort(1, 0, 0)), WORKLOADS))


def test_the_block_is_written_between_its_markers_and_writing_it_again_changes_nothing():
    block = markdown(_results(), WORKLOADS, "docs/bench.svg")
    once = with_block(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n", block)
    assert with_block(once, block) == once
    assert "old" not in once
    assert once.startswith("# Before\n\n")
    assert once.endswith("\n\nafter\n")
    assert "![" in once
    assert "| 30 |" in once
    # what is not sure on this machine is not told as if it were
    assert "two workers" not in once


def test_a_text_without_markers_is_left_alone():
    with pytest.raises(ValueError, match="write between"):
        with_block("no markers", "block")


def test_the_readme_has_the_markers():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert readme.count(BEGIN) == readme.count(END) == 1


def test_what_is_kept_reads_back_and_reports_the_same(tmp_path: Path):
    results, kept = _results(), tmp_path / "deep" / "results.json"
    save(kept, results, WORKLOADS)
    assert report(load(kept), WORKLOADS) == report(results, WORKLOADS)


def test_the_report_shows_every_subject_and_fact_and_who_was_left_out():
    results = _results()
    results.left_out = {"nginx": "it is not installed"}
    text = report(results, WORKLOADS)
    for told in (*CPU_US, "startup", "nginx left out: it is not installed", "Linux 6"):
        assert told in text


def test_added_latency_is_against_direct_in_the_same_round():
    (one,) = [one for one in figures(_results(), WORKLOADS) if (one.subject, one.workload) == ("understudy", "chat-1")]
    assert one.added_p50_us is not None
    assert one.added_p50_us.median == pytest.approx(30)


def test_a_bar_passes_fails_is_undecided_or_was_not_measured():
    verdicts = _verdicts(_results())
    assert verdicts["1 KiB chat: CPU per call to Envoy's"] == "pass"
    assert verdicts["1 connection, one core: added p50 to Envoy's"] == "pass"
    assert verdicts["start to first answered call: s"] == "pass"
    assert verdicts["two workers: throughput to one's"] == "undecided: 2 cores"
    assert verdicts["cache hit: CPU per call to that of nginx's proxy_cache"] == "not measured"
    slower = _results()
    slower.samples = [
        Sample(one.subject, one.workload, one.round, _mark(45)) if one.subject == "understudy" else one
        for one in slower.samples
    ]
    assert _verdicts(slower)["1 KiB chat: CPU per call to Envoy's"] == "FAIL"
    assert len(bars(slower).splitlines()) == len(BARS) + 1


def test_every_bar_needs_something_that_can_be_measured():
    there = {one.name for one in (*WORKLOADS, *EXTRAS)}
    assert {name for bar in BARS for name in bar.needs} <= there


def test_the_machine_is_told_by_its_kind_and_not_by_its_name():
    told = about_machine(SUBJECTS)
    assert {"processor", "kernel", "python"} <= set(told)
    assert not [value for value in told.values() if platform.node() in value.split() or "/" in value]
