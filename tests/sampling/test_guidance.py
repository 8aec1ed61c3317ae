"""Guidance wrappers: nothing at scale 1, the paper's combination in noise space, and what each variant promises."""

import math

import pytest
import torch

from oracles import dataset, gaussian, no_noise
from sfumato.diffusion.prediction import convert
from sfumato.diffusion.schedule import FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.errors import UserError
from sfumato.sampling.ancestral import DDIM
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.guidance import (
    STIFF,
    Momentum,
    Projected,
    Rescaled,
    autoguidance,
    by_parts,
    classifier_free,
    corrected,
    linear,
    toward,
    toward_image,
)
from sfumato.sampling.loop import sample

LINEAR = build_schedule(ScaledLinearConfig())
T = torch.tensor(0.6, dtype=torch.float64)
SHAPE = (2, 3, 5, 7)


def tensors(n):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(n)]


class Halves:
    """A conditional and a null prediction, counting the calls of each."""

    def __init__(self):
        self.x, self.conditional, self.null = tensors(3)
        self.asked = []

    def cond(self, x_t, t):
        self.asked.append("cond")
        return self.conditional

    def both(self, x_t, t):
        self.asked.append("both")
        return self.conditional, self.null


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("config", [ScaledLinearConfig(), FlowConfig()], ids=repr)
def test_combining_clean_latents_is_combining_predictions(kind, config):
    """e = e_u + s (e_c - e_u), the original's formula, for every kind that is affine in x0."""
    schedule = build_schedule(config)
    x_t, conditional, null = tensors(3)
    alpha, sigma = schedule(T)
    c, u = (convert("x0", kind, x0, x_t, alpha, sigma) for x0 in (conditional, null))
    expected = convert(kind, "x0", u + 7.5 * (c - u), x_t, alpha, sigma)
    torch.testing.assert_close(linear(conditional, null, 7.5), expected, rtol=1e-9, atol=1e-9)


def test_the_scale_is_one_per_sample_where_it_is_a_vector():
    h = Halves()
    guided = classifier_free(h.cond, h.both, torch.tensor([1.0, 3.0]))(h.x, T)
    torch.testing.assert_close(guided[0], h.conditional[0])
    torch.testing.assert_close(guided[1], 3 * h.conditional[1] - 2 * h.null[1])


@pytest.mark.parametrize("scale", [1, 1.0, torch.ones(2)])
def test_scale_one_asks_only_the_conditional_half(scale):
    h = Halves()
    assert torch.equal(classifier_free(h.cond, h.both, scale)(h.x, T), h.conditional)
    assert h.asked == ["cond"]


def test_outside_the_interval_only_the_conditional_half_is_computed():
    h = Halves()
    guided = classifier_free(h.cond, h.both, 4.0, interval=(0.3, 0.6))
    for t in [0.9, 0.6, 0.45, 0.3, 0.1]:
        x0 = guided(h.x, torch.tensor(t, dtype=torch.float64))
        assert torch.equal(x0, linear(h.conditional, h.null, 4.0) if 0.3 <= t <= 0.6 else h.conditional)
    assert h.asked == ["cond", "both", "both", "both", "cond"]
    whole, bare = (classifier_free(h.cond, h.both, 4.0, **k) for k in ({"interval": (0.0, 1.0)}, {}))
    assert torch.equal(whole(h.x, T), bare(h.x, T))
    for wrong in [(0.6, 0.3), (-0.1, 0.5), (0.5, 1.1)]:
        with pytest.raises(UserError, match="interval"):
            classifier_free(h.cond, h.both, 4.0, interval=wrong)


def test_rescaling_brings_back_each_samples_spread():
    h = Halves()
    guided = classifier_free(h.cond, h.both, 6.0, combine=Rescaled(1.0))(h.x, T)
    torch.testing.assert_close(guided.std((1, 2, 3)), h.conditional.std((1, 2, 3)))
    plain = classifier_free(h.cond, h.both, 6.0, combine=Rescaled(0.0))(h.x, T)
    torch.testing.assert_close(plain, linear(h.conditional, h.null, 6.0))
    half = classifier_free(h.cond, h.both, 6.0, combine=Rescaled(0.5))(h.x, T)
    torch.testing.assert_close(half, (guided + plain) / 2)


def test_projection_removes_what_lies_along_the_conditional_latent():
    h = Halves()
    guided = classifier_free(h.cond, h.both, 6.0, combine=Projected(parallel=0.0))(h.x, T)
    added = (guided - h.conditional).flatten(1)
    assert (added * h.conditional.flatten(1)).sum(1).abs().max() < 1e-9
    assert added.abs().max() > 1
    plain = classifier_free(h.cond, h.both, 6.0, combine=Projected(parallel=1.0))(h.x, T)
    torch.testing.assert_close(plain, linear(h.conditional, h.null, 6.0))


def test_projection_limits_the_difference():
    h = Halves()
    limited = classifier_free(h.cond, h.both, 3.0, combine=Projected(parallel=1.0, limit=0.5))(h.x, T)
    norms = (limited - h.conditional).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((2,), 2 * 0.5, dtype=torch.float64))
    wide = classifier_free(h.cond, h.both, 3.0, combine=Projected(parallel=1.0, limit=1e6))(h.x, T)
    torch.testing.assert_close(wide, linear(h.conditional, h.null, 3.0))
    assert math.isinf(Projected().limit)


def test_adaptive_projected_guidance_is_the_published_one():
    """Momentum, then the norm, then the projection, over three steps; theirs in its original form."""
    theirs = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    momentum = Momentum(-0.5)
    buffer, ours = theirs.MomentumBuffer(-0.5), Projected(parallel=0.2, limit=4.0, momentum=momentum)
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        momentum.begin_step()
        conditional, null = (torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
        expected = theirs.normalized_guidance(conditional, null, 5.0, buffer, 0.2, 4.0, use_original_formulation=True)
        torch.testing.assert_close(ours(conditional, null, 6.0), expected)


def test_guidances_nest():
    h = Halves()
    inner = Projected(parallel=0.0)
    both = classifier_free(h.cond, h.both, 6.0, combine=Rescaled(1.0, inner))(h.x, T)
    torch.testing.assert_close(both.std((1, 2, 3)), h.conditional.std((1, 2, 3)))
    projected = inner(h.conditional, h.null, 6.0)
    ratio = h.conditional.std((1, 2, 3), keepdim=True) / projected.std((1, 2, 3), keepdim=True)
    torch.testing.assert_close(both, projected * ratio)


def test_autoguidance_goes_away_from_the_worse_model():
    good, bad, x = gaussian(LINEAR, 0.5, 0.1), gaussian(LINEAR, 0.2, 0.4), tensors(1)[0]
    expected = bad(x, T) + 2.0 * (good(x, T) - bad(x, T))
    torch.testing.assert_close(autoguidance(good, bad, 2.0)(x, T), expected)
    torch.testing.assert_close(autoguidance(good, bad, 2.0, interval=(0.0, 0.5))(x, T), good(x, T))
    torch.testing.assert_close(autoguidance(good, bad, 1.0)(x, T), good(x, T))


@pytest.mark.parametrize("of", ["noisy", "clean"])
def test_guiding_by_a_likelihood_is_bayes_rule_for_gaussians(of):
    """Data N(0, 1), observation y = x0 + noise of variance 1: the exact posterior mean of x0, at every time.

    For "noisy" the exact p(y | x_t) is used. For "clean" the likelihood of the expected clean latent stands in for it,
    with the variance that makes both equal.
    """
    y, prior = 1.2, gaussian(LINEAR, 0.0, 1.0)
    alpha, sigma = (float(v) for v in LINEAR(T))
    x = tensors(1)[0]
    # x0 | x_t is N(alpha x_t, sigma²) since alpha² + sigma² = 1, so y | x_t is N(alpha x_t, sigma² + 1)

    def log_likelihood(value, t):
        mean = alpha * value if of == "noisy" else value
        return -((y - mean) ** 2 / (2 * (sigma**2 + 1))).flatten(1).sum(1)

    exact = alpha * x + sigma**2 / (sigma**2 + 1) * (y - alpha * x)
    with torch.no_grad():
        guided = toward(prior, LINEAR, log_likelihood, 1.0, of)(x, T)
    torch.testing.assert_close(guided, exact)
    torch.testing.assert_close(toward(prior, LINEAR, log_likelihood, 0.0, of)(x, T), prior(x, T))


def test_image_guidance_moves_towards_a_loss_of_zero():
    """On N(0, 1) x0 = alpha x_t, and a loss |x0 - y| is as steep all the way: the step is exact, but for STIFF."""
    prior, x = gaussian(LINEAR, 0.0, 1.0), tensors(1)[0]
    y, alpha = 3.0, float(LINEAR(T)[0])

    def distance(x0):
        return (x0 - y).flatten(1).norm(dim=1)

    with torch.no_grad():
        for scale in (0.0, 0.5, 1.0):
            guided = toward_image(prior, distance, scale)(x, T)
            left = 1 - scale * alpha / (alpha + STIFF)
            torch.testing.assert_close(distance(guided), left * distance(prior(x, T)), rtol=1e-9, atol=1e-9)
    # a mean over the latent or a sum, one unit or another: the step is the same
    step = toward_image(prior, distance, 0.5)(x, T)
    torch.testing.assert_close(toward_image(prior, lambda x0: 1000 * distance(x0), 0.5)(x, T), step)


def test_image_guidance_samples_the_data_with_a_low_loss():
    """Three points, of which one has the target first coordinate; a quarter of the samples is that by chance."""
    points = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-0.8, 1.0]], dtype=torch.float64)
    denoise = dataset(LINEAR, points)
    x = torch.randn(48, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = build_grid(GridConfig(kind="log-snr"), LINEAR, 24)

    def share(scale):
        led = toward_image(denoise, lambda x0: 0.5 * (x0[:, 0] - 1).square(), scale)
        found = sample(DDIM(), LINEAR, led, x, grid, no_noise)
        assert torch.cdist(found, points).min(1).values.max() < 0.05, "images stay images"
        return ((found - points[0]).norm(dim=1) < 0.05).double().mean()

    assert share(0.0) < 0.3 < share(0.5) < 0.55 < share(1.0)


def test_guiding_starts_after_pure_noise():
    flow = build_schedule(FlowConfig())
    one = torch.tensor(1.0, dtype=torch.float64)
    x = tensors(1)[0]
    guided = toward(gaussian(flow, 0.0, 1.0), flow, lambda v, t: v.sum((1, 2, 3)), 1.0, "noisy")(x, one)
    assert torch.isfinite(guided).all()


def test_the_corrector_edits_the_noise_prediction():
    x, x0 = tensors(2)
    alpha, sigma = LINEAR(T)
    eps = (x - alpha * x0) / sigma
    edited = corrected(lambda x, t: x0, LINEAR, lambda e, x, t: 0.9 * e + 0.1 * x)(x, T)
    torch.testing.assert_close((x - alpha * edited) / sigma, 0.9 * eps + 0.1 * x)
    torch.testing.assert_close(corrected(lambda x, t: x0, LINEAR, lambda e, x, t: e)(x, T), x0)


def test_guided_sampling_moves_towards_the_condition():
    grid = build_grid(GridConfig(kind="log-snr"), LINEAR, 10)
    cond, null = gaussian(LINEAR, 1.0, 0.3), gaussian(LINEAR, 0.0, 1.0)
    x = tensors(1)[0]

    def guided(scale):
        return sample(
            DDIM(), LINEAR, classifier_free(cond, lambda x, t: (cond(x, t), null(x, t)), scale), x, grid, no_noise
        ).mean()

    assert guided(0.0) < guided(1.0) < guided(3.0)
    assert guided(1.0).item() == pytest.approx(1.0, abs=0.05)


def test_a_scale_for_each_part():
    none, first, both = tensors(3)
    asked = []

    def all_of(x_t, t):
        asked.append(float(t))
        return [none, first, both]

    def cond(x_t, t):
        return both

    found = by_parts(cond, all_of, [2.0, 5.0])(none, T)
    torch.testing.assert_close(found, none + 2 * (first - none) + 5 * (both - first))
    plain = classifier_free(cond, lambda x_t, t: (both, none), 3.0)(none, T)
    torch.testing.assert_close(by_parts(cond, all_of, [3.0, 3.0])(none, T), plain)
    torch.testing.assert_close(by_parts(cond, all_of, [0.0, 0.0])(none, T), none)
    asked.clear()
    assert torch.equal(by_parts(cond, all_of, [1.0, 1.0])(none, T), both)
    assert torch.equal(by_parts(cond, all_of, [2.0, 5.0], (0.7, 1.0))(none, T), both)
    assert asked == [], "off, the larger batch is not computed"
    with pytest.raises(ValueError, match="zip"):
        by_parts(cond, all_of, [2.0])(none, T)
