"""Writing codes: which one, given the logits; and the loop over an image's positions."""

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
    """How a code is drawn: `temperature` 0 takes the likeliest; `top_k` codes at most (0: all); of these the likeliest
    whose probabilities reach `top_p` together."""

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
    reached = probability.cumsum(-1) - probability  # by the likelier ones alone
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
    """Codes (B, h, w), one generator a seed on the CPU: a seed draws the same image in any batch.

    With a `null` condition the logits are guided away from its own: null + guidance · (given − null); 1 is off.
    """
    h, w = network.size
    guided = null is not None and guidance != 1
    B = len(seeds)
    sources = [generator(seed, "codes") for seed in seeds]
    steering = stack([null, condition]) if guided and null is not None else condition
    logits, cache = network.begin(steering, 2 * B if guided else B)
    drawn: list[Tensor] = []
    for position in range(h * w):
        if position:
            last = torch.cat([drawn[-1], drawn[-1]]) if guided else drawn[-1]
            logits, cache = network.step(last, position, cache)
        if guided:
            without, given = logits.chunk(2)
            logits = without + guidance * (given - without)
        check_finite(logits, "transformer", "logits")
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in sources])
        drawn.append(choose(logits.float().cpu(), uniform, choice).to(logits.device))
        if callback is not None:
            callback(position)
    return torch.stack(drawn, 1).reshape(B, h, w)
