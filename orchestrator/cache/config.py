"""What `models.<name>.cache` of the configuration says. No I/O."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


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
