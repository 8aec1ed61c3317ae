"""A classifier of noisy latents: the lower half of the denoiser's U-Net, and attention pooling over its output.

(x_t, t) -> logits, as ADM-G's (Dhariwal & Nichol 2021, section 4), for guidance by its gradient.
"""

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.blocks import BlockInputs
from sfumato.denoiser.unet import UNet, UNetConfig
from sfumato.nn.attention import attend
from sfumato.nn.embeddings import timestep_embedding
from sfumato.nn.norm import GroupNorm32
from sfumato.schema import Schema


class ClassifierConfig(Schema):
    """Width, depth and classes of the classifier."""

    encoder: UNetConfig = UNetConfig(channels=64, scale_shift_norm=True)
    """The U-Net whose downsampling half is the classifier's network."""

    @field_validator("encoder")
    @classmethod
    def _no_student(cls, value: UNetConfig) -> UNetConfig:
        if value.flow_map:
            raise ValueError("encoder.flow_map is for students, and a classifier is given one time: leave it out")
        return value

    classes: int | None = Field(default=None, ge=2, le=10_000_000, description="by default as many as the data has")
    pooling_head_channels: int = Field(
        default=32, gt=0, le=65536, description="channels of a head of the attention pooling"
    )


class AttentionPool(nn.Module):
    """The mean position attends to all positions: (B, C, H, W) -> (B, out).

    ADM's attention pooling without its table of positions, so that latents may have any size.
    """

    def __init__(self, channels: int, out: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(2).transpose(1, 2)  # (B, H·W, C)
        tokens = torch.cat([positions.mean(1, keepdim=True), positions], 1)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        pooled = attend(q[:, :, :1], k, v).transpose(1, 2).flatten(1)
        out: Tensor = self.project(pooled)
        return out


class NoisyClassifier(nn.Module):
    """Logits (B, classes) of noisy latents; the parameter names of the lower half are the U-Net's.

    Raises ValueError where pooling_head_channels does not divide the channels of the lowest level.
    """

    def __init__(self, config: ClassifierConfig, latent_channels: int, classes: int) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.latent_channels = latent_channels
        whole = UNet(config.encoder, latent_channels, ConditionSpec())
        self.time_embed = whole.time_embed
        self.input_blocks = whole.input_blocks
        self.middle_block = whole.middle_block
        channels = config.encoder.channels * config.encoder.channel_multipliers[-1]
        if channels % config.pooling_head_channels:
            raise ValueError(
                f"pooling_head_channels {config.pooling_head_channels} does not divide the {channels} channels of the "
                "lowest level"
            )
        self.out = nn.Sequential(
            GroupNorm32(config.encoder.norm_groups, channels),
            nn.SiLU(),
            AttentionPool(channels, classes, config.pooling_head_channels),
        )

    def forward(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """x_t (B, latent_channels, H, W), H and W multiples of the encoder's factor; timestep: network time (B,)."""
        first = self.time_embed[0]
        assert isinstance(first, nn.Linear)
        embedding = self.time_embed(timestep_embedding(timestep, self.config.encoder.channels).to(first.weight.dtype))
        inputs = BlockInputs(embedding)
        h = x_t
        for block in self.input_blocks:
            h = block(h, inputs)
        out: Tensor = self.out(self.middle_block(h, inputs))
        return out
