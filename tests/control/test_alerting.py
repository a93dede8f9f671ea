"""Receivers are told in their own words, one does not hold up another, and nothing tells where they are."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.acts import answer, hang_up, reset, silence
from tests.kit.fake_upstream import FakeUpstream
from understudy.policies.alerts import Alert, Notice
from understudy.proxy.control.alerting import QUEUE_MAX, Senders
from understudy.proxy.settings.alert import Alerts, Receiver
from understudy.proxy.settings.settings import Secret

BEGIN = 1_800_000_000.0
AT = "2027-01-15T08:00:00.000Z"
PATH = "/T0/B0/a-secret"


def notice(
    severity: str = "critical", *, ends_at: float | None = None, is_news: bool = True, route: str = "chat"
) -> Notice:
    labels = {"alertname": "UnderstudyLate", "route": route, "severity": severity}
    summary = "route <chat>: 2 % & more"
    return Notice(
        Alert(tuple(sorted(labels.items())), {"summary": summary, "runbook": "r.md"}), BEGIN, ends_at, is_news
    )


def heard(up: FakeUpstream) -> list[Any]:
    """What was posted, as JSON values."""
    return [json.loads(one.body) for one in up.heard]


def receiver_of(kind: Any, up: FakeUpstream, **more: Any) -> Receiver:
    return Receiver(name=more.pop("name", "one"), kind=kind, url=Secret(up.url + PATH), **more)


def alerts(kind: str, up: FakeUpstream, **more: Any) -> Alerts:
    return Alerts(receivers=[receiver_of(kind, up, **more)], repeat_s=3600.0)


async def settled(senders: Senders, seconds: float = 1.0) -> None:
    await asyncio.sleep(seconds)
    await senders.close()


async def test_alertmanager_is_told_everything_with_its_beginning_and_its_end():
    async with FakeUpstream(answer(200)) as up:
        senders = Senders()
        senders.tell([notice(), notice(is_news=False)], alerts("alertmanager", up), BEGIN)
        await asyncio.sleep(1)
        senders.tell([notice(ends_at=BEGIN)], alerts("alertmanager", up), BEGIN + 60)
        await settled(senders)
        labels = {"alertname": "UnderstudyLate", "route": "chat", "severity": "critical"}
        told = {
            "labels": labels,
            "annotations": {"summary": "route <chat>: 2 % & more", "runbook": "r.md"},
            "startsAt": AT,
        }
        assert {one.target for one in up.heard} == {PATH.encode() + b"/api/v2/alerts"}
        assert heard(up) == [[told, told], [{**told, "endsAt": AT}]]
        assert senders.results == {("one", "sent"): 3}


async def test_a_webhook_gets_alertmanagers_own_payload_with_its_headers():
    async with FakeUpstream(answer(200)) as up:
        senders = Senders()
        setting = alerts("webhook", up, headers={"authorization": Secret("Bearer x")})
        senders.tell([notice(), notice(route="docs", ends_at=BEGIN)], setting, BEGIN)
        await settled(senders)
        [body] = heard(up)
        assert up.heard[0].header(b"authorization") == b"Bearer x"
        assert (body["version"], body["receiver"], body["status"]) == ("4", "one", "firing")
        assert [(one["status"], one["startsAt"], one["endsAt"]) for one in body["alerts"]] == [
            ("firing", AT, "0001-01-01T00:00:00Z"),
            ("resolved", AT, AT),
        ]
        assert body["commonLabels"] == {"alertname": "UnderstudyLate", "severity": "critical"}
        assert len({one["fingerprint"] for one in body["alerts"]}) == 2


async def test_people_hear_what_begins_what_ends_and_now_and_then_what_goes_on():
    async with FakeUpstream(answer(200)) as up:
        senders = Senders()
        setting = alerts("slack", up)
        for minute in range(130):
            senders.tell([notice(is_news=minute == 0)], setting, BEGIN + 60 * minute)
        for minute in range(130, 135):
            senders.tell([notice(ends_at=BEGIN, is_news=minute == 130)], setting, BEGIN + 60 * minute)
        await settled(senders)
        lines = [line for body in heard(up) for line in body["text"].splitlines()]
        said = "UnderstudyLate: route &lt;chat&gt;: 2 % &amp; more (runbook: r.md)"
        assert sorted(lines) == [f"*critical* {said}"] * 3 + [f"*resolved* {said}"]


async def test_who_wants_critical_alerts_alone_is_told_no_other():
    async with FakeUpstream(answer(200)) as up:
        senders = Senders()
        senders.tell([notice("warning"), notice()], alerts("webhook", up, severity_min="critical"), BEGIN)
        await settled(senders)
        assert [one["labels"]["severity"] for body in heard(up) for one in body["alerts"]] == ["critical"]


async def test_a_receiver_that_fails_is_asked_again_later_and_later_and_its_address_is_in_no_log(
    caplog: pytest.LogCaptureFixture,
):
    async with FakeUpstream(answer(200)) as up:
        up.then(answer(503), reset(), hang_up())
        senders = Senders(dice=lambda: 1.0)
        senders.tell([notice()], alerts("webhook", up), BEGIN)
        loop = asyncio.get_running_loop()
        began, came = loop.time(), list[float]()
        for _ in range(4):
            count = len(up.heard)
            while len(up.heard) == count:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.05)
            came.append(round(loop.time() - began))
        await settled(senders)
        assert came == [0, 1, 3, 7]
        assert senders.results == {("one", "failed"): 3, ("one", "sent"): 1}
        assert "receiver one was not told: status 503" in caplog.text
        assert "a-secret" not in caplog.text


async def test_one_that_never_answers_holds_up_nobody_and_its_queue_is_bounded(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR)
    async with FakeUpstream(answer(200)) as up, FakeUpstream(silence()) as hole:
        receivers = [receiver_of("webhook", hole, name="silent", timeout_s=1e5), receiver_of("webhook", up)]
        senders = Senders()
        for n in range(QUEUE_MAX + 110):
            senders.tell([notice(route=f"r{n}")], Alerts(receivers=receivers), BEGIN)
            if n % 50 == 0:
                await asyncio.sleep(0.1)
        await settled(senders)
        assert sum(len(body["alerts"]) for body in heard(up)) == QUEUE_MAX + 110
        assert senders.results["silent", "dropped"] >= 1
        assert ("silent", "sent") not in senders.results


async def test_a_receiver_that_is_named_no_more_is_told_nothing_more():
    async with FakeUpstream(answer(200)) as up:
        senders = Senders()
        senders.tell([], alerts("webhook", up), BEGIN)
        senders.tell([notice()], Alerts(), BEGIN)
        await settled(senders)
        assert up.heard == []


@pytest.mark.real_clock
async def test_a_command_gets_the_payload_on_its_standard_input(tmp_path: Path):
    out = tmp_path / "heard.json"
    program = f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())"
    senders = Senders()
    receiver = Receiver(name="one", kind="command", command=[sys.executable, "-c", program], timeout_s=100)
    assert await senders.send(receiver, [notice()]) == ""
    assert json.loads(out.read_text())["alerts"][0]["labels"]["route"] == "chat"
    failing = Receiver(name="one", kind="command", command=[sys.executable, "-c", "raise SystemExit(3)"], timeout_s=100)
    assert await senders.send(failing, [notice()]) == "exit status 3"
    hanging = Receiver(name="one", kind="command", command=[sys.executable, "-c", "while True: pass"], timeout_s=0.2)
    assert await senders.send(hanging, [notice()]) == "no answer within 0.2 s"
    missing = Receiver(name="one", kind="command", command=["/no/such/program"])
    assert await senders.send(missing, [notice()]) == "FileNotFoundError"
    await senders.close()
