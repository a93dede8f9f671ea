"""Say where tokens are counted, and what of prices and budgets doesn't go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from understudy.proxy.settings.settings import LocalTier, Route, Settings
from understudy.proxy.settings.spots import Fault, Place, named
from understudy.proxy.settings.trace import Traces

COUNTED_KINDS = ("embed", "generate")
BUDGETS_MAX = 16
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\*?|\*")


def counts_tokens(settings: Settings, route: Route) -> bool:
    """Whether the tokens of a route's calls are counted."""
    spend = route.spend
    if spend.count == "auto":
        # spans tell tokens
        return bool(settings.prices.models or spend.budgets or isinstance(settings.server.traces, Traces))
    return spend.count == "always"


def price_faults(settings: Settings, at: Place) -> Iterator[Fault]:
    """What is wrong with the price table."""
    for name in settings.prices.models:
        if not _MODEL.fullmatch(name):
            yield from at.at("models").at(named(name)).fault("expected a model's name, or how names begin and a *")


def spend_faults(settings: Settings, route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    """What is wrong with a route's budgets; those that it has from the defaults mean nothing where nothing is spent."""
    spend = route.spend
    if not spend.budgets or dialects.get(route.dialect) not in COUNTED_KINDS:
        return
    if spend.count == "never":
        yield from at.fault("budgets need tokens to be counted", "spend.count", reads=["spend.budgets"])
    if len(spend.budgets) > BUDGETS_MAX:
        yield from at.fault(f"more than {BUDGETS_MAX} budgets", "spend.budgets")
    tiers = [tier.name for tier in route.tiers]
    seen: set[str] = set()
    for n, budget in enumerate(spend.budgets):
        here = at.at(f"spend.budgets[{n}]")
        if budget.name in seen:
            yield from here.fault("another budget of this route has this name", "name")
        seen.add(budget.name)
        if budget.cost is None and budget.tokens is None:
            yield from here.fault("needs cost or tokens", reads=["cost", "tokens"])
        if budget.cost is not None and not settings.prices.models:
            yield from here.fault("there are no prices, so nothing costs anything", "cost")
        for m, name in enumerate(budget.cheaper):
            if name not in tiers:
                yield from here.fault(f"the route has no tier of this name; it has {', '.join(tiers)}", f"cheaper[{m}]")
        if budget.cheaper and set(tiers) <= set(budget.cheaper):
            yield from here.fault("these are all the tiers there are: none of them is dearer", "cheaper")


def spend_warnings(settings: Settings, route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    """What is allowed, and may surprise."""
    if dialects.get(route.dialect) not in COUNTED_KINDS:
        return
    for n, budget in enumerate(route.spend.budgets):
        if not budget.hard and not budget.cheaper:
            why = "neither moves nor refuses anything: it is only told of"
            yield from at.at(f"spend.budgets[{n}]").fault(why, "hard", reads=["cheaper"])
    if route.spend.budgets and not any(not isinstance(tier, LocalTier) for tier in settings.active(route)):
        yield from at.fault("no tier that is there costs anything", "spend.budgets", reads=["tiers"])
