"""Class labels -> one token, or a vector added to the time embedding."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields
from sfumato.schema import Schema


class ClassConfig(Schema):
    """A table of learned class embeddings."""

    kind: Literal["class"] = "class"
    classes: int = Field(gt=0, le=10_000_000)
    dim: int = Field(default=512, gt=0, le=65536)
    null: Literal["learned", "none"] = Field(
        default="learned", description="learned: one more row, at index `classes`, for the unconditional sample"
    )
    output: Literal["token", "vector"] = Field(
        default="token", description="token (B, 1, dim) for cross-attention; vector (B, dim) beside the time embedding"
    )


class ClassEmbedder(Conditioner):
    """Reads `label`, (B,) integers in 0 .. classes - 1; with a learned null also `classes` itself, the null class."""

    reads = ("label",)

    def __init__(self, config: ClassConfig) -> None:
        super().__init__()
        self.config = config
        self.rows = config.classes + (config.null == "learned")
        self.embedding = nn.Embedding(self.rows, config.dim)
        token = config.output == "token"
        self.spec = ConditionSpec(token_dim=config.dim) if token else ConditionSpec(vector_dim=config.dim)

    def forward(self, fields: Fields) -> Condition:
        """Raises ValueError for labels out of range or of the wrong shape."""
        return self._embed(self._labels(fields["label"]))

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        """Raises ValueError if the conditioner was built without a null class."""
        if self.config.null == "none":
            raise ValueError(
                "this class conditioner has no unconditional class (null: none), so it cannot drop or guide; "
                "set null: learned"
            )
        return self._embed(torch.full((n,), self.config.classes, device=self.embedding.weight.device))

    def _labels(self, values: Tensor | Sequence[int]) -> Tensor:
        labels = torch.as_tensor(values)  # checked on the device they are on, usually the host, and moved then
        if labels.dim() != 1:
            raise ValueError(f"labels must have the shape (B,), not {tuple(labels.shape)}")
        if labels.device.type == "cpu":  # on a GPU a check would have to wait; the look-up itself checks
            outside = labels[(labels < 0) | (labels >= self.rows)]
            if len(outside):
                raise ValueError(f"label {int(outside[0])} is out of range, labels are 0 .. {self.rows - 1}")
        return labels.to(self.embedding.weight.device, torch.long)

    def _embed(self, labels: Tensor) -> Condition:
        rows = self.embedding(labels)
        return Condition(tokens=rows[:, None]) if self.config.output == "token" else Condition(vector=rows)
