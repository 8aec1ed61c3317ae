"""Precomputed tokens in the batch: image or text embeddings (retrieval-augmented models)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields
from sfumato.schema import Schema


class EmbeddingsConfig(Schema):
    """The field with the tokens, and their width."""

    kind: Literal["embeddings"] = "embeddings"
    field: str = Field(default="embeddings", description="the batch's field to read")
    dim: int = Field(gt=0, le=65536)
    length: int = Field(default=1, gt=0, le=65536, description="tokens of the unconditional condition, which are zeros")


class TokenIdentity(Conditioner):
    """Passes one field through, (B, M, dim); the null condition is zeros, (B, length, dim)."""

    def __init__(self, config: EmbeddingsConfig) -> None:
        super().__init__()
        self.config = config
        self.reads = (config.field,)
        self.spec = ConditionSpec(token_dim=config.dim)
        self.register_buffer("_device", torch.empty(0), persistent=False)

    def forward(self, fields: Fields) -> Condition:
        """Raises ValueError for tokens of another width."""
        tokens: Tensor = fields[self.config.field]
        if tokens.dim() != 3 or tokens.shape[2] != self.config.dim:
            expected = f"(B, M, {self.config.dim})"
            raise ValueError(f"{self.config.field} must have the shape {expected}, not {tuple(tokens.shape)}")
        return Condition(tokens=tokens.to(self.get_buffer("_device").device))

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        return Condition(tokens=self.get_buffer("_device").new_zeros(n, self.config.length, self.config.dim))
