"""Feature reuse between steps: an approximation, off unless asked for.

Neighbouring steps differ least in the U-Net's deep, coarse features (DeepCache; Ma et al. 2023, section 3). `Reusing`
runs the whole network in every so many calls and keeps what the deep part gave; in the calls between, only the
outermost blocks run on either side of the network, on the call's own latent and time.
"""

import copy

import torch
from torch import Tensor

from sfumato.conditioning.condition import Condition
from sfumato.denoiser.blocks import Steering
from sfumato.denoiser.unet import UNet

OUTERMOST = 2
"""Blocks on either side that every call runs; each U-Net has as many at its highest resolution."""


class Reusing(UNet):
    """A U-Net for one walk from noise to an image; it shares the parameters of the one that it is made of."""

    every: int
    deep: Tensor | None
    age: int

    @staticmethod
    def of(unet: UNet, every: int) -> "Reusing":
        """`every` calls, at least 1, make use of one whole one, which is the first of them."""
        made = copy.copy(unet)  # its tables of blocks are the same objects
        made.__class__ = Reusing
        assert isinstance(made, Reusing)
        made.every, made.deep, made.age = every, None, 0
        return made

    def forward(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """As UNet's. A batch of another shape than the call before (as guidance begins or ends) is computed whole."""
        self._check(x_t, condition)
        steering = Steering(self._embedding(timestep, condition.vector), condition.tokens, condition.mask)
        h = x_t if condition.spatial is None else torch.cat([x_t, condition.spatial], 1)
        h = h.contiguous(memory_format=torch.channels_last)
        whole = self.deep is None or len(self.deep) != len(h) or self.age >= self.every
        skips = []
        for block in self.input_blocks if whole else self.input_blocks[:OUTERMOST]:
            h = block(h, steering)
            skips.append(h)
        if whole:
            h = self.middle_block(h, steering)
            for block in self.output_blocks[:-OUTERMOST]:
                h = block(torch.cat([h, skips.pop()], 1), steering)
            self.deep, self.age = h, 0
        assert self.deep is not None
        h = self.deep
        for block in self.output_blocks[-OUTERMOST:]:
            h = block(torch.cat([h, skips.pop()], 1), steering)
        self.age += 1
        out: Tensor = self.out(h).to(x_t.dtype)
        return out
