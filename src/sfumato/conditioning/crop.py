"""Where the visible part of an image is in the whole: the crop conditioning of SDXL (Podell et al. 2023, section 2.2).

Training on random crops teaches that objects may be cut off. A network conditioned on the visible part can sample the
whole image afterwards, in any shape.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields
from sfumato.nn.embeddings import timestep_embedding
from sfumato.nn.init import zero_
from sfumato.schema import Schema

CROP = "crop_box"
"""The field: [x, y, width, height] of the visible part, as shares of the whole image."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
_SPAN = 1000.0
"""Shares in [0, 1] become numbers up to this, the range for which the sinusoids are made."""


class CropConfig(Schema):
    """A vector from the place of the crop in its image; `conditions.crop` gives the field."""

    kind: Literal["crop"] = "crop"
    dim: int = Field(default=64, gt=1, le=65536)


class CropEmbedder(Conditioner):
    """Reads `crop_box`, (B, 4). The unconditional vector is zero, and so is every vector at initialisation."""

    reads = (CROP,)

    def __init__(self, config: CropConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = ConditionSpec(vector_dim=config.dim)
        self.layers = nn.Sequential(
            nn.Linear(4 * config.dim, config.dim), nn.SiLU(), zero_(nn.Linear(config.dim, config.dim))
        )

    def forward(self, fields: Fields) -> Condition:
        boxes = torch.as_tensor(fields[CROP], dtype=torch.float32)
        weight = next(self.layers.parameters())
        numbers = timestep_embedding(_SPAN * boxes.to(weight.device).flatten(), self.config.dim)
        return Condition(vector=self.layers(numbers.view(len(boxes), -1).to(weight.dtype)))

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        weight = next(self.layers.parameters())
        return Condition(vector=torch.zeros(n, self.config.dim, device=weight.device, dtype=weight.dtype))


def whole_boxes(count: int) -> Tensor:
    """(count, 4): each sample shows its whole image."""
    return torch.tensor([WHOLE] * count)
