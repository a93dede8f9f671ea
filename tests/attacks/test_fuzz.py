"""The fuzzer, for some seconds and by one seed; what it once found stays in the corpus."""

from __future__ import annotations

import pytest

from tests.attacks.fuzz import CORPUS, Fuzzer

pytestmark = pytest.mark.virtual_clock(io_grace_s=0)

STEPS = 4000


def told(fuzzer: Fuzzer) -> str:
    return "\n".join(repr(finding)[:600] for finding in fuzzer.tally.findings[:20])


@pytest.mark.parametrize("seed", [1, 2])
async def test_door_and_oracle_read_the_same_requests_and_answers(seed: int):
    fuzzer = Fuzzer(seed)
    for _ in range(STEPS):
        await fuzzer.step()
    assert not fuzzer.tally.findings, told(fuzzer)
    # it would be no test if everything were refused
    assert fuzzer.tally.forwarded > STEPS / 10
    assert fuzzer.tally.handed_on > STEPS / 20


async def test_the_corpus_is_read_as_the_oracle_reads_it_in_twenty_packetings():
    fuzzer = Fuzzer(0)
    for _ in range(20):
        for path in sorted(CORPUS.iterdir()):
            await (fuzzer.ask if path.suffix == ".request" else fuzzer.answer)(path.read_bytes())
    assert fuzzer.tally.requests >= 200
    assert not fuzzer.tally.findings, told(fuzzer)


async def test_the_fuzzer_sees_a_door_that_errs(monkeypatch: pytest.MonkeyPatch):
    # a door that takes two spaces for one, and an upstream connection that believes a second length
    import re

    from understudy.proxy.http import request_head

    monkeypatch.setattr(request_head, "_FIRST_LINE", re.compile(rb""))
    monkeypatch.setattr(request_head, "_HOST", re.compile(rb".*"))
    fuzzer = Fuzzer(1)
    for _ in range(1000):
        await fuzzer.step()
    assert fuzzer.tally.findings
