"""Feature reuse between steps: an approximation, off by default.

Neighbouring steps differ least in the U-Net's deep, coarse features (DeepCache; Ma et al. 2023, section 3). `Reusing`
runs the whole network in every n-th call and keeps the output of the deep part; in the other calls only the
outermost blocks run on either side of the network, on the call's latent and time.
"""

import copy

import torch
from torch import Tensor

from sfumato.conditioning.condition import Condition
from sfumato.denoiser.blocks import BlockInputs
from sfumato.denoiser.unet import UNet

OUTERMOST = 2
"""Blocks on either side that run in every call; each U-Net has at least this many at its highest resolution."""


class Reusing(UNet):
    """A U-Net for one sampling trajectory; it shares the parameters of the original."""

    every: int
    deep: Tensor | None
    age: int

    @staticmethod
    def of(unet: UNet, every: int) -> "Reusing":
        """The first of every `every` calls (at least 1) is complete; the others reuse its features."""
        reusing = copy.copy(unet)  # its tables of blocks are the same objects
        reusing.__class__ = Reusing
        assert isinstance(reusing, Reusing)
        reusing.every, reusing.deep, reusing.age = every, None, 0
        return reusing

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """As UNet's. A batch whose shape differs from the last call's (as guidance begins or ends) is computed
        completely."""
        self._check(x_t, condition)
        inputs = BlockInputs(self._embedding(timestep, condition.vector), condition.tokens, condition.mask)
        h = x_t if condition.spatial is None else torch.cat([x_t, condition.spatial], 1)
        h = h.contiguous(memory_format=torch.channels_last)
        whole = self.deep is None or len(self.deep) != len(h) or self.age >= self.every
        skips = []
        for block in self.input_blocks if whole else self.input_blocks[:OUTERMOST]:
            h = block(h, inputs)
            skips.append(h)
        if whole:
            h = self.middle_block(h, inputs)
            for block in self.output_blocks[:-OUTERMOST]:
                h = block(torch.cat([h, skips.pop()], 1), inputs)
            self.deep, self.age = h, 0
        assert self.deep is not None
        h = self.deep
        for block in self.output_blocks[-OUTERMOST:]:
            h = block(torch.cat([h, skips.pop()], 1), inputs)
        self.age += 1
        out: Tensor = self.out(h).to(x_t.dtype)
        return out
