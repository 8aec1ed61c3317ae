"""A batch is its samples: B unlike every other axis, H unlike W, and each result depends on its sample alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tiny
from sfumato.autoencoder import losses
from sfumato.autoencoder.bottleneck import gaussian_kl, gaussian_sample
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.condition import Condition, select, stack
from sfumato.diffusion import objective
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.prediction import target, to_x0
from sfumato.diffusion.process import add_noise, posterior
from sfumato.diffusion.schedule import ScaledLinearConfig, build_schedule
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.sampling.guidance import Projected, Rescaled, linear

B, C, H, W = 5, 3, 8, 12
SCHEDULE = build_schedule(ScaledLinearConfig())
MODEL = tiny.model()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y, Z = (randn(B, C, H, W, seed=seed) for seed in range(3))
T = torch.linspace(0.1, 1.0, B, dtype=torch.float64)
S = T / 2
IMAGE, OTHER = torch.rand(B, 3, 16, 24), torch.rand(B, 3, 16, 24)
TOKENS, MASK = randn(B, 7, 16, seed=5), torch.arange(7) < torch.arange(1, B + 1)[:, None]
CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "add_noise": (lambda x, y, t: add_noise(SCHEDULE, x, y, t), (X, Y, T)),
    "posterior": (lambda x, y, t, s: posterior(SCHEDULE, x, y, t, s).mean, (X, Y, T, S)),
    "to_x0-eps": (lambda x, y, t: to_x0("eps", x, y, *SCHEDULE(t)), (X, Y, S)),
    "to_x0-v": (lambda x, y, t: to_x0("v", x, y, *SCHEDULE(t)), (X, Y, S)),
    "target-v": (lambda x, y, t: target("v", x, y, *SCHEDULE(t)), (X, Y, T)),
    "loss": (
        lambda p, x, y, t: objective.loss(
            ObjectiveConfig.model_validate({"weighting": {"kind": "min-snr"}, "elbo_weight": 0.1}), SCHEDULE, p, x, y, t
        ),
        (Z, X, Y, T),
    ),
    "guidance": (linear, (X, Y, T)),
    "guidance-rescaled": (Rescaled(), (X, Y, T)),
    "guidance-projected": (Projected(limit=1.0), (X, Y, T)),
    "scaling": (Scaling(torch.arange(3.0), torch.arange(1.0, 4.0)).to_model, (X,)),
    "gaussian_sample": (gaussian_sample, (randn(B, 2 * C, H, W), Y)),
    "gaussian_kl": (gaussian_kl, (randn(B, 2 * C, H, W),)),
    "with_perceptual": (lambda x, d: losses.with_perceptual(x, d, 0.5), (X.abs(), T.float())),
    "psnr": (psnr, (IMAGE, OTHER)),
    "ssim": (ssim, (IMAGE, OTHER)),
    "encode": (lambda x, n: MODEL.autoencoder.encode(x, n).z, (IMAGE, Y)),
    "decode": (MODEL.autoencoder.decode, (X,)),
    "denoiser": (
        lambda x, t, c, m: MODEL.second.denoiser(x, (t * 999).float(), Condition(tokens=c, mask=m)),  # type: ignore[union-attr]
        (X, T, TOKENS, MASK),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_samples(name: str) -> None:
    function, arguments = CASES[name]
    with torch.no_grad():
        together = function(*arguments)
        apart = torch.cat([function(*(a[b : b + 1] for a in arguments)) for b in range(B)])
    assert together.shape[0] == B
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1]), "the samples should differ"


def test_conditions_are_picked_and_stacked_by_sample() -> None:
    other = Condition(vector=randn(B, 4, seed=1), tokens=TOKENS + 1, mask=~MASK, spatial=X + 1)
    one = Condition(vector=randn(B, 4), tokens=TOKENS, mask=MASK, spatial=X)
    keep = torch.tensor([True, False, False, True, False])
    picked, stacked = select(keep, one, other).tensors(), stack([other, one]).tensors()
    for name, value in one.tensors().items():
        for b in range(B):
            wanted = value if keep[b] else other.tensors()[name]
            assert torch.equal(picked[name][b], wanted[b])
        assert torch.equal(stacked[name], torch.cat([other.tensors()[name], value]))
