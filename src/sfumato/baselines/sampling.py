"""Sampling codes: the choice of one from its logits, and the loop over an image's positions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.baselines.network import CodeTransformer
from sfumato.conditioning.condition import Condition, stack
from sfumato.errors import UserError
from sfumato.pipeline.latents import check_finite
from sfumato.rng import generator


@dataclass(frozen=True)
class Choice:
    """How a code is sampled: `temperature` 0 chooses the likeliest; among at most `top_k` codes (0: all), and of these
    the likeliest whose probabilities add up to `top_p`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature {self.temperature:g}, top-k {self.top_k} and top-p {self.top_p:g} must be at least 0, "
                "at least 0 (all), and above 0 up to 1"
            )


def choose(logits: Tensor, uniform: Tensor, choice: Choice) -> Tensor:
    """Codes (B,) long by inverting the distribution at `uniform` (B,) in [0, 1), from logits (B, K); float64 inside."""
    if choice.temperature == 0:
        return logits.argmax(-1)
    probability, order = (logits.double() / choice.temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
    if choice.top_k:
        probability[:, choice.top_k :] = 0
    reached = probability.cumsum(-1) - probability  # of the likelier ones alone
    total = probability.sum(-1, keepdim=True)
    probability = torch.where(reached < choice.top_p * total, probability, 0)
    edges = probability.cumsum(-1)
    place = torch.searchsorted(edges, uniform.double()[:, None] * edges[:, -1:], right=True)
    last = (probability > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, place.minimum(last))[:, 0]


@torch.no_grad()
def sample_codes(
    network: CodeTransformer,
    condition: Condition,
    null: Condition | None,
    seeds: Sequence[int],
    choice: Choice = Choice(),
    guidance: float = 1.0,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Codes (B, h, w), one generator per seed on the CPU: a seed gives the same image in any batch.

    With a `null` condition the logits are guided away from its own: null + guidance · (conditional − null); 1 is off.
    """
    h, w = network.size
    guided = null is not None and guidance != 1
    B = len(seeds)
    sources = [generator(seed, "codes") for seed in seeds]
    prefix = stack([null, condition]) if guided and null is not None else condition
    logits, cache = network.begin(prefix, 2 * B if guided else B)
    codes: list[Tensor] = []
    for position in range(h * w):
        if position:
            last = torch.cat([codes[-1], codes[-1]]) if guided else codes[-1]
            logits, cache = network.step(last, position, cache)
        if guided:
            null_logits, conditional = logits.chunk(2)
            logits = null_logits + guidance * (conditional - null_logits)
        check_finite(logits, "transformer", "logits")
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in sources])
        codes.append(choose(logits.float().cpu(), uniform, choice).to(logits.device))
        if callback is not None:
            callback(position)
    return torch.stack(codes, 1).reshape(B, h, w)
