"""Group norm in float32, whatever the precision and the memory layout around it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm32(nn.GroupNorm):
    """Group norm computed in float32 and returned in the input's type.

    This works around two problems of PyTorch's channels-last kernels on the CPU. In bfloat16 they are two to four
    times slower, forward and backward, than the casts and the float32 kernel together. In float32 they compute the
    variance as E[x²] - E[x]², which loses digits where the mean is large; a group's level is therefore subtracted
    first.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = self._levelled(x) if x.dtype == torch.float32 else x.float()
        return F.group_norm(y, self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)

    def _levelled(self, x: Tensor) -> Tensor:
        """x minus a constant for each group (its mean at the first position), which changes no output."""
        if x.device.type != "cpu" or x.dim() != 4 or x.is_contiguous():
            return x
        level = x.detach()[:, :, :1, :1].unflatten(1, (self.num_groups, -1)).mean(2, keepdim=True)
        per_channel = level.expand(-1, -1, x.shape[1] // self.num_groups, -1, -1)
        return x - per_channel.flatten(1, 2)
