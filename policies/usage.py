"""What answers took in tokens and cost in money, counted by tier and model; as the upstream told it, or estimated.

    Usage (one answer's tokens) --add--> Bill (of a tier and a model) --> metrics, status, budgets
                     PriceList --find--^

Counts are of what an upstream was really asked, retries and hedges included: that is what is paid for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

MODELS_MAX = 32
"""Models that a route's counts tell apart; those that come later are counted together, as `other`."""
NAMES_MAX = 1024
"""Names whose price has been looked up and is remembered."""
OTHER = "other"
PER_TOKENS = 1_000_000
"""Prices are for so many tokens."""


class Usage(NamedTuple):
    """What one answer took. `cached` and `cache_written` are among the `input`, `reasoning` among the `output`."""

    model: str
    input: int
    output: int = 0
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0
    is_estimated: bool = False

    @property
    def tokens(self) -> int:
        return self.input + self.output


class PriceRules(Protocol):
    """What a million tokens of a model cost (`Price` of `proxy/settings`)."""

    @property
    def input(self) -> float: ...
    @property
    def output(self) -> float: ...
    @property
    def cached_input(self) -> float | None: ...
    @property
    def cache_write(self) -> float | None: ...


def cost_of(usage: Usage, price: PriceRules) -> float:
    """What an answer cost, in the currency of the price; cached input costs as much as any, unless the price says."""
    if not usage.cached and not usage.cache_written:
        return (usage.input * price.input + usage.output * price.output) / PER_TOKENS
    cached = price.input if price.cached_input is None else price.cached_input
    written = price.input if price.cache_write is None else price.cache_write
    plain = max(0, usage.input - usage.cached - usage.cache_written)
    money = plain * price.input + usage.cached * cached + usage.cache_written * written + usage.output * price.output
    return money / PER_TOKENS


class PriceList:
    """Prices by the names of models: `gpt-4o-mini` is one, `gpt-4o*` all that begin so, and the longest counts."""

    __slots__ = ("_begin", "_exact", "_found")

    def __init__(self, rows: Mapping[str, PriceRules]) -> None:
        self._exact = {name.lower(): price for name, price in rows.items() if not name.endswith("*")}
        begin = {name[:-1].lower(): price for name, price in rows.items() if name.endswith("*")}
        self._begin = sorted(begin.items(), key=lambda row: len(row[0]), reverse=True)
        self._found: dict[str, PriceRules | None] = {}

    def __bool__(self) -> bool:
        return bool(self._exact or self._begin)

    def find(self, model: str) -> PriceRules | None:
        """The price of a model, in any case of letters; None for one that nobody has priced."""
        if model in self._found:
            return self._found[model]
        name = model.lower()
        price = self._exact.get(name) or next((price for start, price in self._begin if name.startswith(start)), None)
        if len(self._found) < NAMES_MAX:
            self._found[model] = price
        return price


class Bill:
    """What a tier's answers by one model took: tokens by kind, the answers that told it or did not, and their cost."""

    __slots__ = ("answers", "cache_written", "cached", "cost", "input", "output", "reasoning", "unpriced")

    def __init__(self) -> None:
        self.answers = 0
        self.input = 0
        self.output = 0
        self.cached = 0
        self.cache_written = 0
        self.reasoning = 0
        self.cost = 0.0
        self.unpriced = 0

    def add(self, usage: Usage, price: PriceRules | None) -> float:
        """Count one answer; what it cost, 0 where nobody knows."""
        self.answers += 1
        self.input += usage.input
        self.output += usage.output
        if usage.cached or usage.cache_written or usage.reasoning:
            self.cached += usage.cached
            self.cache_written += usage.cache_written
            self.reasoning += usage.reasoning
        if price is None:
            self.unpriced += 1
            return 0.0
        cost = cost_of(usage, price)
        self.cost += cost
        return cost


class Accounts:
    """The bills of one route, by tier, model, and whether they are estimated. Bounded: see MODELS_MAX."""

    __slots__ = ("_models", "bills")

    def __init__(self) -> None:
        self.bills: dict[tuple[str, str, bool], Bill] = {}
        self._models: set[str] = set()

    def add(self, tier: str, usage: Usage, price: PriceRules | None) -> float:
        """Put one answer of `tier` on its bill; what it cost."""
        bill = self.bills.get((tier, usage.model, usage.is_estimated))
        if bill is None or not usage.model:
            key = (tier, self._label(usage.model), usage.is_estimated)
            bill = self.bills.get(key) or self.bills.setdefault(key, Bill())
        return bill.add(usage, price)

    def _label(self, model: str) -> str:
        if model in self._models:
            return model
        if not model or len(self._models) >= MODELS_MAX:
            return OTHER
        self._models.add(model)
        return model
