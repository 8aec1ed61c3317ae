"""The diffusion transformer's attention without transposes; the plain layer with another `forward`."""

from torch import Tensor

from sfumato.denoiser.dit import Attention
from sfumato.engine.attention import attend_packed


class FusedAttention(Attention):
    """Attention straight from the packed projection."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(attend_packed(self.qkv(x), self.heads))
        return out
