"""The plans that ship, for tests: the same steps and texts, said at once instead of at a speaker's pace."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_SHIPPED = Path(__file__).parents[1] / "gateway" / "demo.yaml"

QUESTION = "What is a headgate?"

ANSWER = """\
Three researchers were asked. No model was, but they worked in parallel, and each of their words is in the log.

known: 1. What is known of this: What is a headgate? word at a time and every word has its place in the
doubted: 2. Who sees it differently, and why? has its place in the log so that nobody who looks away
open: 3. What would change the answer? that nobody who looks away for a moment has to ask what"""

NOTICE = "Dear all, about Version 1.0: it is done."


def shipped_models() -> Mapping[str, Any]:
    """Each durable and not; and the research plan twice more, with a first researcher who is done long before the others.

    They take a second (`eased`), or ask a server over sockets and never end (`held`). There the question is part of every prompt,
    so that the model server can tell whose it is.
    """
    text = re.sub(r"rate \d+/s", "rate max", _SHIPPED.read_text("utf-8"))
    models = _models(text)
    eased = re.sub(r"rate max; seed ([23])", r"rate 15/s; seed \1", text)
    held = re.sub(r"rate .*", r"\g<0> # {{ input }}", text.replace("upstream: demo", "upstream: wire"))
    held = re.sub(r"(seed [23] .*\n.*)say 12 words", r"\1say 2 words; hang", held)
    return {
        **models,
        **{f"{name}-none": {**model, "durability": "none"} for name, model in models.items()},
        "eased": _models(eased)["headgate-research"],
        "held": _models(held)["headgate-research"],
    }


def _models(text: str) -> Mapping[str, Any]:
    models: Mapping[str, Any] = yaml.safe_load(text)["models"]
    return models
