"""Counting tokens, for upstreams that do not say. The vocabularies ship with the package: nothing is ever downloaded.

Counts are exact for text up to `SLICE` characters with the vocabulary of the model, and good estimates beyond and for models
whose vocabulary is not public; usage made here is always flagged as estimated. A vocabulary takes about half a second to build
and 100 MB or so to hold, so each is built once, when first needed, off the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import lzma
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Any

import msgspec
import tiktoken

from orchestrator.upstreams.upstream import Usage

INLINE_CHARS = 2_000
"""Shorter text is counted where it is: handing it to a thread would cost more."""

SLICE = 20_000
"""Longer text is counted in slices: a run of one character must not take time or stack that grows faster than its length."""

MAX_CHARS = 4_000_000
"""Beyond this the rest is taken to be like what was counted."""


_AS_JSON = ("tools", "functions", "response_format")

IMAGE_TOKENS = 765
"""An image of 1024 by 1024 at high detail, for want of its size."""


class _Vocabulary(msgspec.Struct, frozen=True):
    """What tiktoken pins for an encoding (tiktoken_ext/openai_public.py). Special tokens never occur in counted text."""

    sha256: str
    pattern: str


_VOCABULARIES: Mapping[str, _Vocabulary] = {
    "o200k_base": _Vocabulary(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "|".join(
            (
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
                r"""\p{N}{1,3}""",
                r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
                r"""\s*[\r\n]+""",
                r"""\s+(?!\S)""",
                r"""\s+""",
            )
        ),
    ),
    "cl100k_base": _Vocabulary(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"""
        r"""\s*[\r\n]|\s+(?!\S)|\s""",
    ),
}

_CL100K_MODELS = ("gpt-4-", "gpt-3.5", "gpt-35", "text-embedding-")


def encoding_name(model: str) -> str:
    """The vocabulary of a model, by name; o200k_base for all that are not known to use an older one."""
    name = model.rsplit("/", 1)[-1].lower()
    return "cl100k_base" if name == "gpt-4" or name.startswith(_CL100K_MODELS) else "o200k_base"


def same_prompt(model: str, body: Mapping[str, Any], other_model: str, other_body: Mapping[str, Any]) -> bool:
    """Whether `count_messages` counts the same for both, told without counting."""
    return encoding_name(model) == encoding_name(other_model) and all(
        (body.get(key) or None) == (other_body.get(key) or None) for key in ("messages", *_AS_JSON)
    )


def load_vocabulary(name: str) -> tiktoken.Encoding:
    """Read, verify and build. Raises ValueError if the shipped file is not the one that tiktoken pins."""
    packed = files(__package__).joinpath("vocabularies", f"{name}.tiktoken.xz").read_bytes()
    raw = lzma.decompress(packed)
    vocabulary = _VOCABULARIES[name]
    if hashlib.sha256(raw).hexdigest() != vocabulary.sha256:
        raise ValueError(f"The vocabulary {name} in this installation is damaged.")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in raw.splitlines() if line)}
    return tiktoken.Encoding(name, pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={})


class Tokenizer:
    """One per process; safe to use from several threads."""

    def __init__(self, load: Callable[[str], tiktoken.Encoding] = load_vocabulary) -> None:
        self._load = load
        self._encodings: dict[str, tiktoken.Encoding] = {}
        self._loading = threading.Lock()

    async def count(self, model: str, text: str) -> int:
        """How many tokens `text` is for `model`."""
        name = encoding_name(model)
        if name in self._encodings and len(text) <= INLINE_CHARS:
            return self._count(name, text)
        return await asyncio.to_thread(self._count, name, text)

    async def count_messages(self, model: str, body: Mapping[str, Any]) -> int:
        """The prompt tokens of an OpenAI-shaped request: messages with their framing, and tools as JSON."""
        name = encoding_name(model)
        if name in self._encodings and _short(body):
            return self._count_messages(name, body)
        return await asyncio.to_thread(self._count_messages, name, body)

    async def usage(self, model: str, body: Mapping[str, Any], answer: str) -> Usage:
        """What a call used, estimated because its upstream did not say."""
        prompt = await self.count_messages(model, body)
        completion = await self.count(model, answer)
        return Usage(prompt, completion, prompt + completion, estimated=True)

    def _count_messages(self, name: str, body: Mapping[str, Any]) -> int:
        # 3 tokens frame each message, 1 more goes with a name, 3 open the answer (OpenAI cookbook, "How to count tokens").
        total = 3
        for message in body.get("messages") or ():
            if isinstance(message, dict):
                total += 3 + ("name" in message) + IMAGE_TOKENS * _images(message)
                total += sum(self._count(name, text) for text in _texts(message))
        for key in _AS_JSON:
            if body.get(key):
                total += self._count(name, msgspec.json.encode(body[key]).decode())
        return total

    def _count(self, name: str, text: str) -> int:
        encoding = self._encoding(name)
        if len(text) > MAX_CHARS:
            return self._count(name, text[:MAX_CHARS]) * len(text) // MAX_CHARS
        return sum(len(encoding.encode_ordinary(part)) for part in slices(text))

    def _encoding(self, name: str) -> tiktoken.Encoding:
        if (encoding := self._encodings.get(name)) is not None:
            return encoding
        with self._loading:
            if (encoding := self._encodings.get(name)) is None:
                encoding = self._encodings[name] = self._load(name)
            return encoding


def slices(text: str) -> Iterator[str]:
    """`text` in parts of at most SLICE characters, cut before a space or line where one is near."""
    start = 0
    while len(text) - start > SLICE:
        end = start + SLICE
        for mark in ("\n", " "):
            cut = text.rfind(mark, end - 200, end)
            if cut > start:
                end = cut
                break
        yield text[start:end]
        start = end
    yield text[start:]


def _short(body: Mapping[str, Any]) -> bool:
    """Whether the messages are all there is to count, and few characters. Looks at no more of them than that takes."""
    if any(body.get(key) for key in _AS_JSON):
        return False
    left = INLINE_CHARS
    for message in body.get("messages") or ():
        if isinstance(message, dict):
            if message.get("tool_calls"):
                return False
            left -= sum(map(len, _texts(message)))
            if left < 0:
                return False
    return True


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    for key in ("role", "name", "tool_call_id", "refusal", "reasoning_content"):
        if isinstance(message.get(key), str):
            yield message[key]
    content = message.get("content")
    if isinstance(content, str):
        yield content
    yield from (part["text"] for part in _parts(message) if isinstance(part.get("text"), str))
    for call in message.get("tool_calls") or ():
        yield msgspec.json.encode(call).decode()


def _images(message: Mapping[str, Any]) -> int:
    return sum(part.get("type") == "image_url" for part in _parts(message))


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
