"""What `/metrics` and `/status` say of tokens, of what they cost, and of budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from understudy.policies.spend import HARD, SOFT, Budgets, Purse
from understudy.proxy.stack import RouteParts

if TYPE_CHECKING:
    from understudy.policies.usage import Accounts, Bill
    from understudy.proxy.spending.accounting import Accountant
    from understudy.proxy.spending.budgets import Spending

STATES = ("free", "moved", "refused")
"""What becomes of the calls of who has used so much of a budget."""
SPEND_METRICS = {
    "understudy_llm_answers_total": "Answers whose tokens were counted, by model, told by the upstream or estimated",
    "understudy_llm_tokens_total": "Tokens, by model and kind: cached_input is among input, reasoning among output",
    "understudy_llm_cost_total": "Money that answers cost by the price table, by model and currency",
    "understudy_llm_unpriced_total": "Answers of models that the price table has no price for",
    "understudy_spend_used": "What a budget's payer has used in this window; of callers, who has used the most",
    "understudy_spend_share": "Share of a budget that its payer has used; of callers, who has used the most",
    "understudy_spend_callers": "Callers whose spending is counted against a budget",
    "understudy_spend_moved_total": "Calls given to cheaper tiers because a budget was nearly spent",
    "understudy_spend_refused_total": "Calls answered 429 because a budget was spent",
    "understudy_spend_kept": "1 while what is spent can be written down; only where there are budgets",
}
KINDS = (
    ("input", "input"),
    ("output", "output"),
    ("cached_input", "cached"),
    ("cache_write", "cache_written"),
    ("reasoning", "reasoning"),
)
"""What a token counts as in metrics, and where a bill has it."""


def spend_metrics(accountant: Accountant | None) -> Iterator[Metric]:
    """What the upstreams of all routes that are counted took."""
    of = ["route", "tier", "model", "told"]
    answers, tokens = (
        _counter("understudy_llm_answers_total", of),
        _counter("understudy_llm_tokens_total", [*of, "kind"]),
    )
    cost = _counter("understudy_llm_cost_total", [*of, "currency"])
    unpriced = _counter("understudy_llm_unpriced_total", ["route", "tier", "model"])
    for route, accounts in accountant.accounts.items() if accountant is not None else ():
        assert accountant is not None
        for (tier, model, is_estimated), bill in accounts.bills.items():
            labels = [route, tier, model, "estimated" if is_estimated else "exactly"]
            answers.add_metric(labels, bill.answers)
            for kind, field in KINDS:
                if count := getattr(bill, field):
                    tokens.add_metric([*labels, kind], count)
            if accountant.prices:
                cost.add_metric([*labels, accountant.currency], bill.cost)
        for (tier, model), count in _unpriced(accounts).items():
            if accountant.prices:
                unpriced.add_metric([route, tier, model], count)
    yield from (answers, tokens, cost, unpriced)


def budget_metrics(routes: Iterable[RouteParts], spending: Spending | None, now: float) -> Iterator[Metric]:
    """How much of each budget is used; `now` is in seconds since the epoch."""
    of = ["route", "budget"]
    used = GaugeMetricFamily(*_named("understudy_spend_used"), labels=[*of, "unit"])
    share = GaugeMetricFamily(*_named("understudy_spend_share"), labels=of)
    callers = GaugeMetricFamily(*_named("understudy_spend_callers"), labels=of)
    moved, refused = _counter("understudy_spend_moved_total", of), _counter("understudy_spend_refused_total", of)
    for parts in routes:
        heart = parts.budgets
        for purse in heart.purses if heart is not None else ():
            assert heart is not None
            labels = [parts.name, purse.rules.name]
            payer, most = purse.greatest(now)
            tokens, cost = purse.used.get(payer, (0, 0.0)) if most else (0, 0.0)
            used.add_metric([*labels, "tokens"], tokens)
            used.add_metric([*labels, "cost"], cost)
            share.add_metric(labels, most)
            if purse.rules.each == "caller":
                callers.add_metric(labels, len(purse.used))
            moved.add_metric(labels, heart.moved[purse.rules.name])
            refused.add_metric(labels, heart.refused[purse.rules.name])
    yield from (used, share, callers, moved, refused)
    if spending is not None:
        kept = GaugeMetricFamily(*_named("understudy_spend_kept"))
        kept.add_metric([], float(spending.is_kept))
        yield kept


def _unpriced(accounts: Accounts) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for (tier, model, _), bill in accounts.bills.items():
        if bill.unpriced:
            found[tier, model] = found.get((tier, model), 0) + bill.unpriced
    return found


def budget_status(parts: RouteParts, now: float) -> dict[str, Any]:
    """How a route's budgets stand, where it has any; `now` is in seconds since the epoch."""
    heart = parts.budgets
    if heart is None:
        return {}
    return {"budgets": [_purse(heart, purse, now) for purse in heart.purses]}


def _purse(heart: Budgets, purse: Purse, now: float) -> dict[str, Any]:
    rules = purse.rules
    payer, share = purse.greatest(now)
    tokens, cost = purse.used.get(payer, (0, 0.0)) if share else (0, 0.0)
    told: dict[str, Any] = {"name": rules.name, "each": rules.each, "window": rules.window}
    if rules.cost is not None:
        told |= {"cost": round(cost, 6), "cost_max": rules.cost}
    if rules.tokens is not None:
        told |= {"tokens": tokens, "tokens_max": rules.tokens}
    told |= {"share": round(share, 4), "state": STATES[purse.level(payer) if share else 0]}
    if rules.each == "caller":
        # who has used the most stands for all; nobody is named
        levels = Counter(purse.level(each) for each in purse.used) if share else Counter[int]()
        told["callers"] = {"known": len(purse.used), "moved": levels[SOFT], "refused": levels[HARD]}
    ends_s = max(0.0, purse.ends - now)
    return {**told, "ends_s": round(ends_s), "moved": heart.moved[rules.name], "refused": heart.refused[rules.name]}


def spend_status(accountant: Accountant | None, route: str) -> dict[str, Any]:
    """What a route has spent since the process began, where it is counted."""
    accounts = accountant.accounts.get(route) if accountant is not None else None
    if accountant is None or accounts is None:
        return {}
    bills = {
        " ".join((tier, model, *(["estimated"] if is_estimated else []))): _bill(bill)
        for (tier, model, is_estimated), bill in accounts.bills.items()
    }
    priced = {"currency": accountant.currency} if accountant.prices else {}
    return {"spent": {**priced, "by": bills}}


def _bill(bill: Bill) -> dict[str, Any]:
    told = {kind: count for kind, field in KINDS if (count := getattr(bill, field))}
    return {"answers": bill.answers, **told, "cost": round(bill.cost, 6)}


def merged_spend(routes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a route has spent in several workers; its budgets are the same in all of them."""
    each = [route["spent"] for route in routes if "spent" in route]
    if not each:
        return _merged_budgets(routes)
    by: dict[str, dict[str, Any]] = {}
    for one in each:
        for name, bill in one["by"].items():
            sums = by.setdefault(name, {})
            for key, value in bill.items():
                sums[key] = round(sums.get(key, 0) + value, 6)
    return {"spent": {**each[0], "by": by}, **_merged_budgets(routes)}


def _merged_budgets(routes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was moved and refused adds up; of what was used, who has heard the most is right."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for route in routes:
        for budget in route.get("budgets", ()):
            by_name.setdefault(budget["name"], []).append(budget)
    if not by_name:
        return {}
    merged: list[dict[str, Any]] = []
    for budgets in by_name.values():
        most = max(budgets, key=lambda one: one["share"])
        merged.append({**most, **{key: sum(one[key] for one in budgets) for key in ("moved", "refused")}})
    return {"budgets": merged}


def _named(name: str) -> tuple[str, str]:
    return name, SPEND_METRICS[name]


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, SPEND_METRICS[name], labels=labels)
