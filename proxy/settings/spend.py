"""What the policy files say about prices, counting tokens, and budgets of money or tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from understudy.proxy.settings.types import Count, Frozen, Name

Money = Annotated[float, Meta(ge=0, description="in the currency of the price table")]


class Price(Frozen, frozen=True):
    """What a million tokens of a model cost."""

    input: Money
    """A million tokens of prompts, or of texts to be embedded."""
    output: Money = 0.0
    """A million tokens of answers, reasoning included."""
    cached_input: Money | None = None
    """A million tokens of prompts that the provider had in its cache; unless said, as much as others."""
    cache_write: Money | None = None
    """A million tokens of prompts that it put there (Anthropic); unless said, as much as others."""


class Prices(Frozen, frozen=True):
    """What models cost. Where there is a table, tokens are counted on all routes with a price."""

    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}$", description="three capitals")] = "USD"
    models: dict[str, Price] = {}
    """A model's name -> its price. `gpt-4o*` is every name that begins so; the longest that fits counts."""


class SpendBudget(Frozen, frozen=True):
    """So much money, or so many tokens, an hour, a day or a month of UTC; kept over restarts, shared by all workers."""

    name: Name
    each: Literal["route", "caller"] = "route"
    """Whose it is: all callers' together, or each one's own."""
    window: Literal["hour", "day", "month"] = "day"
    """When it begins anew: at each full hour, at midnight, or on the first of the month, UTC."""
    cost: Annotated[float, Meta(gt=0, description="in the currency of the price table")] | None = None
    """How much money; models without a price cost nothing here."""
    tokens: Count | None = None
    """How many tokens, of prompts and answers together."""
    soft_share: Annotated[float, Meta(gt=0, le=1, description="a share of one")] = 0.8
    """From this share on, calls go to the tiers that `cheaper` names."""
    cheaper: list[Name] = []
    """The route's tiers that answer from then on; the others only when none of these does. Empty: nothing moves."""
    hard: bool = True
    """Refuse what comes once all is spent, with a 429 in the caller's dialect, until the window is over."""


class Spend(Frozen, frozen=True):
    """Tokens and money that calls take: whether they are counted, and how much there is to spend."""

    count: Literal["auto", "always", "never"] = "auto"
    """auto counts where there are prices or budgets; a call costs about 4 µs more for it."""
    by: list[str] = field(default_factory=list[str])
    """Further headers that tell callers apart, besides their credentials, such as x-team."""
    callers_max: Count = 10_000
    """Callers whose spending is remembered; beyond it, new ones share one account."""
    budgets: list[SpendBudget] = []
