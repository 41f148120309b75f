"""What can be asked: the list of models and each by its name."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI

from compat_tests.manifest import promise
from compat_tests.raw import Raw


@promise("models.list")
def test_models_are_listed_in_a_stable_order(raw: Raw) -> None:
    """openai.md §3: those that are named, then those that the upstreams of prefixes serve."""
    listed = raw.send("GET", "/v1/models").json
    assert listed == raw.send("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert all(card.keys() == {"id", "object", "created", "owned_by"} for card in listed["data"])
    assert all(card["object"] == "model" for card in listed["data"])
    names = [card["id"] for card in listed["data"]]
    assert names[:4] == ["demo", "demo-none", "wire", "wire-none"]
    assert names[-2:] == ["wire/scripted", "scripted"]


@promise("models.list")
async def test_the_sdk_lists_models(client: OpenAI, async_client: AsyncOpenAI) -> None:
    """openai.md §3."""
    assert [card.id for card in client.models.list()][:2] == ["demo", "demo-none"]
    assert [card.id async for card in async_client.models.list()][:2] == ["demo", "demo-none"]


@promise("models.one")
@pytest.mark.parametrize("name", ["demo", "wire/scripted", "wire/org/model:7b", "any thing ✓"])
def test_the_sdk_retrieves_a_model_also_with_slashes_in_its_name(client: OpenAI, name: str) -> None:
    """openai.md §3: by URL-encoded id; a pass-through name too."""
    card = client.models.retrieve(name)
    assert (card.id, card.object) == (name, "model")


@promise("models.one")
def test_a_model_is_found_with_its_slash_encoded_or_not(raw: Raw) -> None:
    """openai.md §3."""
    plain, encoded = raw.send("GET", "/v1/models/wire/scripted"), raw.send("GET", "/v1/models/wire%2Fscripted")
    assert plain.json == encoded.json == {"id": "wire/scripted", "object": "model", "created": 1, "owned_by": "me"}


@promise("models.one", "sdk.errors")
def test_the_sdk_raises_not_found_for_an_unknown_model(brisk_client: OpenAI) -> None:
    """openai.md §1.12."""
    with pytest.raises(NotFoundError) as raised:
        brisk_client.models.retrieve("no/such")
    assert raised.value.code == "model_not_found"
