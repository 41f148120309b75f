"""What is said of limits: by the configuration, in headers, to whom they refuse. No I/O."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.settings import Settings
from orchestrator.errors import RateLimited, TooManyStreams
from orchestrator.http.refusal import pack, unpack
from orchestrator.limits import refusals
from orchestrator.limits.config import Limits as LimitsSettings
from orchestrator.limits.config import LimitsOf
from orchestrator.limits.headers import duration, rate_limit_headers
from orchestrator.limits.quota import Allowance, Budget, Quota, Rate
from orchestrator.limits.terms import Allotment, AllTerms, Limit, Policy
from orchestrator.runs import Principal


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (12, "12ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1500, "1.5s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (360_250, "6m0.25s"),
        (3_600_000, "1h0m0s"),
    ],
)
def test_durations_are_written_as_openai_does(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_only_limits_that_there_are_have_headers() -> None:
    assert list(rate_limit_headers(None)) == []
    assert list(rate_limit_headers(Quota(tokens=Rate(10, 9, 6000)))) == [
        ("x-ratelimit-limit-tokens", "10"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("x-ratelimit-reset-tokens", "6s"),
    ]


@pytest.mark.parametrize(
    "error",
    [
        refusals.too_fast(Limit("key", "requests", 3, "k"), 20_000, Quota(Rate(3, 0, 60_000))),
        refusals.too_many_streams(Limit("tenant", "streams", 3, "k")),
    ],
)
def test_a_refusal_is_the_same_on_the_other_side(error: RateLimited) -> None:
    other = unpack(pack(error))
    assert type(other) in (RateLimited, TooManyStreams)
    assert isinstance(other, type(error))
    assert (other.failure(), other.quota) == (error.failure(), error.quota)


def test_a_spent_budget_names_itself() -> None:
    money = Allotment("tenant", "month", Budget(tokens=5000, nano=10_500_000_000), "k")
    assert refusals.spent(money).message == (
        "You exceeded your current quota: this tenant's budget for the month (UTC), 5000 tokens and 10.5 dollars, has no room "
        "for this request."
    )


class TestConfiguration:
    def test_what_is_said(self) -> None:
        limits = LimitsSettings.model_validate(
            {
                "when_unavailable": "open",
                "key": {"requests_per_minute": 60},
                "tenants": {"acme": {"runs": 3, "budgets": {"day": {"tokens": 1000, "usd": "1.5"}, "month": {"usd": 20}}}},
            }
        )
        acme = Allowance(runs=3, day=Budget(1000, 1_500_000_000), month=Budget(nano=20_000_000_000))
        assert limits.policy() == Policy(Allowance(requests_per_minute=60), Allowance(), {"acme": acme}, "open")

    @pytest.mark.parametrize(
        ("limits", "place"),
        [
            ({"key": {"requests_per_minute": 0}}, "key.requests_per_minute"),
            ({"key": {"requests_per_second": 1}}, "key.requests_per_second"),
            ({"tenant": {"budgets": {"day": {"usd": "0.0000000001"}}}}, "tenant.budgets.day.usd"),
            ({"tenant": {"budgets": {"month": {"usd": -1}}}}, "tenant.budgets.month.usd"),
            ({"tenants": {"a b": {}}}, "tenants.a b.[key]"),
            ({"when_unavailable": "maybe"}, "when_unavailable"),
        ],
    )
    def test_what_cannot_be_meant(self, limits: dict[str, Any], place: str) -> None:
        with pytest.raises(ValidationError) as refused:
            LimitsSettings.model_validate(limits)
        assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [place]

    def test_a_keys_own(self) -> None:
        key = {"key": "sk-a", "name": "a", "limits": {"streams": 4}}
        settings = Settings.model_validate({"auth": {"mode": "keys", "keys": [key]}})
        assert settings.auth.keys[0].principal().limits == Allowance(streams=4)


def test_a_keys_own_limits_stand_over_those_of_all_keys_one_by_one() -> None:
    own, every = Allowance(runs=5, day=Budget(tokens=7)), Allowance(10, 20, 3, day=Budget(9, 11), month=Budget(1))
    assert own.over(every) == Allowance(10, 20, 5, day=Budget(7, 11), month=Budget(1))
    assert own.within(every) == Allowance(runs=3, day=Budget(tokens=7))
    assert own.within(Allowance()) == own
    assert LimitsOf.of(own) == LimitsOf.model_validate({"runs": 5, "budgets": {"day": {"tokens": 7}}})


class TestPlans:
    def test_keys_of_a_tenant_have_one_hash_tag_whatever_it_is_called(self) -> None:
        """Names that an issuer of tokens chose could hold what separates fields and keys."""
        terms = AllTerms(Policy(key=Allowance(requests_per_minute=1, runs=1, day=Budget(1))), "hg")
        terms = terms.of(Principal("acme", "issued:auth0|a\tb\n{c}"))
        lines = [*terms.rates_text.split("\n"), *terms.runs_text.split("\n"), *terms.budgets_text(0).split("\n")]
        assert [line.count("\t") for line in lines] == [2, 1, 3]
        assert {line.split("}")[0] for line in lines} == {"hg:limits:{acme"}

    def test_periods_are_those_of_utc(self) -> None:
        terms = AllTerms(Policy(tenant=Allowance(day=Budget(5), month=Budget(nano=7))), "hg").of(Principal("acme", "a"))
        for ms, day in ((1_706_745_599_999, "2024-01-31"), (1_706_745_600_000, "2024-02-01")):
            assert [line.split("\t")[:3] for line in terms.budgets_text(ms).split("\n")] == [
                [f"hg:limits:{{acme}}:tenant:day:{day}", "5", ""],
                [f"hg:limits:{{acme}}:tenant:month:{day[:7]}", "", "7"],
            ]
