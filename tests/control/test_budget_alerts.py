"""Alerts about budgets: what begins them, what ends them, and how bad each is."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.settings.folders import read, sound
from understudy.policies.events import WHOLE, Event
from understudy.policies.spend import Crossed
from understudy.proxy.control.budget_alerts import BudgetAlerts
from understudy.proxy.events import Events
from understudy.proxy.reports.prometheus_rules import rules_text
from understudy.proxy.settings.settings import Settings
from understudy.proxy.spending.budgets import crossing

NOW, ENDS = 1000.0, 2000
POLICIES = """
routes:
  - name: chat
    match: {path: /v1/chat/completions}
    dialect: openai-chat
    spend: {budgets: [{name: day, tokens: 1000, cheaper: [b]}, {name: soft, tokens: 10, hard: false, each: caller}]}
    tiers:
      - {kind: upstream, name: a, url: "http://a"}
      - {kind: upstream, name: b, url: "http://b"}
"""


def settings_of(tmp_path: Path) -> Settings:
    return sound(read(tmp_path, POLICIES))


def told(settings: Settings, name: str, stage: str) -> Event:
    rules = {each.name: each for each in settings.routes[0].spend.budgets}[name]
    return crossing(NOW, "chat", Crossed(rules, stage, ENDS))  # pyright: ignore[reportArgumentType]


def firing(alerts: BudgetAlerts, settings: Settings, now: float = NOW) -> list[tuple[str, str]]:
    labels = [dict(alert.labels) for alert in alerts.alerts(settings, now)]
    return [(one["budget"], one["severity"]) for one in labels]


def test_a_budget_fires_from_its_soft_share_on_worse_when_it_refuses_and_until_its_window_ends(tmp_path: Path):
    settings, events = settings_of(tmp_path), Events()
    alerts = BudgetAlerts(events)
    assert (firing(alerts, settings), alerts.summary()) == ([], {})
    events.publish(told(settings, "day", "low"))
    assert firing(alerts, settings) == [("day", "warning")]
    events.publish(told(settings, "day", "spent"))
    events.publish(told(settings, "soft", "spent"))
    assert firing(alerts, settings) == [("day", "critical"), ("soft", "warning")]
    events.publish(told(settings, "soft", "free"))
    assert firing(alerts, settings) == [("day", "critical")]
    assert "calls are refused" in alerts.summary()["spent"][0]
    assert firing(alerts, settings, ENDS) == []


def test_what_was_told_before_anybody_listened_is_heard_and_what_is_no_budgets_is_let_pass(tmp_path: Path):
    settings, events = settings_of(tmp_path), Events()
    events.publish(told(settings, "day", "spent"))
    events.publish(Event(NOW, "tier", WHOLE, "secondary", "the sidecar is on its secondary tier"))
    assert firing(BudgetAlerts(events), settings) == [("day", "critical")]


def test_a_budget_that_the_policies_no_longer_have_fires_no_more(tmp_path: Path):
    settings, events = settings_of(tmp_path), Events()
    alerts = BudgetAlerts(events)
    events.publish(told(settings, "day", "spent"))
    without = POLICIES.replace("name: day", "name: other")
    assert firing(alerts, sound(read(tmp_path / "later", without))) == []


def test_what_is_told_names_tiers_and_windows_and_no_caller(tmp_path: Path):
    settings = settings_of(tmp_path)
    event = told(settings, "day", "low")
    assert (event.family, event.kind) == ("tier", "budget_low")
    assert event.detail == "the budget day for the day of route chat is nearly spent (80%): calls go to b first"
    assert told(settings, "soft", "spent").detail.startswith("a caller's budget soft")


def test_the_rules_for_prometheus_have_one_for_each_budget(tmp_path: Path):
    groups = {group["name"]: group["rules"] for group in yaml.safe_load(rules_text(settings_of(tmp_path)))["groups"]}
    rules = groups["understudy-budgets"]
    assert [rule["labels"]["severity"] for rule in rules] == ["critical", "warning"]
    assert rules[0]["expr"] == 'max(understudy_spend_share{route="chat",budget="day"}) >= 1'
