"""The diffusion transformer: tokens of patches, and blocks whose norms are conditioned on time and class (adaLN-zero).

Peebles and Xie 2023 (arXiv 2212.09748), section 3.2; SiT (Ma et al. 2024, arXiv 2401.08740) has the same network. Its
parameter names are the published ones, but for `time_embed`, which all denoisers share. Tokens of a text or layout are
attended between the two branches of a block, by a layer whose output is zero at the beginning (as PixArt-α, Chen et al.
2024, arXiv 2310.00426, section 2.3; here with a norm before it). Maps and masks are concatenated to the latent.
"""

from collections.abc import Iterator
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.denoiser.blocks import BlockInputs
from sfumato.denoiser.network import Denoiser, VectorProjection
from sfumato.nn.attention import attend
from sfumato.nn.embeddings import timestep_embedding
from sfumato.nn.init import zero_
from sfumato.nn.transformer import CrossAttention
from sfumato.schema import Schema

EPS = 1e-6
FREQUENCIES = 256
"""Channels of the sinusoids of time, whatever the width."""
SIT_STEPS = 1000
"""Steps of the schedule whose network times `time: clean-share` reads."""
LATER_SETTINGS = ("time_frequencies", "feed_forward_eps")
"""Settings that were added later: at their defaults a model keeps the digest that it had before."""


class DiTConfig(Schema):
    """Width and depth of the diffusion transformer; the defaults are those of DiT-S/2, the smallest published one.

    Example:
        >>> config = DiTConfig(kind="dit", patch=2, width=192, depth=4, heads=3)
        >>> config.factor
        2
    """

    kind: Literal["dit"] = "dit"
    patch: int = Field(default=2, ge=1, le=64, description="side of a patch of the latent, which becomes one token")
    width: int = Field(
        default=384, gt=0, le=65536, multiple_of=4, description="channels of a token, a multiple of 4 and of heads"
    )
    depth: int = Field(default=12, ge=1, le=256, description="number of blocks")
    heads: int = Field(default=6, ge=1, le=65536, description="number of attention heads, a divisor of width")
    expansion: int = Field(default=4, ge=1, le=16, description="width inside a feed-forward branch, in widths")
    position_grid: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="patches over which positions count along the longer side of any latent, which interpolates them; "
        "null: positions count patches, as published, and a larger latent continues them",
    )
    time: Literal["index", "clean-share"] = Field(
        default="index",
        description="what the network is given as time: the step, 0 to 999, as DiT; or 1 - t, as SiT, with schedules "
        "of 1000 steps",
    )
    time_frequencies: Literal["open", "closed"] = Field(
        default="open",
        description="frequencies at which time is embedded, i = 0 to 127: 10000^(-i / 128), as published; or closed, "
        "10000^(-i / 127), as in the DiTPipeline of diffusers",
    )
    feed_forward_eps: float = Field(
        default=EPS,
        ge=1e-12,
        le=1e-2,
        description="added to the variance in the norm before a feed-forward branch: 1e-6 as published, 1e-5 in the "
        "DiTPipeline of diffusers",
    )
    vector_projection: VectorProjection = Field(
        default="mlp", description="none: the condition's vector already has `width` entries, as the published ones"
    )
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    flow_map: bool = Field(
        default=False,
        description="the network of a student: it is also given the end of the step and the guidance scale",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide the width of {self.width} channels")
        return self

    @property
    def factor(self) -> int:
        """H and W of the latent must be multiples of this."""
        return self.patch


def positions(h: int, w: int, width: int, grid: int | None, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the columns, then of the rows, of h × w patches: (h · w, width) float32, row by row.

    Frequencies 10000^(-4i / width), i < width / 4 (as MAE, He et al. 2022, and DiT). With `grid`, positions are scaled
    by grid / max(h, w) on both axes.
    """
    scale = 1.0 if grid is None else grid / max(h, w)
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)

    def axis(n: int) -> Tensor:
        angles = (torch.arange(n, dtype=torch.float32, device=device) * scale)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)  # (n, width / 2)

    columns, rows = axis(w)[None].expand(h, -1, -1), axis(h)[:, None].expand(-1, w, -1)
    return torch.cat([columns, rows], 2).flatten(0, 1)


class Attention(nn.Module):
    """Self-attention of tokens (B, T, width); keys qkv and proj, channels of qkv (q k v, head, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two layers around the tanh form of GELU; keys fc1 and fc2."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.dropout(F.gelu(self.fc1(x), approximate="tanh")))
        return out


class DiTBlock(nn.Module):
    """Self-attention and feed-forward, each after a norm that is scaled and shifted, and added through a gate."""

    def __init__(self, config: DiTConfig, token_dim: int | None) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn = Attention(width, config.heads)
        if token_dim is not None:
            self.norm_cross = nn.LayerNorm(width, EPS, elementwise_affine=False)
            self.cross_attn = CrossAttention(width, config.heads, width // config.heads, token_dim, config.dropout)
        self.norm2 = nn.LayerNorm(width, config.feed_forward_eps, elementwise_affine=False)
        self.mlp = FeedForward(width, config.expansion * width, config.dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x (B, T, width) -> the same shape."""
        modulation = self.adaLN_modulation(inputs.embedding)[:, None].to(x.dtype)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=2)
        x = x + gate * self.attn(normed(self.norm1, x) * (1 + scale) + shift)
        if inputs.tokens is not None:
            x = x + self.cross_attn(normed(self.norm_cross, x), inputs.tokens, inputs.mask)
        return x + mlp_gate * self.mlp(normed(self.norm2, x) * (1 + mlp_scale) + mlp_shift)


class FinalLayer(nn.Module):
    """Tokens -> patches: a modulated norm and a linear layer; channels of a patch are (row, column, channel)."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, T, width) -> (B, T, patch · patch · channels)."""
        shift, scale = self.adaLN_modulation(embedding)[:, None].to(x.dtype).chunk(2, dim=2)
        out: Tensor = self.linear(normed(self.norm_final, x) * (1 + scale) + shift)
        return out


class DiT(Denoiser):
    """Predicts from (x_t, timestep, condition) a tensor of x_t's shape.

    Args:
        config: the topology.
        latent_channels: channels of x_t and of the prediction.
        spec: the fields of Condition it requires.

    Raises:
        ValueError: the spec's vector does not have `width` entries and vector_projection is "none".

    Example:
        >>> config = DiTConfig(width=64, depth=2, heads=2)
        >>> network = DiT(config, latent_channels=4, spec=ConditionSpec(token_dim=16))
        >>> condition = Condition(tokens=torch.zeros(2, 5, 16))
        >>> network(torch.zeros(2, 4, 8, 6), torch.tensor([10, 500]), condition).shape
        torch.Size([2, 4, 8, 6])
    """

    factor_of = "the patch"

    def __init__(self, config: DiTConfig, latent_channels: int, spec: ConditionSpec) -> None:
        super().__init__(
            FREQUENCIES,
            config.factor,
            config.flow_map,
            latent_channels,
            spec,
            config.vector_projection,
            embedding_dim=config.width,
        )
        self.config = config
        channels = latent_channels + spec.spatial_channels
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, config.width, config.patch, stride=config.patch)})
        self.blocks = nn.ModuleList(DiTBlock(config, spec.token_dim) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, config.patch, latent_channels)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """As published: Xavier's uniform distribution, biases of zero, and zero where a branch or the network ends."""
        for part in (self.x_embedder, self.blocks):
            for layer in part.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight.flatten(1))
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        for layer in self.time_embed:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            zero_(block.adaLN_modulation[1])
            if self.spec.token_dim is not None:
                zero_(block.cross_attn.to_out[0])
        zero_(self.final_layer.adaLN_modulation[1])
        zero_(self.final_layer.linear)

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        self._check(x_t, condition)
        inputs = self._inputs(timestep, condition)
        patches = self.x_embedder["proj"](
            x_t if condition.spatial is None else torch.cat([x_t, condition.spatial], 1)
        )  # (B, width, H / patch, W / patch)
        h, w = patches.shape[2:]
        places = positions(h, w, self.config.width, self.config.position_grid, patches.device)
        tokens = patches.flatten(2).transpose(1, 2) + places.to(patches.dtype)  # (B, T, width)
        for block in self.blocks:
            tokens = self._run(block, tokens, inputs)
        out = self.final_layer(tokens, inputs.embedding)  # (B, T, patch · patch · channels)
        p = self.config.patch
        channels = out.unflatten(2, (p * p, self.latent_channels)).permute(0, 3, 2, 1).flatten(1, 2)
        return F.pixel_shuffle(channels.unflatten(2, (h, w)), p)

    def _sinusoids(self, timestep: Tensor) -> Tensor:
        time = timestep if self.config.time == "index" else 1 - (timestep.float() + 1) / SIT_STEPS
        return timestep_embedding(time, FREQUENCIES, includes_lowest=self.config.time_frequencies == "closed")

    def recomputed_blocks(self) -> Iterator[nn.Module]:
        return iter(self.blocks)

    def first_layer(self) -> nn.Conv2d:
        layer = self.x_embedder["proj"]
        assert isinstance(layer, nn.Conv2d)
        return layer


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Tokens (B, T, C) normalised over C in float32, in the type of x."""
    out: Tensor = norm(x.float())
    return out.to(x.dtype)
