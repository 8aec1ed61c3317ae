"""Predicts the mean image of a condition: a small head on the condition's tokens, for an added loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditioning.condition import Condition
from sfumato.conditioning.encoder import sinusoids
from sfumato.nn.transformer import CrossAttention, FeedForward

SIDE = 4
"""Positions along each axis at which the mean is predicted: enough to show which object is left or above."""
WIDTH = 64
HEADS = 2


class ConditionMean(nn.Module):
    """Predicts the mean clean latent E[x_0 | c], averaged to SIDE × SIDE, from the tokens of the condition c alone.

    That is the denoiser's own task at t = 1, without its noise and without its depth. Each position of the latent is a
    query that attends to the tokens. The head is trained and saved with the run, and is no part of the model.
    """

    def __init__(self, token_dim: int, latent_channels: int) -> None:
        super().__init__()
        axis = sinusoids(SIDE, WIDTH // 2)
        grid = torch.cat([axis[:, None].expand(-1, SIDE, -1), axis[None].expand(SIDE, -1, -1)], 2)
        self.queries = nn.Parameter(grid.reshape(SIDE * SIDE, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = CrossAttention(WIDTH, HEADS, WIDTH // HEADS, token_dim)
        self.feed_forward = FeedForward(WIDTH)
        self.out = nn.Linear(WIDTH, latent_channels)

    def forward(self, condition: Condition) -> Tensor:
        """The prediction (B, latent_channels, SIDE, SIDE). Raises ValueError for a condition without tokens."""
        if condition.tokens is None:
            raise ValueError("the condition has no tokens to predict a mean from")
        x = self.queries.expand(len(condition.tokens), -1, -1)
        x = x + self.attention(self.norms[0](x), condition.tokens, condition.mask)
        x = x + self.feed_forward(self.norms[1](x))
        mean: Tensor = self.out(self.norms[2](x))
        return mean.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def mean_loss(predicted: Tensor, x0: Tensor) -> Tensor:
    """The squared error (B,), float32, of a predicted mean (B, C, s, s) of clean latents x0 (B, C, h, w)."""
    _, _, H, W = predicted.shape
    wanted = F.adaptive_avg_pool2d(x0.float(), (H, W))
    return (predicted.float() - wanted).square().flatten(1).mean(1)
