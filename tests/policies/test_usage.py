"""What answers take and cost: prices by the longest name, cached input apart, labels that stay few."""

from __future__ import annotations

import pytest

from understudy.policies.usage import MODELS_MAX, OTHER, Accounts, PriceList, Usage, cost_of
from understudy.proxy.settings.settings import Price

MINI = Price(input=0.15, cached_input=0.075, output=0.60)
BIG = Price(input=2.50, output=10.0)
CLAUDE = Price(input=1.0, cached_input=0.1, cache_write=1.25, output=5.0)


def test_cached_input_costs_what_the_price_says_and_the_rest_of_the_input_the_usual():
    usage = Usage("gpt-4o-mini", input=1_000_000, output=500_000, cached=400_000)
    assert cost_of(usage, MINI) == pytest.approx(0.6 * 0.15 + 0.4 * 0.075 + 0.5 * 0.60)
    assert cost_of(usage, BIG) == pytest.approx(2.50 + 5.0)


def test_input_that_a_cache_took_in_costs_more_where_the_provider_says_so():
    usage = Usage("claude", input=1000, output=10, cached=300, cache_written=200)
    assert cost_of(usage, CLAUDE) == pytest.approx((500 * 1.0 + 300 * 0.1 + 200 * 1.25 + 10 * 5.0) / 1e6)


def test_the_exact_name_goes_before_the_longest_beginning_and_letters_may_be_of_any_case():
    prices = PriceList({"gpt-4o*": BIG, "gpt-4o-mini*": MINI, "gpt-4o-mini-tts": CLAUDE, "*": Price(input=9)})
    assert prices.find("gpt-4o-2024-08-06") is BIG
    assert prices.find("GPT-4o-mini-2024-07-18") is MINI
    assert prices.find("gpt-4o-mini-tts") is CLAUDE
    assert prices.find("llama3.2") == Price(input=9)
    assert PriceList({"gpt-4o*": BIG}).find("llama3.2") is None


def test_a_bill_is_kept_for_each_tier_and_model_and_what_nobody_priced_is_counted_apart():
    accounts = Accounts()
    assert accounts.add("openai", Usage("gpt-4o", 10, 5), BIG) == pytest.approx(75e-6)
    assert accounts.add("openai", Usage("gpt-4o", 10, 5), BIG) == pytest.approx(75e-6)
    assert accounts.add("own", Usage("llama", 7, 3, is_estimated=True), None) == 0.0
    told, guessed = accounts.bills["openai", "gpt-4o", False], accounts.bills["own", "llama", True]
    assert (told.answers, told.input, told.output, told.unpriced) == (2, 20, 10, 0)
    assert told.cost == pytest.approx(150e-6)
    assert (guessed.answers, guessed.unpriced, guessed.cost) == (1, 1, 0.0)


def test_twenty_thousand_models_are_counted_under_a_bounded_number_of_names():
    accounts = Accounts()
    for number in range(20_000):
        accounts.add("openai", Usage(f"model-{number}", 1), None)
    assert len(accounts.bills) == MODELS_MAX + 1
    assert accounts.bills["openai", OTHER, False].answers == 20_000 - MODELS_MAX
