"""Every recorded error of every provider, through the tier: what it counts as, and what may follow."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from tests.kit.acts import answer, sse
from tests.settings.folders import read, sound
from tests.tiers.provider_errors import RECORDED, Recorded
from tests.tiers.upstream_bench import Bench
from understudy.policies.outcomes import Outcomes, Said
from understudy.policies.service import Failed
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.settings.outcomes import shipped
from understudy.proxy.settings.settings import Outcome, Secret
from understudy.proxy.tiers.judging import FAILURES, Judge, tier_judge

OURS = {"headers": {"authorization": Secret("Bearer sk-ours")}}
QUOTA = {
    "error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
}


def seen(failed: Failed) -> str:
    """A Failed in the words of the table."""
    outcome = {"caller": "caller", "nobody": "ignored"}.get(failed.fault, "soft" if failed.soft else "failure")
    follow = "here" if failed.again else "elsewhere" if failed.away else "tier" if failed.elsewhere else "back"
    return f"{outcome} {follow} {failed.reason}"


async def come_of(bench: Bench) -> str:
    try:
        answered = await bench.ask("retrieve")
    except Failed as failed:
        return seen(failed)
    return f"caller back {answered.fault}"


def test_enough_errors_are_recorded_of_each_provider():
    count = Counter(recorded.provider for recorded in RECORDED)
    assert len(RECORDED) >= 100
    assert len(count) == 11
    assert min(count.values()) >= 8


@pytest.mark.parametrize(
    "recorded", RECORDED, ids=lambda one: f"{one.provider}-{one.status}-{one.verdict.replace(' ', '-')}"
)
async def test_a_recorded_error_means_what_the_table_says(recorded: Recorded):
    headers = [(name.encode(), value.encode()) for name, value in recorded.headers.items()]
    act = answer(recorded.status, headers, recorded.body)
    async with Bench(act, dialect="plain", provider=recorded.provider) as bench:
        assert await come_of(bench) == recorded.verdict


async def test_quota_goes_before_rate_limit_whatever_order_the_error_names_them_in():
    for code, kind in (("rate_limit_exceeded", "insufficient_quota"), ("insufficient_quota", "rate_limit_error")):
        async with Bench(answer(429, body={"error": {"message": "", "type": kind, "code": code}})) as bench:
            assert await come_of(bench) == "failure tier quota"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_dead_key_of_ours_is_not_the_callers_and_what_is_said_of_it_goes_no_further(status: int):
    said = answer(
        status, body={"error": {"message": "Incorrect API key provided: sk-ou**rs", "code": "invalid_api_key"}}
    )
    async with Bench(said, **OURS) as bench:
        failed = await bench.fails()
        assert (seen(failed), failed.answer) == ("failure tier credentials", None)
        assert "sk-ou" not in failed.detail
    async with Bench(said) as bench:
        answered = await bench.ask()
        assert (answered.status, answered.fault) == (status, f"status_{status}")


async def test_a_packed_error_is_read_too_and_one_in_an_unknown_coding_goes_by_its_status():
    body = gzip.compress(b'{"error": {"code": "insufficient_quota"}}')
    async with Bench(answer(429, [(b"content-encoding", b"gzip")], body)) as bench:
        assert await come_of(bench) == "failure tier quota"
    for coding in (b"br", b"gzip"):
        async with Bench(answer(429, [(b"content-encoding", coding)], b"\x0b\x02\x80garbled")) as bench:
            assert await come_of(bench) == "soft here status_429"


async def test_a_gzip_bomb_is_opened_no_further_than_an_error_is_read():
    bomb = gzip.compress(b" " * 50_000_000 + b'{"error": {"code": "insufficient_quota"}}')
    async with Bench(answer(429, [(b"content-encoding", b"gzip")], bomb)) as bench:
        assert await come_of(bench) == "soft here status_429"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'{"error": [1]}', b'{"error"', b"[" * 5000, b"\xff\xfe", b"x" * 70_000]
)
async def test_a_body_that_says_nothing_leaves_it_to_the_status(body: bytes):
    async with Bench(answer(500, body=body)) as bench:
        assert await come_of(bench) == "failure here status_500"


async def test_an_error_inside_a_200_or_a_stream_is_known_by_its_code_too():
    async with Bench(answer(200, body=QUOTA)) as bench:
        assert seen(await bench.fails()) == "failure tier quota"
    async with Bench(sse([QUOTA])) as bench:
        assert seen(await bench.fails()) == "failure tier quota"
    async with Bench(sse([{"error": {"code": "context_length_exceeded"}}])) as bench:
        # there is no answer to give back: another tier may know how to say it
        failed = await bench.fails()
        assert (failed.reason, failed.fault, failed.again, failed.elsewhere) == (
            "context_length",
            "caller",
            False,
            True,
        )
    async with Bench(answer(200, body={"error": {"code": "context_length_exceeded"}})) as bench:
        assert (await bench.ask()).fault == "context_length"


async def test_a_write_that_may_have_been_carried_out_is_asked_of_nobody_else_whatever_the_table_says():
    for status, elsewhere in ((500, False), (504, False), (408, False), (503, True), (429, True), (402, True)):
        async with Bench(answer(status)) as bench:
            failed = await bench.fails("pass", "POST")
            assert (failed.again, failed.elsewhere) == (False, elsewhere), status


def test_envoys_retries_and_the_table_agree_on_who_is_at_fault():
    table = shipped().table
    judge = Judge(table, "plain", False)
    for status in range(400, 600):
        verdict = judge.table.of(_said(status))
        assert (verdict.outcome in ("failure", "soft") and verdict.follow == "here") or status not in FAILURES


def _said(status: int) -> Said:
    return Said("plain", status)


def test_a_tiers_rows_go_before_its_routes_and_those_before_the_table(tmp_path: Path):
    settings = sound(
        read(
            tmp_path,
            """
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    outcomes:
      - {code: context_length_exceeded, outcome: caller, follow: tier, reason: wider_window}
      - {status: 418, outcome: soft}
    tiers:
      - {kind: upstream, name: a, url: "http://127.0.0.1:1", outcomes: [{status: 418, outcome: failure, follow: tier}]}
      - {kind: upstream, name: b, url: "http://127.0.0.1:2"}
""",
        )
    )
    route = settings.routes[0]
    first, second = (tier_judge(route, tier, DIALECTS["openai-chat"]) for tier in route.tiers)
    assert first.table.of(_said(418))[:2] == ("failure", "tier")
    assert second.table.of(_said(418))[:2] == ("soft", "here")
    for judge in (first, second):
        said = _said(400)._replace(provider="openai", codes=("context_length_exceeded",))
        assert judge.table.of(said)[:3] == ("caller", "tier", "wider_window")
        assert judge.table.of(_said(500))[:2] == ("failure", "here")


def test_a_message_alone_may_decide_and_leaves_others_alone():
    rows = [Outcome(status=503, message="maintenance", outcome="soft", follow="tier", reason="maintenance")]
    table = Outcomes(rows, below=shipped().table)
    verdict = table.of(_said(503)._replace(message="Down for MAINTENANCE"))
    assert verdict[:4] == ("soft", "tier", "maintenance", "outcomes[0]")
    assert table.of(_said(503))[:2] == ("failure", "here")


def test_what_a_table_of_ones_own_leaves_out_is_judged_all_the_same():
    table = Outcomes([Outcome(status=418, outcome="soft")])
    assert table.of(_said(404))[:2] == ("caller", "back")
    assert table.of(_said(500))[:2] == ("failure", "here")
    assert table.of(Said("plain", transport="reset"))[:2] == ("failure", "here")
