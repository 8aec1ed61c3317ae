"""The twelve schedule buffers of original checkpoints: float64 formulas, cast to float32 (DDPM, eqs. 4-7)."""

import torch
from torch import Tensor


def schedule_buffers(betas: Tensor, v_posterior: float = 0.0) -> dict[str, Tensor]:
    """Key -> float32 (T,), from the float64 betas (T,)."""
    betas = betas.double()
    alphas = 1 - betas
    cumprod = alphas.cumprod(0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), cumprod[:-1]])
    variance = (1 - v_posterior) * betas * (1 - previous) / (1 - cumprod) + v_posterior * betas
    buffers = {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - cumprod).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - cumprod).log(),
        "sqrt_recip_alphas_cumprod": (1 / cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / cumprod - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - cumprod),
        "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / (1 - cumprod),
    }
    return {name: value.float() for name, value in buffers.items()}


def lvlb_weights(buffers: dict[str, Tensor]) -> Tensor:
    """The original's weights of the variational bound for eps prediction, (T,), from its float32 buffers.

    It computes them in float32, `diffusion.objective.elbo_weight` in float64: they differ by some 1e-6.
    """
    betas = buffers["betas"]
    weights = betas**2 / (2 * buffers["posterior_variance"] * (1 - betas) * (1 - buffers["alphas_cumprod"]))
    weights[0] = weights[1]  # the variance of the first step is 0
    return weights
