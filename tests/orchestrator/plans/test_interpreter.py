"""The interpreter: what runs when, what becomes of failures, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from orchestrator.endings import RUN_BUDGET_EXCEEDED
from orchestrator.plans.interpreter import Paused, StepResult, Verdict
from orchestrator.plans.progress import Progress
from orchestrator.plans.template import TemplateFailed
from orchestrator.plans.tree import Node
from orchestrator.runs import RunState
from orchestrator.streamlog.log import LogMissing
from tests.orchestrator.plans.acting import CANCELLED, DONE, FAILED, HELD, PAUSED, Acting, plan

SINGLE = plan("agent: {upstream: a}")
THREE = plan("sequential: [{agent: {name: x, upstream: a}}, {agent: {name: y, upstream: a}}, {agent: {name: z, upstream: a}}]")
SIDES = "branches: [{agent: {name: x, upstream: a}}, {agent: {name: y, upstream: a}}, {agent: {name: z, upstream: a}}]"
TEAM = plan("sequential: [{parallel: {name: team, " + SIDES + "}}, {agent: {name: end, upstream: a}}]")


@pytest.mark.parametrize("result", [DONE, CANCELLED, FAILED])
async def test_the_only_agent_decides_and_has_no_progress(result: StepResult) -> None:
    context = Acting({"agent": [result]})
    assert await context.act(SINGLE) == result
    assert (context.asked, context.told) == (["checkpoint agent", "run agent 1 final"], [])


async def test_an_agent_that_paused_is_run_again_after_the_checkpoint() -> None:
    context = Acting({"agent": [PAUSED, DONE]})
    assert await context.act(SINGLE) == DONE
    assert context.asked == ["checkpoint agent", "run agent 1 final"] * 2


async def test_steps_follow_each_other_and_are_counted() -> None:
    context = Acting()
    assert (await context.act(THREE)).state is RunState.COMPLETED
    assert context.facts() == [
        ("x", "started", 0),
        ("x", "completed", 0.333),
        ("y", "started", 0.333),
        ("y", "completed", 0.667),
        ("z", "started", 0.667),
        ("z", "completed", 1),
    ]
    assert [one.step_index for one in context.told] == [0, 0, 1, 1, 2, 2]
    assert [asked for asked in context.asked if asked.startswith("renew")] == ["renew 1 1/3", "renew 2 2/3"]


async def test_a_step_that_fails_is_the_end() -> None:
    context = Acting({"y": [FAILED]})
    assert await context.act(THREE) == FAILED
    assert context.facts()[-1] == ("y", "failed", 0.333)
    assert context.told[-1].error == "It broke."


def completed(context: Acting) -> list[Progress]:
    """The branches that have ended, as they were told."""
    return [one for one in context.told if one.parallel_total == 3 and one.status == "completed"]


async def test_branches_run_at_once_and_are_told_as_they_end() -> None:
    context = Acting({name: [HELD] for name in "xyz"})
    acting = asyncio.create_task(context.act(TEAM))
    await context.held(3)
    for done, name in enumerate("zxy", 1):
        context.release(name)
        await context.until(
            lambda done=done: sum(one.parallel_total == 3 and one.status == "completed" for one in context.told) >= done
        )
    assert (await acting).state is RunState.COMPLETED
    assert [(one.step_name, one.parallel_index, round(one.progress, 3)) for one in completed(context)] == [
        ("z", 2, 0.167),
        ("x", 0, 0.333),
        ("y", 1, 0.5),
    ]


async def test_a_branch_that_fails_cancels_the_others() -> None:
    context = Acting({name: [HELD] for name in "xyz"})
    acting = asyncio.create_task(context.act(TEAM))
    await context.held(3)
    context.release("y", FAILED)
    result = await acting
    assert (result.state, result.failure, result.where) == (RunState.FAILED, FAILED.failure, ("branch 'y'",))
    assert context.asked[-2:] == ["cancelled x", "cancelled z"]
    assert sorted((one.step_name, one.status) for one in context.told if one.status in ("failed", "cancelled")) == [
        ("team", "failed"),
        ("x", "cancelled"),
        ("y", "failed"),
        ("z", "cancelled"),
    ]


async def test_collecting_goes_on_without_what_failed() -> None:
    collecting = plan("parallel: {name: team, on_error: collect, " + SIDES + "}")
    context = Acting({"y": [FAILED]})
    assert await context.act(collecting) == DONE
    assert context.facts()[-1] == ("team", "completed", 1)
    all_failed = Acting({name: [FAILED] for name in "xyz"})
    assert (await all_failed.act(collecting)).state is RunState.FAILED


async def test_a_cancelled_branch_has_not_finished() -> None:
    """With `collect`, where branches that failed count, a run that was cancelled once came to 1 while it stopped."""
    collecting = plan("parallel: {name: team, on_error: collect, " + SIDES + "}")
    context = Acting({"y": [CANCELLED], "z": [CANCELLED]})
    assert (await context.act(collecting)).state is RunState.CANCELLED
    ended = [fact for fact in context.facts() if fact[1] != "started"]
    assert ended == [
        ("x", "completed", 0.333),
        ("y", "cancelled", 0.333),
        ("z", "cancelled", 0.333),
        ("team", "cancelled", 0.333),
    ]


async def test_so_many_branches_at_a_time() -> None:
    two = plan("parallel: {max_concurrency: 2, " + SIDES + "}")
    context = Acting({name: [HELD] for name in "xyz"})
    acting = asyncio.create_task(context.act(two))
    await context.held(2)
    assert not any("run z" in asked for asked in context.asked)
    context.release("y")
    await context.held(3)
    context.release("x")
    context.release("z")
    assert await acting == DONE


async def test_a_pause_lets_all_branches_come_to_a_safe_point() -> None:
    context = Acting({"x": [Paused()], "y": [HELD], "z": [Paused()]})
    acting = asyncio.create_task(context.act(TEAM))
    await context.held(1)
    context.release("y")
    with pytest.raises(Paused):
        await acting
    assert ("y", "completed", 0.167) in context.facts()


@pytest.mark.parametrize(("chosen", "ran"), [("then", ["run x 1"]), ("else", ["run y 1"]), ("none", [])])
async def test_a_condition_takes_one_side_and_says_which(chosen: str, ran: list[str]) -> None:
    context = Acting({"conditional": [chosen]})
    either = plan(
        "conditional: {if: 'true', then: {agent: {name: x, upstream: a, answers: true}}, "
        "else: {agent: {name: y, upstream: a, answers: true}}}"
    )
    assert await context.act(either) == DONE
    assert [asked for asked in context.asked if asked.startswith("run")] == ran
    assert (context.told[0].branch, context.told[-1].progress) == (chosen, 1.0)


async def test_a_condition_without_a_value_is_no_guess() -> None:
    context = Acting({"conditional": [TemplateFailed("division by zero")]})
    result = await context.act(plan("conditional: {if: 1/0, then: {agent: {upstream: a}}}"))
    assert result.failure is not None
    assert (result.state, result.failure.code) == (RunState.FAILED, "template_failed")
    assert context.facts() == [("conditional", "started", 0), ("conditional", "failed", 0)]


RETRY = plan("retry: {max_retries: 2, delay_s: 1, backoff: 3, jitter: 0.2, step: {agent: {name: x, upstream: a}}}")


async def test_a_retry_waits_longer_each_time() -> None:
    context = Acting({"x": [FAILED, FAILED, DONE]})
    assert await context.act(RETRY) == DONE
    assert [asked for asked in context.asked if "checkpoint" not in asked] == [
        "run x 1",
        "sleep 1.1",
        "run x 2",
        "sleep 3.3",
        "run x 3",
    ]
    attempts = [(one.status, one.attempt, one.progress) for one in context.told if one.step_name == "x"]
    assert attempts[-2:] == [("started", 3, 0.0), ("completed", 3, 0.0)]
    assert context.facts()[-1] == ("retry", "completed", 1)


async def test_a_retry_gives_up_with_the_last_error_and_its_count() -> None:
    result = await Acting({"x": [FAILED] * 3}).act(RETRY)
    assert (result.failure, result.where) == (FAILED.failure, ("after 3 attempts",))


async def test_a_cancellation_is_not_tried_again() -> None:
    context = Acting({"x": [CANCELLED]})
    assert await context.act(RETRY) == CANCELLED
    assert context.facts()[-1] == ("retry", "cancelled", 0)


async def test_what_is_denied_ends_the_run_as_cancelled_by_decision() -> None:
    review = plan("sequential: [{approval: {name: ok, action: go}}, {agent: {upstream: a}}]")
    context = Acting({"ok": [Verdict(False, "alice")]})
    result = await context.act(review)
    assert result == StepResult(RunState.CANCELLED, reason="'ok' was not approved by alice", step="ok")
    assert not any("run agent" in asked for asked in context.asked)
    assert await Acting({"ok": [Verdict(True)]}).act(review) == DONE


async def test_a_step_that_takes_too_long_ends() -> None:
    short = plan("sequential: {timeout_s: 0.01, steps: [{agent: {name: x, upstream: a}}]}")
    context = Acting({"x": [HELD]})
    assert (await context.act(short)).state is RunState.TIMEOUT
    assert context.asked[-1] == "cancelled x"


async def test_progress_never_falls() -> None:
    nested = plan(
        "sequential: [{parallel: {branches: [{sequential: [{agent: {name: x, upstream: a}}, {agent: {name: y, upstream: a}}]}, "
        "{retry: {max_retries: 1, delay_s: 0, step: {agent: {name: z, upstream: a}}}}]}}, "
        "{conditional: {if: 'true', then: {agent: {name: w, upstream: a, answers: true}}}}]"
    )
    context = Acting({"z": [FAILED, DONE]})
    assert await context.act(nested) == DONE
    fractions = [one.progress for one in context.told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


class Obstinate(Acting):
    """Its agents take being cancelled for a result, as real ones do: they have words to finish."""

    async def run_agent(self, node: Node, visit: int, *, final: bool) -> StepResult:
        try:
            return await super().run_agent(node, visit, final=final)
        except asyncio.CancelledError:
            return CANCELLED


@pytest.mark.parametrize(
    "text",
    [
        "sequential: {timeout_s: 0.01, steps: [{agent: {name: x, upstream: a}}]}",
        "parallel: {timeout_s: 0.01, branches: [{agent: {name: x, upstream: a}}]}",
        "sequential: [{sequential: {timeout_s: 0.01, steps: [{agent: {name: x, upstream: a}}]}}]",
        "workflow: {timeout_s: 0.01, model: m, plan: {agent: {name: x, upstream: a}}}",
    ],
)
async def test_an_agent_that_ends_in_order_does_not_hide_that_time_is_over(text: str) -> None:
    """Its result was `cancelled`, and so became the run's, though nobody had cancelled it."""
    assert (await Obstinate({"x": [HELD], "workflow.x": [HELD]}).act(plan(text))).state is RunState.TIMEOUT


async def test_a_budget_that_is_used_up_is_not_tried_again_nor_collected() -> None:
    unpaid = StepResult(RunState.FAILED, failure=RUN_BUDGET_EXCEEDED)
    context = Acting({"x": [unpaid]})
    assert await context.act(RETRY) == unpaid
    collecting = plan("parallel: {on_error: collect, " + SIDES + "}")
    context = Acting({"x": [unpaid], "y": [HELD], "z": [HELD]})
    assert (await context.act(collecting)).failure == RUN_BUDGET_EXCEEDED
    assert context.asked[-2:] == ["cancelled y", "cancelled z"]


async def test_a_branch_that_fails_is_not_hidden_by_a_pause() -> None:
    context = Acting({"x": [Paused()], "y": [FAILED], "z": [HELD]})
    assert (await context.act(TEAM)).where == ("branch 'y'",)


async def test_a_branch_that_was_cancelled_elsewhere_ends_the_step_as_cancelled() -> None:
    """A workflow of somebody else's was, for example. Asking its task how it ended used to raise, and the run had no ending."""
    context = Acting({name: [HELD] for name in "xyz"})
    acting = asyncio.create_task(context.act(TEAM))
    await context.held(3)
    context.released["y"].cancel()
    assert (await acting).state is RunState.CANCELLED


async def test_what_cannot_be_told_is_not_passed_over() -> None:
    """Nobody waited for the task that tells what a step with steps in it has come to."""

    class Mute(Acting):
        async def tell(self, progress: Sequence[Progress]) -> None:
            await super().tell(progress)
            if progress[-1].step_type == "sequential" and progress[-1].status == "completed":
                raise LogMissing

    with pytest.raises(LogMissing):
        await Mute().act(plan("sequential: [{sequential: [{agent: {upstream: a}}]}]"))


async def test_a_step_that_was_told_elsewhere_is_not_told_twice() -> None:
    context = Acting()
    context.whole = True
    assert await context.act(TEAM) == DONE
    assert context.facts().count(("team", "completed", 0.5)) == 1


async def test_nobody_hears_that_something_was_cancelled_that_goes_on_elsewhere() -> None:
    class Leaving(Acting):
        goes_on = True

    context = Leaving({name: [HELD] for name in "xyz"})
    acting = asyncio.create_task(context.act(TEAM))
    await context.held(3)
    acting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acting
    assert {one.status for one in context.told} == {"started"}
