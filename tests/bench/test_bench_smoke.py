"""The bench itself: that it measures, and that it notices a wrong answer. No bound on any time."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from tests.bench.figures import figures, report, save
from tests.bench.running import BenchFailed, Effort, put_up, run
from tests.bench.subjects import SUBJECTS, NotHere, Site, Start
from tests.bench.workloads import WORKLOADS
from tests.kit.processes import free_port

TOUCH = Effort(rounds=1, warm_s=0.02, window_s=0.1)

BABBLER = """
import asyncio, sys

async def answer(reader, writer):
    while await reader.read(65536):
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2000\\r\\n\\r\\n" + b"x" * 2000)

async def main():
    await (await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))).serve_forever()

asyncio.run(main())
"""
"""Says 200 to everything, and nothing of use."""

pytestmark = pytest.mark.real


def _ignored(_told: str) -> None:
    """Progress is nobody's concern here."""


def test_every_subject_of_ours_is_measured_and_answers_as_the_upstream_would(tmp_path: Path):
    subjects = [one for one in SUBJECTS if one.name in ("direct", "relay", "understudy")]
    with put_up(subjects, has_local=False) as rig:
        samples = run(rig, WORKLOADS, TOUCH, told=_ignored)

    found = figures(samples, WORKLOADS)
    assert {(one.subject, one.workload) for one in found} == {(a.name, b.name) for a in subjects for b in WORKLOADS}
    for one in found:
        assert one.units > 0
        assert one.per_s.low > 0
        assert (one.cpu_us is None) == (one.subject == "direct")
        if one.cpu_us is not None:
            assert one.cpu_us.low > 0
        if one.unit == "call":
            assert one.p50_us is not None
            assert one.p50_us.low > 0

    written = tmp_path / "results.json"
    save(written, found, samples, TOUCH, {"kernel": "any"})
    assert len(json.loads(written.read_text())["samples"]) == len(samples)
    assert "understudy" in report(found, WORKLOADS, {}, {})


def test_a_subject_that_answers_wrongly_leaves_no_figures_and_one_that_is_not_here_is_named():
    def not_here(_site: Site) -> Start:
        raise NotHere("it is not installed")

    def babbling(_site: Site) -> Start:
        port = free_port()
        return Start([sys.executable, "-c", BABBLER, str(port)], port, port)

    relay = SUBJECTS[1]
    subjects = [dataclasses.replace(relay, name="absent", start=not_here), dataclasses.replace(relay, start=babbling)]
    with put_up(subjects) as rig:
        assert rig.left_out == {"absent": "it is not installed"}
        with pytest.raises(BenchFailed, match=r"relay answered chat wrongly.*200 OK.*xxx"):
            run(rig, WORKLOADS, TOUCH, told=_ignored)
