"""Counts against those that tiktoken is known for, without a network."""

from __future__ import annotations

import hashlib
import inspect
import lzma
import time
from importlib.resources import files

import pytest
import tiktoken
from tiktoken_ext import openai_public  # type: ignore[import-untyped]

from orchestrator.upstreams import tokens
from orchestrator.upstreams.tokens import SLICE, Tokenizer, encoding_name, load_vocabulary, slices
from orchestrator.upstreams.upstream import Usage


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
def test_the_vocabularies_are_those_that_tiktoken_pins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash and pattern are copied here; this compares them with the installed tiktoken, so that an update is noticed."""
    packed = files("orchestrator.upstreams").joinpath("vocabularies", f"{name}.tiktoken.xz").read_bytes()
    definition = getattr(openai_public, name)
    assert hashlib.sha256(lzma.decompress(packed)).hexdigest() in inspect.getsource(definition)
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    assert load_vocabulary(name)._pat_str == definition()["pat_str"]


@pytest.mark.parametrize(
    ("model", "text", "count"),
    [
        ("gpt-4o", "", 0),
        ("gpt-4o", "hello world", 2),
        ("gpt-4o", "tiktoken is great!", 6),
        ("gpt-4", "tiktoken is great!", 6),
        ("gpt-4", "antidisestablishmentarianism", 6),
        ("gpt-4", "2 + 2 = 4", 7),
        ("gpt-4", "お誕生日おめでとう", 9),
        ("gpt-4o", "お誕生日おめでとう", 8),
        ("gpt-4o", "<|endoftext|>", 7),
    ],
)
async def test_known_counts(tokenizer: Tokenizer, model: str, text: str, count: int) -> None:
    assert await tokenizer.count(model, text) == count


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4.1-mini", "o200k_base"),
        ("openai/gpt-4-turbo", "cl100k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("qwen3", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_the_vocabulary_of_a_model(model: str, name: str) -> None:
    assert encoding_name(model) == name


async def test_messages(tokenizer: Tokenizer) -> None:
    """The example of OpenAI's cookbook, "How to count tokens", which counts 129 for gpt-4 and 124 for gpt-4o."""
    messages = [
        {
            "role": "system",
            "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain English.",
        },
        {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
        {"role": "system", "name": "example_assistant", "content": "Things working well together will increase revenue."},
        {
            "role": "system",
            "name": "example_user",
            "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
        },
        {
            "role": "system",
            "name": "example_assistant",
            "content": "Let's talk later when we're less busy about how to do better.",
        },
        {
            "role": "user",
            "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
        },
    ]
    assert await tokenizer.count_messages("gpt-4", {"messages": messages}) == 129
    assert await tokenizer.count_messages("gpt-4o", {"messages": messages}) == 124


async def test_everything_in_a_request_counts(tokenizer: Tokenizer) -> None:
    plain = await tokenizer.count_messages("gpt-4o", {"messages": [{"role": "user", "content": "hello world"}]})
    parts = [{"type": "text", "text": "hello world"}, {"type": "image_url", "image_url": {"url": "data:"}}, None, 5]
    assert (
        await tokenizer.count_messages("gpt-4o", {"messages": [{"role": "user", "content": parts}]})
        == plain + tokens.IMAGE_TOKENS
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (
        await tokenizer.count_messages("gpt-4o", {"messages": [{"role": "user", "content": "hello world"}], "tools": tools})
        > plain
    )
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}]}
    assert await tokenizer.count_messages("gpt-4o", {"messages": [called]}) > 10


async def test_usage_is_flagged_as_estimated(tokenizer: Tokenizer) -> None:
    body = {"messages": [{"role": "user", "content": "hello world"}]}
    assert await tokenizer.usage("gpt-4o", body, "hello") == Usage(9, 1, 10, estimated=True)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "^", "0", "A.", "漢", "😀", "\u0300", "\ud800"])
async def test_no_text_takes_long(tokenizer: Tokenizer, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.monotonic()
    assert await tokenizer.count("gpt-4o", text) > 1000
    assert time.monotonic() - start < 5


async def test_beyond_the_limit_the_rest_is_taken_to_be_alike(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_CHARS", 1000)
    assert await tokenizer.count("gpt-4o", "hello " * 1000) == pytest.approx(1000, rel=0.01)


def test_slices_lose_nothing_and_cut_at_spaces() -> None:
    text = "some words " * 5000
    parts = list(slices(text))
    assert "".join(parts) == text
    assert all(len(part) <= SLICE for part in parts)
    assert all(part.startswith(" ") for part in parts[1:])
    assert list(slices("x" * (SLICE + 1))) == ["x" * SLICE, "x"]


async def test_a_vocabulary_is_loaded_once() -> None:
    loaded: list[str] = []

    def load(name: str) -> tiktoken.Encoding:
        loaded.append(name)
        return tiktoken.Encoding(
            "tiny", pat_str=".", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
        )

    tokenizer = Tokenizer(load)
    assert [await tokenizer.count("m", "abc") for _ in range(3)] == [3, 3, 3]
    assert loaded == ["o200k_base"]


def test_a_damaged_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lzma, "decompress", lambda _: b"IQ== 0\n")
    with pytest.raises(ValueError, match="o200k_base in this installation is damaged"):
        load_vocabulary("o200k_base")
