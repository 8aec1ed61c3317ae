"""Initialisation other than the layers' defaults, or none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)
FILLING: frozenset[Callable[..., Any]] = frozenset(
    [
        *(Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_),
        *(nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.constant_),
        *(nn.init.kaiming_uniform_, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.xavier_normal_),
    ]
)
"""Functions that change nothing but the numbers of their first argument, which they return."""


def zero_(module: M) -> M:
    """Zeroes all parameters: a residual branch that ends in such a layer starts as the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


class _Unfilled(TorchFunctionMode):
    """Tensors of the meta device have no numbers: nothing is called that would fill them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FILLING:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within the block new modules take no memory (meta device) and are not initialised.

    On that device torch runs random functions in Python, which takes longer than building the network.
    """
    with torch.device("meta"), _Unfilled():
        yield
