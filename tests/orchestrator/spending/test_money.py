"""Money is exact: whatever is added up, and in whatever order, comes to the same number of nano-dollars."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.spending.config import ModelPrice
from orchestrator.spending.money import Price, nano_usd, per_token, usd
from orchestrator.upstreams.upstream import Usage

tokens = st.integers(0, 10**12)
quoted = st.decimals(min_value=0, max_value=10_000, places=3, allow_nan=False)
usages = st.tuples(tokens, tokens, tokens).map(lambda counts: Usage(counts[0], counts[1], counts[0] + counts[1], counts[2]))


@given(input=quoted, output=quoted, cached=st.none() | quoted, usage=usages)
def test_a_cost_is_what_a_person_with_paper_gets(input: Decimal, output: Decimal, cached: Decimal | None, usage: Usage) -> None:
    price = ModelPrice(input=input, output=output, cached_input=cached).price()

    hit = min(usage.cached or 0, usage.prompt_tokens)
    dollars = Fraction(usage.prompt_tokens - hit) * Fraction(input) + hit * Fraction(input if cached is None else cached)
    dollars = (dollars + usage.completion_tokens * Fraction(output)) / 1_000_000
    assert price.cost(usage) == dollars * 1_000_000_000
    assert isinstance(price.cost(usage), int)


@given(st.lists(usages, max_size=20), st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(spent: list[Usage], input: int, output: int) -> None:
    price = Price(input, output)
    total = Usage()
    for usage in spent:
        total = total.plus(usage)
    assert price.cost(total) == sum(price.cost(usage) for usage in spent)


@given(st.integers(0, 10**15))
def test_up_to_a_million_dollars_the_number_leads_back_to_the_nano_dollar(nano: int) -> None:
    assert nano_usd(Decimal(repr(usd(nano)))) == nano


@given(usages, st.integers(0, 10**9), st.integers(0, 10**9), st.none() | st.integers(0, 10**9))
def test_nothing_costs_more_than_the_dearest_token(usage: Usage, input: int, output: int, cached: int | None) -> None:
    price = Price(input, output, cached)
    assert price.cost(usage) <= (usage.prompt_tokens + usage.completion_tokens) * price.dearest


@pytest.mark.parametrize("quote", ["2.5", "0.15", "0.075", "60", "0"])
def test_quotes_are_read_as_written(quote: str) -> None:
    assert per_token(Decimal(quote)) == Fraction(quote) * 1000
    assert ModelPrice.model_validate({"input": float(quote), "output": quote}).price().input == Fraction(quote) * 1000


@pytest.mark.parametrize("quote", [-1, "0.0375", "NaN", "Infinity", 2_000_000, "free"])
def test_what_is_no_price_is_refused(quote: object) -> None:
    with pytest.raises(ValidationError):
        ModelPrice.model_validate({"input": quote, "output": 1})
