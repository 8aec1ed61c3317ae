"""Imported original checkpoints against the tensors that the original code computed from them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

import sfumato
from parity import golden, needs_parity, relative_error
from sfumato.conditioning.condition import Condition
from sfumato.diffusion.process import time_of_index
from sfumato.interop.original import Imported
from sfumato.model import LatentDiffusion
from sfumato.pipeline.denoise import Guidance, Network, guided
from sfumato.sampling.ancestral import DDIM, DDPM
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.inpainting import KnownRegion
from sfumato.sampling.loop import sample
from sfumato.sampling.plms import PLMS
from sfumato.sampling.sampler import Denoise, Sampler

pytestmark = needs_parity

FIRST_STAGES = ["kl-f8", "kl-f32", "vq-f4", "vq-f8"]
DIFFUSIONS = ["bsr_sr", "cin256", "ffhq256", "semantic_synthesis256", "text2img256", "x-hybrid"]
NETWORK, SAMPLING = 1e-5, 1e-4
STEPS = 5
FIELDS = {
    "class_label": "label",
    "tokens": "tokens",
    "segmentation_labels": "map",
    "LR_image": "low_resolution",
    "concat": "concat",
    "crossattn": "embeddings",
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def open_model(imported: Imported) -> LatentDiffusion:
    return sfumato.load(imported.folder)


def condition(model: LatentDiffusion, g: dict[str, Tensor], prefix: str = "in/") -> Condition | None:
    fields = {ours: g[prefix + theirs] for theirs, ours in FIELDS.items() if prefix + theirs in g}
    assert model.second is not None
    if model.second.conditioner is None:
        return Condition()
    return model.second.conditioner(fields) if fields else None


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stage(name: str, imported: Callable[..., Imported]) -> None:
    g, model = golden(name), open_model(imported(name))
    encoding = model.autoencoder.encode(g["in/x"], g.get("in/posterior_noise"))
    if name.startswith("kl"):
        assert relative_error(encoding.z, g["fs/sample"]) <= NETWORK
        assert relative_error(model.autoencoder.encode(g["in/x"]).z, g["fs/mode"]) <= NETWORK
        assert relative_error(model.autoencoder.decode(g["fs/mode"]), g["fs/decode"]) <= NETWORK
    else:
        latent = "fs/encode"
        assert relative_error(encoding.moments, g[latent]) <= NETWORK


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_networks_and_conditioner(name: str, imported: Callable[..., Imported]) -> None:
    g = golden(name)
    live, averaged = open_model(imported(name, "live")), open_model(imported(name))
    for model, key in ((live, "unet/eps"), (averaged, "unet/eps_ema")):
        given = condition(model, g)
        assert model.second is not None
        assert given is not None
        if "cond/c" in g:
            made = given.spatial if given.tokens is None else given.tokens
            assert relative_error(made, g["cond/c"]) <= NETWORK
        assert relative_error(model.second.denoiser(g["in/z_noisy"], g["in/t"], given), g[key]) <= NETWORK
    null = condition(live, g, "in/uc_")
    if null is not None and null.tokens is not None:
        assert relative_error(null.tokens, g["cond/uc"]) <= NETWORK
    first = live.autoencoder
    assert relative_error(first.encode(g["in/x"]).moments, g["fs/z"]) <= NETWORK
    assert relative_error(first.decode(g["fs/z"]), g["fs/decode"]) <= NETWORK
    assert relative_error(first.decode(g["fs/z"], quantize=False), g["fs/decode_noquant"]) <= NETWORK


def used(case: str, noise: Tensor) -> Iterator[Tensor]:
    """The recorded noise that our samplers take: none where its weight is zero."""
    if case == "plms/mask":  # (q, step) each, and the first step looks ahead once more
        return iter(noise[[0, 3, 5, 7, 9]])
    if case == "ddpm/mask":  # (step, q) each, the last step takes none
        return iter(noise[[0, 1, 2, 3, 4, 5, 6, 7, 9]])
    return iter(noise)


def cases(model: LatentDiffusion, g: dict[str, Tensor]) -> dict[str, tuple[Sampler, Denoise]]:
    second = model.second
    assert second is not None
    given = condition(model, g)
    assert given is not None
    plain = Network(second.denoiser, second.schedule, "eps").denoise(given)
    known = partial(KnownRegion, known=g.get("in/x0"), keep=g.get("in/keep_mask"))
    codes = model.autoencoder.quantize
    assert codes is not None
    found: dict[str, tuple[Sampler, Denoise]] = {
        "ddim/eta0": (DDIM(0.0), plain),
        "ddim/eta1": (DDIM(1.0), plain),
        "ddim/temp": (DDIM(0.5, 0.7), plain),
        "ddim/mask": (known(DDIM(1.0)), plain),
        "ddim/quant": (DDIM(0.0, project=codes.quantise), plain),
        "plms/plain": (PLMS(), plain),
        "plms/mask": (known(PLMS()), plain),
        "ddpm/plain": (DDPM(), plain),
        "ddpm/mask": (known(DDPM(), order="after"), plain),
        "ddpm/progressive": (DDPM(temperature=0.8), plain),
        "ddpm/quant": (DDPM(), lambda x, t: codes.quantise(plain(x, t))),
    }
    null = condition(model, g, "in/uc_")
    if null is not None:
        guide = guided(Network(second.denoiser, second.schedule, "eps"), given, null, Guidance(3.0))
        found |= {"ddim/cfg": (DDIM(0.0), guide), "plms/cfg": (PLMS(), guide)}
    return found


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_whole_samplings(name: str, imported: Callable[..., Imported]) -> None:
    g, model = golden(name), open_model(imported(name, "live"))
    assert model.second is not None
    schedule = model.second.schedule
    leading = build_grid(GridConfig(kind="leading"), schedule, STEPS)
    ancestral = time_of_index(torch.arange(STEPS - 1, -2, -1), schedule.steps)
    compared = 0
    for case, (sampler, denoise) in cases(model, g).items():
        if case not in g or g.get(f"margin/{case}", torch.tensor(1.0)) < 1e-4:
            continue
        supply = used(case, g[f"in/{case}/noise"])

        def recorded_noise(shape: Sequence[int], supply: Iterator[Tensor] = supply) -> Tensor:
            return next(supply)

        grid = ancestral if case.startswith("ddpm") else leading
        made = sample(sampler, schedule, denoise, g["in/x_T"], grid, recorded_noise)
        assert relative_error(made, g[case]) <= SAMPLING, case
        compared += 1
    assert compared >= 4
