"""The U-Net's blocks with their passes over memory fused; each is the plain block with another `forward`.

Their convolutions and linear layers may be plain or packed (engine/packing.py).
"""

import torch
from torch import Tensor, nn

from sfumato.denoiser.blocks import AttentionBlock, BlockInputs, ResBlock, SpatialTransformer, Upsample
from sfumato.engine.attention import attend, attend_packed
from sfumato.engine.groupnorm import norm
from sfumato.engine.packing import convolve, project
from sfumato.engine.tokens import geglu
from sfumato.engine.upsample import upsample_conv
from sfumato.nn.transformer import (
    GEGLU,
    BasicTransformerBlock,
    CrossAttention,
    FeedForward,
    join_heads,
    split_heads,
)

GATES_PER_CHANNEL = 8
"""Width of a feed-forward branch per channel: four values and as many gates."""
PART_BYTES = 4 * 2**20
"""Bytes of gates processed at a time (measured)."""


class FusedResBlock(ResBlock):
    """The embedding is added (or scales and shifts) inside the second norm, SiLU inside both."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        norm_in, _, conv_in = self.in_layers
        norm_out, _, dropout, conv_out = self.out_layers
        h = conv_in(self._resized(norm(norm_in, x, silu=True)))
        embedding = self.emb_layers(inputs.embedding)
        if self.scale_shift:
            scale, shift = embedding.chunk(2, dim=1)
            h = norm(norm_out, h, silu=True, scale_shift=(scale, shift), reuse=True)
        else:
            h = norm(norm_out, h, silu=True, add=embedding, reuse=True)
        return convolve(conv_out, dropout(h), self.skip_connection(self._resized(x)))


class FusedUpsample(Upsample):
    """Upsampling and convolution as one convolution of the small image."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        return super().forward(x, inputs) if isinstance(self.conv, nn.Identity) else upsample_conv(self.conv, x)


class FusedAttentionBlock(AttentionBlock):
    """Attention straight from the packed projection."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        qkv = project(self.qkv, as_tokens(norm(self.norm, x)))
        attended = attend_packed(qkv, self.heads, head_first=self.order == "head_first")
        return as_image(project(self.proj_out, attended, as_tokens(x)), x)


class FusedSpatialTransformer(SpatialTransformer):
    """Projections as linear maps of tokens: the channels-last image is read as tokens, without a copy."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        tokens = project(self.proj_in, as_tokens(norm(self.norm, x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, inputs.tokens, inputs.mask)
        return as_image(project(self.proj_out, tokens, as_tokens(x)), x)


class FusedTransformerBlock(BasicTransformerBlock):
    """Each sum with the input inside the branch's last projection."""

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        x = add_branch(self.attn1, x, self.norm1(x))
        x = add_branch(self.attn2, x, self.norm2(x), context, mask)
        return add_branch(self.ff, x, self.norm3(x))


class FusedCrossAttention(CrossAttention):
    """Attention without transposes."""

    def attended(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """All but the last projection: (B, T, H·D)."""
        source = x if context is None else context
        q, k, v = (
            split_heads(to(of), self.heads) for to, of in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        return join_heads(attend(q, k, v, mask))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.to_out(self.attended(x, context, mask))
        return out


class FusedGEGLU(GEGLU):
    """Gate and product in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x))


def add_branch(branch: nn.Module, x: Tensor, *inputs: Tensor | None) -> Tensor:
    """x + branch(*inputs), in one pass over the branch's last projection unless dropout follows it."""
    if isinstance(branch, FusedCrossAttention):
        last, dropout = branch.to_out
        if not (dropout.training and dropout.p):
            arguments = (*inputs, None, None)
            assert arguments[0] is not None
            return project(last, branch.attended(arguments[0], arguments[1], arguments[2]), x)
    if isinstance(branch, FeedForward):
        (tokens,) = inputs
        assert tokens is not None
        return add_feed_forward(branch, x, tokens)
    out: Tensor = x + branch(*inputs)
    return out


def add_feed_forward(branch: FeedForward, x: Tensor, tokens: Tensor) -> Tensor:
    """x + branch(tokens), (B, T, C); on the CPU without gradients in parts, so that the gates fit in the cache."""
    gate, dropout, last = branch.net
    parts = 1
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        rows, gates = x.shape[0] * x.shape[1], GATES_PER_CHANNEL * x.numel() * x.element_size()
        while gates > parts * PART_BYTES and rows % (2 * parts) == 0:
            parts *= 2
    if parts == 1:
        return project(last, dropout(gate(tokens)), x)
    out = torch.empty_like(x)
    pieces = (t.flatten(0, 1).chunk(parts) for t in (out, x, tokens))
    for to, residual, part in zip(*pieces, strict=True):
        to.copy_(project(last, dropout(gate(part)), residual))
    return out


def as_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H·W, C), a view of a channels-last image."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def as_image(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, H·W, C) -> (B, C, H, W) with the H and W of another image, a view."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
