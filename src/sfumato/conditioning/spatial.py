"""Maps and images -> spatial condition, concatenated with x_t on the channels (§4.3.2 and §4.4-4.5 of the paper)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields
from sfumato.schema import Schema


class SemanticConfig(Schema):
    """A label map at the image's size, resized to the latent's."""

    kind: Literal["semantic"] = "semantic"
    classes: int = Field(default=182, ge=0, le=65536, description="0: as many as the data has")
    channels: int = Field(default=3, gt=0, le=65536, description="channels given to the denoiser")
    stages: int = Field(default=2, ge=0, le=10, description="halvings from the map's size to the latent's")
    void: int | None = Field(default=None, description="an id that means no class, such as 255")


class SpatialRescaler(Conditioner):
    """Reads `map`: integer ids (B, H, W) or (B, 1, H, W), or one-hot / soft classes (B, classes, H, W) float.

    A learned 1×1 projection (key channel_mapper) and bilinear halvings. Both are linear and commute, so the projection
    comes first: ids become a look-up, and no one-hot map of full size is ever made. The null map is no class anywhere.
    """

    reads = ("map",)

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.classes, config.channels, 1, bias=False)
        self.spec = ConditionSpec(spatial_channels=config.channels)

    def prepare(self, fields: Fields) -> dict[str, Any]:
        """`map` unchanged, ids checked: another part may read it with other classes."""
        values: Tensor = fields["map"]
        if not values.is_floating_point():
            self._rows(values)
        return {"map": values}

    def forward(self, fields: Fields) -> Condition:
        """spatial (B, channels, H / 2^stages, W / 2^stages); ValueError for other shapes or ids out of range."""
        values: Tensor = fields["map"]
        x = self.channel_mapper(self._soft(values)) if values.is_floating_point() else self._look_up(values)
        factor = 2**self.config.stages
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"the map's size {x.shape[2]}x{x.shape[3]} must be a multiple of {factor} in H and W")
        for _ in range(self.config.stages):
            x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        return Condition(spatial=x)

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        return Condition(spatial=self.channel_mapper.weight.new_zeros(n, self.config.channels, *size))

    def _soft(self, values: Tensor) -> Tensor:
        if values.dim() != 4 or values.shape[1] != self.config.classes:
            raise ValueError(f"a float map must be (B, {self.config.classes}, H, W), not {tuple(values.shape)}")
        return values.to(self.channel_mapper.weight.device)

    def _look_up(self, values: Tensor) -> Tensor:
        ids = self._rows(values)
        rows = F.pad(self.channel_mapper.weight.flatten(1), (0, 1)).t()  # one more row of zeros for void
        return F.embedding(ids.to(rows.device), rows).permute(0, 3, 1, 2)

    def _rows(self, values: Tensor) -> Tensor:
        """Ids (B, H, W) with void as `classes`; those on a GPU are not checked."""
        ids = values[:, 0] if values.dim() == 4 and values.shape[1] == 1 else values
        if ids.dim() != 3:
            raise ValueError(f"a map of ids must be (B, H, W) or (B, 1, H, W), not {tuple(values.shape)}")
        classes, void = self.config.classes, self.config.void
        ids = ids.long()
        if void is not None:
            ids = torch.where(ids == void, classes, ids)
        allowed = classes - (void is None)
        outside = ids[(ids < 0) | (ids > allowed)] if ids.device.type == "cpu" else ids[:0]
        if outside.numel():
            raise ValueError(f"map id {int(outside[0])} is out of range, ids are 0 .. {classes - 1}")
        return ids


class ImageConfig(Schema):
    """An image or latent already at the latent's size: a low-resolution image, a masked latent, a mask."""

    kind: Literal["image"] = "image"
    field: str = Field(default="low_resolution", description="the batch's field to read")
    channels: int = Field(default=3, gt=0, le=65536)


class SpatialIdentity(Conditioner):
    """Passes one field through, (B, channels, h, w); the null condition is zeros. A composite combines several."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.reads = (config.field,)
        self.spec = ConditionSpec(spatial_channels=config.channels)
        self.register_buffer("_device", torch.empty(0), persistent=False)

    def forward(self, fields: Fields) -> Condition:
        """Raises ValueError for another number of channels."""
        values: Tensor = fields[self.config.field]
        if values.dim() != 4 or values.shape[1] != self.config.channels:
            expected = f"(B, {self.config.channels}, h, w)"
            raise ValueError(f"{self.config.field} must have the shape {expected}, not {tuple(values.shape)}")
        return Condition(spatial=values.to(self.get_buffer("_device").device))

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        return Condition(spatial=self.get_buffer("_device").new_zeros(n, self.config.channels, *size))
