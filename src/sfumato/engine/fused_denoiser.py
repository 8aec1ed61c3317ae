"""The U-Net's blocks with their passes over memory fused; each is the plain block with another `forward`."""

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.denoiser.blocks import AttentionBlock, ResBlock, SpatialTransformer, Steering, Upsample
from sfumato.engine.attention import attend, attend_packed
from sfumato.engine.groupnorm import norm
from sfumato.engine.tokens import geglu
from sfumato.engine.upsample import upsample_conv
from sfumato.nn.transformer import GEGLU, CrossAttention, join_heads, split_heads


class FusedResBlock(ResBlock):
    """The embedding is added (or scales and shifts) inside the second norm, SiLU inside both."""

    def forward(self, x: Tensor, steering: Steering) -> Tensor:
        norm_in, _, conv_in = self.in_layers
        norm_out, _, dropout, conv_out = self.out_layers
        h = conv_in(self._resized(norm(norm_in, x, silu=True)))
        embedding = self.emb_layers(steering.embedding)
        if self.scale_shift:
            scale, shift = embedding.chunk(2, dim=1)
            h = norm(norm_out, h, silu=True, scale_shift=(scale, shift))
        else:
            h = norm(norm_out, h, silu=True, add=embedding)
        out: Tensor = self.skip_connection(self._resized(x)) + conv_out(dropout(h))
        return out


class FusedUpsample(Upsample):
    """Doubling and convolution as one convolution of the small picture."""

    def forward(self, x: Tensor, steering: Steering) -> Tensor:
        return upsample_conv(self.conv, x) if isinstance(self.conv, nn.Conv2d) else super().forward(x, steering)


class FusedAttentionBlock(AttentionBlock):
    """Attention straight from the packed projection."""

    def forward(self, x: Tensor, steering: Steering) -> Tensor:
        H, W = x.shape[2:]
        tokens = norm(self.norm, x).flatten(2).transpose(1, 2)
        qkv = F.linear(tokens, self.qkv.weight.squeeze(2), self.qkv.bias)
        attended = attend_packed(qkv, self.heads, head_first=self.order == "head_first")
        h = F.linear(attended, self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, (H, W))


class FusedSpatialTransformer(SpatialTransformer):
    """Projections as linear maps of tokens: the channels-last picture is read as tokens, never laid out anew."""

    def forward(self, x: Tensor, steering: Steering) -> Tensor:
        H, W = x.shape[2:]
        tokens = _project(self.proj_in, norm(self.norm, x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, steering.tokens, steering.mask)
        return x + _project(self.proj_out, tokens).transpose(1, 2).unflatten(2, (H, W))


class FusedCrossAttention(CrossAttention):
    """Attention without transposes."""

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (
            split_heads(to(of), self.heads) for to, of in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        out: Tensor = self.to_out(join_heads(attend(q, k, v, mask)))
        return out


class FusedGEGLU(GEGLU):
    """Gate and product in one pass."""

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x))


def _project(layer: nn.Module, tokens: Tensor) -> Tensor:
    """A linear layer, or a 1×1 convolution as one, on tokens (B, T, C)."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)
