"""Times 3×3 convolutions with fewer products beside torch's own, forwards and backwards, and prints a table."""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import interleave
from sfumato.engine import native
from sfumato.engine.winograd import FilteredConv2d, usable
from sfumato.report.machine import processor

SHAPES = ((1, 128, 256), (1, 512, 64), (8, 160, 32), (8, 320, 16), (16, 64, 32), (32, 128, 8))
"""Batch, channels, side: two of a decoder, four of training steps."""
PARTS = ("forwards", "input", "weight")


def main() -> None:
    """Prints CPU milliseconds of torch's convolution and ours, and the ratio of all three parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolutions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="the medians are of so many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{processor()}; one thread; torch {torch.__version__}; {native.describe()}\n")
    print("| batch, channels, side | forwards | gradient of the input | of the weights | all |\n|---|---|---|---|---|")
    for batch, channels, side in SHAPES:
        x = F.silu(torch.randn(batch, channels, side, side)).contiguous(memory_format=torch.channels_last)
        layers: list[nn.Module] = [kind(channels, channels, 3, padding=1) for kind in (nn.Conv2d, FilteredConv2d)]
        for layer in layers:
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a keyword its stub lacks
        assert isinstance(layers[1], FilteredConv2d)
        if not usable(layers[1], x):
            raise SystemExit(f"the kernels do not run here: {native.describe()}")
        pairs = [_pair(layers, x, part, options.rounds) for part in PARTS]
        cells = [f"{_figure(theirs)} → {_figure(ours)}" for theirs, ours in pairs]
        theirs, ours = (sum(column) for column in zip(*pairs, strict=True))
        print(f"| {batch}, {channels}, {side} | {' | '.join(cells)} | ×{theirs / ours:.1f} |", flush=True)


def _pair(layers: list[nn.Module], x: Tensor, part: str, rounds: int) -> tuple[float, float]:
    """CPU milliseconds of torch's layer and of ours."""
    calls = {name: _call(layer, x, part) for name, layer in zip(("torch", "ours"), layers, strict=True)}
    timings = interleave(calls, rounds)
    return 1000 * timings["torch"].cpu_seconds, 1000 * timings["ours"].cpu_seconds


def _call(layer: nn.Module, x: Tensor, part: str) -> Callable[[], Tensor]:
    """A forward call, or the step back to one leaf from a result that is kept."""
    if part == "forwards":
        return lambda: layer(x).detach()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(part == "input")
    layer.requires_grad_(part == "weight")
    y = layer(x)
    leaf = x if part == "input" else layer.get_parameter("weight")
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]


def _figure(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 20 else f"{milliseconds:.1f}"


if __name__ == "__main__":
    main()
