"""Services are found away within seconds, callers are sent elsewhere at once, and come back by degrees."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.kit.acts import answer
from tests.kit.fake_upstream import FakeUpstream
from tests.kit.unwell import Ward
from understudy.policies.health import Diagnosis
from understudy.proxy.control.admin import Admin, OfSidecar
from understudy.proxy.orders import orders_of
from understudy.proxy.reports.health import tiers_text
from understudy.proxy.reports.status_text import status_text

pytestmark = pytest.mark.virtual_clock(io_grace_s=0.002)

POLICIES = """
routes:
  - name: docs
    match: {{prefix: /collections}}
    dialect: qdrant
    hedge: {{enabled: false}}
    cache: {{enabled: false}}
    tiers:
      - {{name: first, kind: upstream, url: "{first}", connect_s: 1.0}}
      - {{name: second, kind: upstream, url: "{second}", connect_s: 1.0}}
"""
POINTS = {"result": {"collections": []}, "status": "ok", "time": 0.0}
HARD_S = 5.0


def database() -> FakeUpstream:
    return FakeUpstream(answer(body=POINTS))


async def served(ward: Ward, seconds: float, per_s: float = 10.0) -> list[str]:
    """Callers for so long; the tiers that answered them."""
    tiers: list[str] = []
    for _ in range(int(seconds * per_s)):
        got = await ward.call()
        assert got.status == 200
        tiers.append((got.header(b"x-understudy-tier") or b"").decode())
        await asyncio.sleep(1 / per_s)
    return tiers


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("how", ["refused", "black hole", "503"])
async def test_a_service_that_nobody_calls_is_found_away_within_five_seconds(tmp_path: Path, how: str, seed: int):
    dice = random.Random(seed)
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, POLICIES.format(first=first.url, second=second.url)) as ward,
    ):
        health = ward.sidecar.health
        name = f"vector_database:{first.host_port}"
        await ward.until(lambda: health.diagnosis(name).word == "healthy", 10.0)
        await asyncio.sleep(dice.uniform(0.0, 5.0))
        if how == "refused":
            await first.refuse()
        elif how == "black hole":
            await first.black_hole()
        else:
            first.on_check = answer(503, body=b"not now")
        took_s = await ward.until(lambda: ward.tier("docs") == "secondary")
        assert took_s <= HARD_S
        assert ward.tier() == "secondary"
        found = health.diagnosis(name)
        assert (found.word, found.passes_over) == ("unhealthy", True)
        level = {"refused": "transport", "black hole": "protocol", "503": "protocol"}[how]
        assert found.level == level
        # the very first caller after that is not made to find out by itself
        asked = len(first.heard)
        got = await ward.call()
        assert (got.status, got.header(b"x-understudy-tier")) == (200, b"secondary")
        assert got.header(b"x-understudy-reason") == b"first: unhealthy"
        assert len(first.heard) == asked
        await first.come_back()


async def test_a_service_whose_callers_fail_is_asked_at_once_and_nobody_loses_a_call(tmp_path: Path):
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, POLICIES.format(first=first.url, second=second.url)) as ward,
    ):
        assert set(await served(ward, 20.0)) == {"primary"}
        await first.refuse()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while ward.tier("docs") == "primary":
            assert (await ward.call()).status == 200
            await asyncio.sleep(0.5)
        assert loop.time() - began <= HARD_S
        assert set(await served(ward, 20.0)) == {"secondary"}
        await first.come_back()
        back = await served(ward, 60.0)
        came = [at / 10 for at, tier in enumerate(back) if tier == "primary"]
        assert 3.5 < came[0] < 10.0, "three successes, two seconds apart"
        ramp = back[int(came[0] * 10) : int(came[0] * 10) + 150]
        assert 0.05 < ramp.count("primary") / len(ramp) < 0.7, "by degrees"
        assert set(back[-100:]) == {"primary"}
        assert ward.tier() == "primary"
    told = [(event.family, event.kind) for event in ward.events if event.component.endswith(str(first.port))]
    assert ("failure", "connect_refused") in told
    assert ("health", "unhealthy") in told
    assert told[-1] == ("health", "healthy")
    tiers = [(event.facts["route"], event.kind) for event in ward.events if event.family == "tier"]
    assert tiers == [("", "secondary"), ("docs", "secondary"), ("", "primary"), ("docs", "primary")]


async def test_an_endpoint_that_never_had_its_apis_shape_says_nothing_against_a_service_until_it_has_had_it(
    tmp_path: Path,
):
    """A gateway that speaks for a part of an API, and answers all else with some page."""
    policies = POLICIES.replace("docs", "chat").replace("/collections", "/v1/chat").replace("qdrant", "openai-chat")
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, policies.format(first=first.url, second=second.url)) as ward,
    ):
        name = f"llm_service:{first.host_port}"
        first.on_check = answer(200, body=b"<html>welcome</html>")
        await ward.until(lambda: ward.sidecar.health.diagnosis(name).word == "healthy", 10.0)
        await asyncio.sleep(120.0)
        assert (ward.sidecar.health.diagnosis(name).word, ward.tier("chat")) == ("healthy", "primary")
        await first.refuse()
        await ward.until(lambda: ward.tier("chat") == "secondary", 60.0)
        await first.come_back()
        await ward.until(lambda: ward.tier("chat") == "primary", 60.0)
        first.on_check = answer(200, body={"data": []})
        await asyncio.sleep(60.0)
        first.on_check = answer(200, body=b"<html>sorry</html>")
        await ward.until(lambda: ward.tier("chat") == "secondary", 60.0)
        assert ward.sidecar.health.diagnosis(name).reason == "protocol: schema"


async def test_checks_are_quiet_while_callers_show_that_a_service_is_well_and_few_when_nobody_calls(tmp_path: Path):
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, POLICIES.format(first=first.url, second=second.url)) as ward,
    ):
        await served(ward, 10.0)
        before = len(first.checks), len(second.checks)
        await served(ward, 60.0, per_s=2.0)
        asked = len(first.checks) - before[0]
        beside = len(second.checks) - before[1]
        assert asked == 0, "callers say how it is"
        assert 25 <= beside <= 35, "nobody calls the second, so it is asked every two seconds"
        await asyncio.sleep(700.0)
        before = len(first.checks), 0
        await asyncio.sleep(300.0)
        assert 8 <= len(first.checks) - before[0] <= 12, "after ten idle minutes, every thirty seconds"


async def test_checks_that_pass_never_close_a_breaker_that_live_calls_have_opened(tmp_path: Path):
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, POLICIES.format(first=first.url, second=second.url)) as ward,
    ):
        first.always(answer(500, body=b"broken inside"))
        assert set(await served(ward, 2.0)) == {"secondary"}
        breaker = ward.sidecar.stack.routes["docs"].tiers["first"].only.breaker
        assert breaker is not None
        assert breaker.state == "open"
        name = f"vector_database:{first.host_port}"
        await ward.until(lambda: ward.sidecar.health.diagnosis(name).word == "unhealthy", HARD_S)
        well = ("protocol", "well")
        before = ward.sidecar.health.checks.get((name, *well), 0)
        await asyncio.sleep(120.0)
        assert ward.sidecar.health.checks[name, *well] > before + 20
        assert breaker.state == "open", "nobody has called"
        assert ward.sidecar.health.diagnosis(name).word == "degraded", "it says that it is well; that is not proven"
        first.always(answer(body=POINTS))
        await served(ward, 90.0)
        assert breaker.state == "closed"
        assert ward.sidecar.health.diagnosis(name).word == "healthy"


async def test_who_has_mended_something_can_have_it_checked_now_and_is_told_of_every_change(tmp_path: Path):
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, POLICIES.format(first=first.url, second=second.url)) as ward,
    ):
        health, name = ward.sidecar.health, f"vector_database:{first.host_port}"
        told: list[tuple[str, str]] = []

        def heard(now: Diagnosis, before: Diagnosis) -> None:
            if now.component == name:
                told.append((before.word, now.word))

        ended = health.subscribe(heard)
        assert (await health.check(name)).word == "healthy"
        await first.refuse()
        assert not (await health.check(name)).passed
        assert (await health.check(name))[1:4] == ("unhealthy", "transport: connect_refused", "transport")
        await first.come_back()
        assert (await health.check(name)).passed
        await ward.until(lambda: health.diagnosis(name).word == "healthy", 15.0)
        assert told == [
            ("unknown", "healthy"),
            ("healthy", "degraded"),
            ("degraded", "unhealthy"),
            ("unhealthy", "healthy"),
        ]
        ended()
        await first.refuse()
        await health.check(name)
        assert len(told) == 4
        await first.come_back()
        assert (await health.check("nobody:at all")).word == "unknown"


async def test_an_operator_pins_a_tier_of_one_route_or_of_all_and_lets_go_again(tmp_path: Path):
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, POLICIES.format(first=first.url, second=second.url)) as ward,
    ):
        health = ward.sidecar.health
        assert set(await served(ward, 1.0)) == {"primary"}
        assert not health.pin("secondary", "nowhere")
        assert health.pin("secondary", "docs")
        got = await ward.call()
        assert (got.header(b"x-understudy-tier"), got.header(b"x-understudy-reason")) == (
            b"secondary",
            b"first: pinned",
        )
        assert (ward.tier("docs"), ward.tier()) == ("secondary", "primary")
        ward.write(POLICIES.format(first=first.url, second=second.url) + "    budget: {ratio: 0.5}\n")
        assert ward.sidecar.reload()
        assert set(await served(ward, 1.0)) == {"secondary"}, "a reload lets nobody go"
        health.pin(None, "docs")
        assert set((await served(ward, 60.0))[-100:]) == {"primary"}
        health.pin("primary")
        await first.refuse()
        await ward.until(lambda: ward.word("vector_database:127.0.0.1:" + str(first.port)) == "unhealthy", HARD_S)
        assert ward.tier("docs") == "primary", "an operator knows better"
        assert (await ward.call()).status == 200, "and loses nobody all the same"


async def test_a_tier_is_pinned_through_the_admin_port_and_seen_in_status_metrics_and_explain(tmp_path: Path):
    async with (
        database() as first,
        database() as second,
        Ward(tmp_path, POLICIES.format(first=first.url, second=second.url)) as ward,
    ):
        admin = Admin(OfSidecar(ward.sidecar, orders_of(tmp_path)), "127.0.0.1:0")
        await admin.start()
        at = f"http://127.0.0.1:{admin.port}"
        async with ClientSession() as client:
            async with client.post(f"{at}/tier/docs", data="secondary") as answered:
                assert (answered.status, await answered.text()) == (200, "secondary\n")
            for path, body, status in (("/tier", "best", 400), ("/tier/nowhere", "primary", 404)):
                async with client.post(at + path, data=body) as answered:
                    assert answered.status == status
            async with client.post(f"{at}/tier", data="auto", headers={"origin": "http://evil.example"}) as answered:
                assert answered.status == 403
            await ward.until(lambda: ward.word(f"vector_database:{first.host_port}") == "healthy", 10.0)
            await second.refuse()
            await ward.until(lambda: ward.tier() == "secondary", HARD_S)
            async with client.get(f"{at}/status") as answered:
                status = await answered.json()
            async with client.get(f"{at}/metrics") as answered:
                metrics = await answered.text()
        await admin.stop()
    assert status["routes"][0]["service_tier"]["pinned"] == "secondary"
    assert status["health"]["service_tier"]["tier"] == "secondary"
    by_name = {one["component"]: one for one in status["health"]["components"]}
    away = by_name[f"vector_database:{second.host_port}"]
    assert (away["state"], away["reason"], away["routes"]) == ("unhealthy", "transport: connect_refused", ["docs"])
    text = status_text(status)
    assert f"vector_database:{second.host_port} unhealthy" in text
    assert "  tier      secondary (pinned by hand)" in text
    assert tiers_text(status, "docs") == f"{'docs':<24}secondary (pinned by hand)\n"
    labels = f'component="vector_database:{second.host_port}"'
    assert f'understudy_health_state{{{labels},state="unhealthy"}} 1.0' in metrics
    assert f'understudy_health_checks_total{{{labels},level="transport",result="wrong"}}' in metrics
    assert 'understudy_service_tier{route="docs",tier="secondary"} 1.0' in metrics
    assert 'understudy_service_tier_pinned{route="docs"} 1.0' in metrics
