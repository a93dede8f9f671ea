"""The bench itself: that it measures, and that it notices a wrong answer. No bound on any time."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from tests.bench.extras import EXTRAS, Extra, NotMeasured, measure_extras
from tests.bench.figures import Fact, Results, figures
from tests.bench.running import BenchFailed, Effort, put_up, run
from tests.bench.subjects import SUBJECTS, NotHere, Site, Start
from tests.bench.workloads import WORKLOADS
from tests.kit.processes import free_port

TOUCH = Effort(rounds=1, warm_s=0.02, window_s=0.1)
FOR_ALL = [one for one in WORKLOADS if one.for_all]

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


def test_every_subject_of_ours_is_measured_and_answers_as_the_upstream_would():
    subjects = [one for one in SUBJECTS if one.name in ("direct", "relay", "understudy")]
    with put_up(subjects, has_local=False) as rig:
        samples = run(rig, subjects, FOR_ALL, TOUCH, told=_ignored)

    found = figures(Results("", {}, TOUCH, samples), WORKLOADS)
    assert {(one.subject, one.workload) for one in found} == {(a.name, b.name) for a in subjects for b in FOR_ALL}
    for one in found:
        assert one.units > 0
        assert one.per_s.low > 0
        # a chunk was sent before it was received, and a call asked before it was answered
        assert 0 < one.p50_us.low <= one.p99_us.high
        assert (one.cpu_us is None) == (one.subject == "direct")
        if one.cpu_us is not None:
            assert one.cpu_us.low > 0


def test_what_no_workload_tells_is_measured_too():
    with put_up([]) as rig:
        facts, left_out = measure_extras(rig, [one for one in EXTRAS if one.name != "workers"], TOUCH, told=_ignored)

    assert left_out == {}
    assert {one.name for one in facts} >= {
        "rss-idle",
        "rss-loaded",
        "startup",
        "routes-1000-to-1",
        "endpoints-100-to-1",
    }
    assert all(one.value.low > 0 for one in facts)


def test_a_measurement_that_cant_be_had_is_left_out_with_its_reason():
    def cant(_rig: object, _effort: Effort) -> list[Fact]:
        raise NotMeasured("not on this machine")

    with put_up([]) as rig:
        assert measure_extras(rig, [Extra("moon", "", cant)], TOUCH, told=_ignored) == (
            [],
            {"moon": "not on this machine"},
        )


def test_a_subject_that_answers_wrongly_leaves_no_figures_and_one_that_is_not_here_is_named():
    def not_here(_site: Site) -> Start:
        raise NotHere("it is not installed")

    def babbling(_site: Site) -> Start:
        port = free_port()
        return Start([sys.executable, "-c", BABBLER, str(port)], port, port)

    relay = next(one for one in SUBJECTS if one.name == "relay")
    subjects = [dataclasses.replace(relay, name="absent", start=not_here), dataclasses.replace(relay, start=babbling)]
    with put_up(subjects) as rig:
        assert rig.left_out == {"absent": "it is not installed"}
        with pytest.raises(BenchFailed, match=r"relay answered chat wrongly.*200 OK.*xxx"):
            run(rig, subjects, WORKLOADS, TOUCH, told=_ignored)
