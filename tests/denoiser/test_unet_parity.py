"""The U-Net against the original's keys and recorded outputs."""

import pytest
import torch
from original_unets import from_original

from parity import full_size, golden, needs_parity, relative_error, scaled_weights
from sfumato.conditioning.condition import Condition
from sfumato.denoiser.unet import UNet

PREFIX = "model.diffusion_model."
pytestmark = needs_parity


def _condition(name: str, tensors: dict[str, torch.Tensor]) -> Condition:
    if name == "x-hybrid":
        return Condition(tokens=tensors["in/crossattn"], spatial=tensors["in/concat"])
    if name in ("cin256", "text2img256"):
        return Condition(tokens=tensors["cond/c"])
    return Condition(spatial=tensors.get("cond/c"))


@pytest.mark.parametrize("name", ["ffhq256", "cin256", "text2img256", "bsr_sr", "semantic_synthesis256"])
def test_keys_and_shapes_of_the_published_models(name: str) -> None:
    facts = full_size(name)
    expected = {k[len(PREFIX) :]: tuple(s) for k, s in facts["state_dict"].items() if k.startswith(PREFIX)}
    with torch.device("meta"):
        unet = UNet(*from_original({"model": facts["hparams"]}))
    assert {k: tuple(v.shape) for k, v in unet.state_dict().items()} == expected


@pytest.mark.parametrize("name", ["ffhq256", "cin256", "text2img256", "bsr_sr", "semantic_synthesis256", "x-hybrid"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recorded_predictions(name: str, layout: torch.memory_format) -> None:
    weights, config = scaled_weights(name)
    tensors = golden(name)
    unet = UNet(*from_original(config)).eval()
    unet.load_state_dict({k[len(PREFIX) :]: v for k, v in weights.items() if k.startswith(PREFIX)})
    unet.to(memory_format=layout)
    x, t, condition = tensors["in/z_noisy"].to(memory_format=layout), tensors["in/t"], _condition(name, tensors)
    with torch.no_grad():
        assert relative_error(unet._embedding(t, None), tensors["unet/time_embed"]) < 1e-5
        assert relative_error(unet(x, t, condition), tensors["unet/eps"]) < 1e-5
        # a hundredth of the input: here the epsilons of the norms decide
        assert relative_error(unet(0.01 * x, t, condition), tensors["unet/eps_lowvar"]) < 1e-5
