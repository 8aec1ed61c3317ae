"""Shared by all denoisers: the embedding of time and vector, the check of their inputs, recomputation of blocks."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.denoiser.blocks import BlockInputs
from sfumato.denoiser.flow_map import FlowMapEmbedding
from sfumato.nn.embeddings import timestep_embedding

VectorProjection = Literal["mlp", "none"]


class Denoiser(nn.Module):
    """Predicts from (x_t, timestep, condition) a tensor of x_t's shape.

    Set `checkpointing` to trade time for memory: activations inside a block are then recomputed in the backward pass.

    Args:
        channels: of the sinusoids of time.
        factor: H and W of the latent must be multiples of this.
        flow_map: the network is a student's, see `flow_map.step_inputs`.
        latent_channels: channels of x_t and of the prediction.
        spec: the fields of Condition it requires.
        vector_projection: "none" adds the condition's vector as it is.
        embedding_dim: entries of the embedding of time; by default four times the channels.

    Raises:
        ValueError: the spec's vector does not have embedding_dim entries and vector_projection is "none".
    """

    factor_of = "2 ** (levels - 1)"
    """The settings that determine the factor."""

    def __init__(
        self,
        channels: int,
        factor: int,
        flow_map: bool,
        latent_channels: int,
        spec: ConditionSpec,
        vector_projection: VectorProjection = "mlp",
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.spec = spec
        self.checkpointing = False
        self._channels, self._factor, self._is_flow_map = channels, factor, flow_map
        described = "4 x channels" if embedding_dim is None else "width"
        embedding_dim = embedding_dim or 4 * channels
        self.time_embed = nn.Sequential(
            nn.Linear(channels, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        )
        if flow_map:
            self.flow_map = FlowMapEmbedding(channels, embedding_dim)
        if spec.vector_dim is not None:
            self.label_emb = _projection(spec.vector_dim, embedding_dim, vector_projection, described)

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The prediction, (B, latent_channels, H, W).

        Args:
            x_t: noisy latent (B, latent_channels, H, W); H and W multiples of the configuration's factor.
            timestep: (B,) network time 0 .. T - 1, integer or float; of a student (B, 3): the network times of the
                step's beginning and end, and the guidance scale, see `flow_map.step_inputs`.
            condition: exactly the fields of `spec`; token positions where its mask is False are not attended.

        Raises:
            ValueError: a field is missing, not expected or misshapen; H or W is not a multiple.
        """
        raise NotImplementedError

    def recomputed_blocks(self) -> Iterator[nn.Module]:
        """The blocks whose activations `checkpointing` recomputes, each called with (h, inputs)."""
        raise NotImplementedError

    def first_layer(self) -> nn.Conv2d:
        """The layer that reads the latent, whose input needs no gradient."""
        raise NotImplementedError

    def _inputs(self, timestep: Tensor, condition: Condition) -> BlockInputs:
        return BlockInputs(self._embedding(timestep, condition.vector), condition.tokens, condition.mask)

    def _run(self, block: nn.Module, h: Tensor, inputs: BlockInputs) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(block, h, inputs, use_reentrant=False)
            return recomputed
        out: Tensor = block(h, inputs)
        return out

    def _embedding(self, timestep: Tensor, vector: Tensor | None) -> Tensor:
        """Time embedding (B, embedding_dim), the condition's vector added."""
        first = self.time_embed[0]
        assert isinstance(first, nn.Linear)
        now = timestep[:, 0] if self._is_flow_map else timestep
        embedding: Tensor = self.time_embed(self._sinusoids(now).to(first.weight.dtype))
        if self._is_flow_map:
            embedding = embedding + self.flow_map(timestep)
        return embedding if vector is None else embedding + self.label_emb(vector)

    def _sinusoids(self, timestep: Tensor) -> Tensor:
        """The input of the time embedding, (B, channels) float32, from network times (B,)."""
        return timestep_embedding(timestep, self._channels)

    def _check(self, x_t: Tensor, condition: Condition) -> None:
        B, C, H, W = x_t.shape
        if self.latent_channels != C:
            raise ValueError(f"x_t has {C} channels, the denoiser was built for {self.latent_channels}")
        factor = self._factor
        if H % factor or W % factor:
            raise ValueError(f"the latent's size {H}x{W} must be a multiple of {factor} in H and W ({self.factor_of})")
        spec = self.spec
        spatial = (B, spec.spatial_channels, H, W) if spec.spatial_channels else None
        _check_field("vector", condition.vector, None if spec.vector_dim is None else (B, spec.vector_dim))
        _check_field("tokens", condition.tokens, None if spec.token_dim is None else (B, -1, spec.token_dim))
        _check_field("spatial", condition.spatial, spatial)
        if condition.mask is not None:
            _check_field(
                "mask", condition.mask, None if condition.tokens is None else tuple(condition.tokens.shape[:2])
            )


def _projection(vector_dim: int, embedding_dim: int, kind: VectorProjection, described: str) -> nn.Module:
    if kind == "mlp":
        layers = nn.Linear(vector_dim, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        return nn.Sequential(nn.Sequential(*layers))  # nested: the key names of later checkpoints with vectors
    if vector_dim != embedding_dim:
        raise ValueError(
            f"vector_projection none needs a condition vector of {described} = {embedding_dim} entries, "
            f"not {vector_dim}; set vector_projection to mlp or change the conditioner's width"
        )
    return nn.Identity()


def _check_field(name: str, value: Tensor | None, shape: tuple[int, ...] | None) -> None:
    """Raises ValueError unless the field is present exactly when a shape is expected (-1: any size)."""
    if shape is None:
        if value is not None:
            raise ValueError(f"condition.{name} is given, but the denoiser was built without it")
        return
    if value is None:
        raise ValueError(f"condition.{name} is missing, the denoiser was built for {_spelt(shape)}")
    if len(shape) != value.dim() or any(e not in (-1, s) for e, s in zip(shape, value.shape, strict=True)):
        raise ValueError(f"condition.{name} has shape {tuple(value.shape)}, expected {_spelt(shape)}")


def _spelt(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join("any" if s == -1 else str(s) for s in shape) + ")"
