"""The autoencoder's blocks with norm and SiLU in one pass; each is the plain block with another `forward`."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from sfumato.autoencoder.convnet import Decoder, Encoder, GroupNorm, ResidualBlock, SoftmaxAttention, Upsample
from sfumato.engine.attention import attend
from sfumato.engine.fused_denoiser import as_image, as_tokens
from sfumato.engine.groupnorm import norm
from sfumato.engine.packing import convolve, project
from sfumato.engine.upsample import upsample_conv


class FusedGroupNorm(GroupNorm):
    """A norm without a following SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(self, x)


class FusedResidualBlock(ResidualBlock):
    """SiLU inside both norms, the sum inside the last convolution."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm(self.norm1, x, silu=True))
        h = self.dropout(norm(self.norm2, h, silu=True, reuse=True))
        return convolve(self.conv2, h, self.nin_shortcut(x) if self.widens else x)


class FusedSoftmaxAttention(SoftmaxAttention):
    """Attention without transposes."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = as_tokens(norm(self.norm, x))
        q, k, v = (project(layer, tokens).unsqueeze(1) for layer in (self.q, self.k, self.v))
        return as_image(project(self.proj_out, attend(q, k, v).squeeze(1), as_tokens(x)), x)


class FusedUpsample(Upsample):
    """Upsampling and convolution as one convolution of the small image."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv(self.conv, x)


class FusedEncoder(Encoder):
    """SiLU inside the last norm."""

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(norm(self.norm_out, self.mid(h), silu=True, reuse=True))


class FusedDecoder(Decoder):
    """SiLU inside the last norm."""

    def forward(self, h: Tensor) -> Tensor:
        h = self.mid(self.conv_in(h))
        for level in reversed(cast(Sequence[nn.Module], self.up)):
            h = level(h)
        return self.conv_out(norm(self.norm_out, h, silu=True, reuse=True))
