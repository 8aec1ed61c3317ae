"""Whole sampling runs of the original with its shrunken networks, and its training loss."""

import pytest
import torch

from parity import golden, needs_parity, relative_error, scaled_weights
from sfumato.diffusion.objective import ObjectiveConfig, loss
from sfumato.diffusion.prediction import to_x0
from sfumato.diffusion.process import add_noise, network_time, time_of_index
from sfumato.diffusion.schedule import ScaledLinearConfig, build_schedule
from sfumato.sampling.ancestral import DDIM, DDPM
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.guidance import classifier_free
from sfumato.sampling.inpainting import KnownRegion
from sfumato.sampling.loop import sample
from sfumato.sampling.plms import PLMS

unet = pytest.importorskip("sfumato.denoiser.unet")
condition = pytest.importorskip("sfumato.conditioning.condition")
pytestmark = needs_parity

SCHEDULE = build_schedule(ScaledLinearConfig())
GRID = build_grid(GridConfig(kind="leading"), SCHEDULE, 5)
ANCESTRAL = time_of_index(torch.arange(4, -2, -1), 1000)


class Original:
    """One shrunken model of the original: its network by our U-Net, its recorded inputs and results."""

    def __init__(self, name):
        self.tensors = golden(name)
        weights, config = scaled_weights(name)
        p = config["model"]["params"]["unet_config"]["params"]
        fitted = unet.UNetConfig(
            channels=p["model_channels"],
            channel_multipliers=tuple(p["channel_mult"]),
            blocks_per_level=p["num_res_blocks"],
            attention_factors=tuple(p["attention_resolutions"]),
            heads=None,
            head_channels=p["num_head_channels"],
            transformer_depth=p.get("transformer_depth", 1),
        )
        spec = condition.ConditionSpec(token_dim=p.get("context_dim"))
        self.network = unet.UNet(fitted, p["in_channels"], spec).eval().requires_grad_(False)
        prefix = "model.diffusion_model."
        self.network.load_state_dict(
            {k[len(prefix) :]: torch.as_tensor(v) for k, v in weights.items() if k.startswith(prefix)}
        )
        self.codebook = torch.as_tensor(weights["first_stage_model.quantize.embedding.weight"])

    def predict(self, x, t, tokens=None):
        times = network_time(t, 1000).float().expand(len(x))
        return self.network(x, times, condition.Condition(tokens=tokens))

    def denoise(self, x, t, tokens=None):
        return to_x0("eps", self.predict(x, t, tokens), x, *SCHEDULE(t))

    def noise(self, case, skip=()):
        """The recorded noise in order, without what the original generates and does not use."""
        recorded = self.tensors[f"in/{case}/noise"]
        supply = iter([noise for i, noise in enumerate(recorded) if i not in skip])
        return lambda shape: next(supply)

    def project(self, z):
        """Through the codebook."""
        flat = z.movedim(1, -1)
        nearest = torch.cdist(flat.reshape(1, -1, flat.shape[-1]), self.codebook[None]).argmin(-1)
        return self.codebook[nearest[0]].reshape(flat.shape).movedim(-1, 1)


@pytest.fixture(scope="module")
def faces():
    return Original("ffhq256")


@pytest.mark.parametrize(
    ("case", "sampler"), [("eta0", DDIM()), ("eta1", DDIM(1.0)), ("temp", DDIM(0.5, temperature=0.7))]
)
def test_ddim(faces, case, sampler):
    seen = []
    found = sample(
        sampler, SCHEDULE, faces.denoise, faces.tensors["in/x_T"], GRID, faces.noise(f"ddim/{case}"), seen.append
    )
    assert relative_error(found, faces.tensors[f"ddim/{case}"]) < 1e-5
    if case == "eta0":
        recorded = faces.tensors["ddim/pred_x0"]  # the start, then the first and the last step's
        assert relative_error(seen[0].x0, recorded[1]) < 1e-5
        assert relative_error(seen[-1].x0, recorded[2]) < 1e-5


def test_plms(faces):
    found = sample(PLMS(), SCHEDULE, faces.denoise, faces.tensors["in/x_T"], GRID, faces.noise("plms/plain"))
    assert relative_error(found, faces.tensors["plms/plain"]) < 1e-5


def test_ddpm(faces):
    found = sample(DDPM(), SCHEDULE, faces.denoise, faces.tensors["in/x_T"], ANCESTRAL, faces.noise("ddpm/plain"))
    assert relative_error(found, faces.tensors["ddpm/plain"]) < 1e-5


@pytest.mark.parametrize(
    ("case", "sampler", "order", "grid", "unused"),
    [
        ("ddim/mask", DDIM(1.0), "before", GRID, ()),
        ("plms/mask", PLMS(), "before", GRID, (1, 2, 4, 6, 8, 10)),  # noise of the steps, at eta 0; two in the first
        ("ddpm/mask", DDPM(), "after", ANCESTRAL, (8,)),  # noise of the last step, multiplied by 0
    ],
)
def test_inpainting(faces, case, sampler, order, grid, unused):
    g = faces.tensors
    sampler = KnownRegion(sampler, g["in/x0"], g["in/keep_mask"], order)
    found = sample(sampler, SCHEDULE, faces.denoise, g["in/x_T"], grid, faces.noise(case, unused))
    assert relative_error(found, g[case]) < 1e-5


def test_clean_latents_through_the_codebook(faces):
    """No recorded latent lies so near the border between two codes that rounding could choose the other."""
    g = faces.tensors
    assert min(g["margin/ddim/quant"], g["margin/ddpm/quant"]) > 1e-4
    found = sample(DDIM(project=faces.project), SCHEDULE, faces.denoise, g["in/x_T"], GRID, faces.noise("ddim/quant"))
    assert relative_error(found, g["ddim/quant"]) < 1e-5

    def projected(x, t):
        return faces.project(faces.denoise(x, t))

    found = sample(DDPM(), SCHEDULE, projected, g["in/x_T"], ANCESTRAL, faces.noise("ddpm/quant"))
    assert relative_error(found, g["ddpm/quant"]) < 1e-5


@pytest.mark.parametrize(("case", "sampler"), [("ddim/cfg", DDIM()), ("plms/cfg", PLMS())])
def test_classifier_free_guidance(case, sampler):
    classes = Original("cin256")
    g = classes.tensors
    tokens, null = g["cond/c"], g["cond/uc"]

    def both(x, t):
        doubled = classes.denoise(x.repeat(2, 1, 1, 1), t, torch.cat([tokens, null]))
        return doubled.chunk(2)

    guided = classifier_free(lambda x, t: classes.denoise(x, t, tokens), both, 3.0)
    found = sample(sampler, SCHEDULE, guided, g["in/x_T"], GRID, classes.noise(case))
    assert relative_error(found, g[case]) < 1e-5


def test_the_simple_loss(faces):
    g = faces.tensors
    t = time_of_index(g["in/t"], 1000)
    x_t = add_noise(SCHEDULE, g["in/x0"], g["in/noise"], t)
    prediction = faces.network(x_t, network_time(t, 1000).float(), condition.Condition())
    per_sample = loss(ObjectiveConfig(), SCHEDULE, prediction, g["in/x0"], g["in/noise"], t)
    torch.testing.assert_close(per_sample.mean(), g["loss/loss_simple"], rtol=1e-5, atol=0)
    bound = loss(ObjectiveConfig(elbo_weight=1.0), SCHEDULE, prediction, g["in/x0"], g["in/noise"], t) - per_sample
    torch.testing.assert_close(bound.mean(), g["loss/loss_vlb"], rtol=1e-4, atol=0)
