"""Fitting a regenerated answer onto what was sent: whatever is emitted, a reader ends with exactly the new answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agents.splice import Reset, Splice
from orchestrator.agents.transcript import Transcript
from orchestrator.upstreams.upstream import Delta


def said(*deltas: Delta) -> Transcript:
    transcript = Transcript()
    for delta in deltas:
        transcript.add(delta)
    return transcript


def spliced(sent: Transcript, again: Iterable[Delta]) -> list[Delta | Reset]:
    splice = Splice(sent)
    out: list[Delta | Reset] = []
    for delta in again:
        out += splice.feed(delta)
    return out + list(splice.end())


def text(content: str) -> Delta:
    return Delta(content=content)


def tool(index: int, arguments: str, *, call_id: str | None = None, name: str | None = None) -> Delta:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    call: dict[str, object] = {"index": index, "function": function}
    return Delta(
        tool_calls=[call if call_id is None else {"index": index, "id": call_id, "type": "function", "function": function}]
    )


def test_what_agrees_is_silent_and_the_rest_follows() -> None:
    assert spliced(said(text("Hello ")), [text("Hel"), text("lo wo"), text("rld")]) == [text("wo"), text("rld")]


def test_nothing_was_sent() -> None:
    assert spliced(said(), [text("a"), text("b")]) == [text("a"), text("b")]


def test_the_first_difference_is_named_and_the_new_text_follows_from_there() -> None:
    assert spliced(said(text("Hello world")), [text("Hello "), text("there"), text("!")]) == [
        Reset(0, 6),
        text("there"),
        text("!"),
    ]


def test_a_shorter_answer_unsays_the_rest() -> None:
    assert spliced(said(text("one two")), [text("one")]) == [Reset(0, 3)]


def test_choices_are_compared_each_for_itself() -> None:
    sent = said(Delta(0, content="a"), Delta(1, content="x"))
    again = [Delta(1, content="y"), Delta(0, content="ab")]
    assert spliced(sent, again) == [Reset(1, 0), Delta(1, content="y"), Delta(0, content="b")]


def test_a_tool_call_goes_on_under_the_id_that_was_sent() -> None:
    sent = said(tool(0, '{"city"', call_id="call_1", name="weather"))
    again = [tool(0, "", call_id="call_2", name="weather"), tool(0, '{"city":"Paris"}')]
    assert spliced(sent, again) == [Delta(tool_calls=[{"index": 0, "function": {"arguments": ':"Paris"}'}}])]


def test_the_older_function_call_is_fitted_in_the_same_way() -> None:
    sent = said(Delta(function_call={"name": "f", "arguments": '{"a"'}))
    again = [Delta(function_call={"name": "f", "arguments": ""}), Delta(function_call={"arguments": '{"a":1}'})]
    assert spliced(sent, again) == [Delta(function_call={"arguments": ":1}"})]
    other = [Delta(function_call={"name": "g", "arguments": "{}"})]
    assert spliced(sent, other) == [Reset(0, 0), Delta(function_call={"name": "g", "arguments": "{}"})]


def test_another_tool_starts_the_choice_over() -> None:
    sent = said(text("Let me see. "), tool(0, "{}", call_id="call_1", name="weather"))
    again = [text("Let me see. "), tool(0, "{}", call_id="call_2", name="time")]
    assert spliced(sent, again) == [
        Reset(0, 0),
        text("Let me see. "),
        Delta(tool_calls=[{"index": 0, "id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}}]),
    ]


def test_different_reasoning_starts_the_choice_over() -> None:
    sent = said(Delta(reasoning="I think"), text("Yes"))
    assert spliced(sent, [Delta(reasoning="Well"), text("Yes")]) == [Reset(0, 0), Delta(reasoning="Well"), text("Yes")]


def test_content_that_differs_before_the_reasoning_was_repeated_starts_over() -> None:
    sent = said(Delta(reasoning="I think"), text("Yes"))
    assert spliced(sent, [text("No")]) == [Reset(0, 0), text("No")]


def _deltas(texts: Sequence[tuple[int, str, str]]) -> list[Delta]:
    return [Delta(choice, **{kind: part}) for choice, kind, part in texts]


PARTS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(["content", "reasoning", "refusal"]), st.text("ab", min_size=1, max_size=3)),
    max_size=8,
)


@given(sent=PARTS, again=PARTS)
def test_a_reader_ends_with_exactly_the_new_answer(sent: list[tuple[int, str, str]], again: list[tuple[int, str, str]]) -> None:
    reader = said(*_deltas(sent))
    for part in spliced(said(*_deltas(sent)), _deltas(again)):
        if isinstance(part, Reset):
            reader.choices[part.choice].cut(part.offset)
        else:
            reader.add(part)
    assert reader.tracks() == said(*_deltas(again)).tracks()


@given(whole=PARTS, cut=st.integers(0, 8))
def test_the_same_answer_again_never_unsays_anything(whole: list[tuple[int, str, str]], cut: int) -> None:
    out = spliced(said(*_deltas(whole[:cut])), _deltas(whole))
    assert not any(isinstance(part, Reset) for part in out)
    assert (
        said(*_deltas(whole[:cut]), *(part for part in out if isinstance(part, Delta))).tracks() == said(*_deltas(whole)).tracks()
    )
