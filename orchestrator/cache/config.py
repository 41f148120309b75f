"""What `models.<name>.cache` of the configuration says. No I/O."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class SemanticConfig(BaseModel):
    """Whether the answer to a question that means the same is given as well."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    upstream: str = Field(description="An upstream of kind `openai` whose `/v1/embeddings` tells what a question means.")
    embedding_model: str = Field(min_length=1, description="The model's name there.")
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="The least cosine similarity of two questions that are given one answer."
    )
    ttl_s: PositiveFloat = Field(default=3600.0, description="How long after the answer; not longer than log.retention_hours.")
    max_entries: Annotated[int, Field(ge=1, le=20_000)] = Field(
        default=1000, description="Questions that are remembered per tenant and model; beyond it the oldest go."
    )
    wait_s: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.5, description="The longest a request waits to be compared; after that it is answered anew."
    )


class CacheConfig(BaseModel):
    """Whether an answer is given again to whoever asks the same, and for how long. Of one tenant only, always."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exact: Literal[True] = Field(description="The very same question, however its JSON is written, is given the recorded answer.")
    ttl_s: PositiveFloat = Field(
        default=3600.0, description="For how long after it was asked. Not longer than log.retention_hours: the log is the record."
    )
    any_temperature: bool = Field(
        default=False, description="Also requests whose temperature is not 0: whoever asks again gets the same dice."
    )
    side_effects: bool = Field(
        default=False,
        description="Also answers for which tools of the server ran or people were asked, which is not done again.",
    )
    semantic: SemanticConfig | None = Field(
        default=None, description="None: only the very same question. Otherwise needs PostgreSQL with pgvector 0.7 or newer."
    )
