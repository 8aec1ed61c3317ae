"""The base of every configuration: frozen, and strict about unknown keys."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """A typed, immutable configuration; an unknown key is an error (sfumato.config names the nearest known one).

    Its numbers are finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
