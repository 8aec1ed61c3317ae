"""Initialisation other than the layers' defaults."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def zero_(module: M) -> M:
    """Zeroes all parameters: a residual branch that ends in such a layer starts as the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module
