"""Further inputs of a student's network beside the time: the end of its step, and the guidance scale.

Both are added to the time embedding by layers that begin at zero: a student that has its teacher's weights computes
exactly what the teacher does, for every end and every scale (as ControlNet's zero convolutions, Zhang et al. 2023).
"""

import math

import torch
from torch import Tensor, nn

from sfumato.nn.embeddings import timestep_embedding
from sfumato.nn.init import zero_

SCALES = 1000 / math.log(8)
"""The logarithm of guidance scales from 1 to 8 as numbers from 0 to 1000, the range of the sinusoids' usual times."""


class FlowMapEmbedding(nn.Module):
    """The embedding (B, embedding_dim) of a step's length and of the guidance scale.

    Zero at initialisation: the last layer of both branches is.
    """

    def __init__(self, channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.length = _branch(channels, embedding_dim)
        self.guidance = _branch(channels, embedding_dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs (B, 3): see `step_inputs`."""
        now, end, scale = inputs.float().unbind(1)
        dtype = next(self.parameters()).dtype
        length = timestep_embedding(now - end, self.channels).to(dtype)
        guidance = timestep_embedding(SCALES * torch.log(scale), self.channels).to(dtype)
        embedding: Tensor = self.length(length) + self.guidance(guidance)
        return embedding


def _branch(channels: int, embedding_dim: int) -> nn.Sequential:
    last = zero_(nn.Linear(embedding_dim, embedding_dim))
    return nn.Sequential(nn.Linear(channels, embedding_dim), nn.SiLU(), last)


def step_inputs(now: Tensor, end: Tensor, scale: Tensor | float) -> Tensor:
    """(B, 3) float32 from the network times (B,) of a step's beginning and end, and guidance scales above 0, one or
    (B,)."""
    scales = torch.as_tensor(scale, dtype=torch.float32, device=now.device).expand(len(now))
    return torch.stack([now.float(), end.float(), scales], 1)
