"""Feature reuse: whole calls are the plain network's, the others run the outermost blocks only, and it is opt-in."""

import pytest
import torch
from torch import Tensor

import tiny
from sfumato.conditioning.condition import Condition
from sfumato.denoiser.blocks import Block
from sfumato.denoiser.unet import UNet
from sfumato.engine.reuse import OUTERMOST, Reusing
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny.model()


def unet_of(model: LatentDiffusion) -> UNet:
    assert model.second is not None
    assert isinstance(model.second.denoiser, UNet)
    return model.second.denoiser


def call(network: UNet, x_t: Tensor, time: float) -> Tensor:
    tokens = torch.randn(len(x_t), 5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: Tensor = network(x_t, torch.full((len(x_t),), time), Condition(tokens=tokens))
    return out


def test_every_nth_call_is_whole_and_the_others_are_near(model: LatentDiffusion) -> None:
    unet = unet_of(model)
    reusing = Reusing.of(unet, 3)
    x_t = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    for number in range(7):
        # a call with the same latent and time has the same deep features, whatever call they were kept from
        torch.testing.assert_close(call(reusing, x_t, 500.0), call(unet, x_t, 500.0))
        assert reusing.age == number % 3 + 1
    later = x_t + 0.1
    assert reusing.age == 1
    expected = call(unet, later, 480.0)
    near = call(reusing, later, 480.0)
    assert not torch.allclose(near, expected, atol=1e-6), "the deep features are those of the call before"
    assert (near - expected).norm() < (call(unet, x_t, 500.0) - expected).norm(), "its own latent and time count"
    torch.testing.assert_close(call(reusing, later[:1], 480.0), call(unet, later[:1], 480.0))
    assert reusing.age == 1, "another batch is computed whole"


def test_sampling_calls_fewer_blocks(model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]
    forward = Block.forward

    def counted(self: Block, *arguments: object) -> Tensor:
        calls[0] += 1
        return forward(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Block, "forward", counted)
    unet = unet_of(model)
    blocks = len(unet.input_blocks) + 1 + len(unet.output_blocks)
    options = {"count": 2, "sampler": "ddim", "steps": 4, "as_tensor": True}
    images = {}
    for reuse, whole in ((1, 4), (2, 2), (9, 1)):
        calls[0] = 0
        images[reuse] = model.sample("a red apple", reuse=reuse, **options)
        assert calls[0] == whole * blocks + (4 - whole) * 2 * OUTERMOST
    assert not torch.equal(images[1], images[2])
    assert type(unet) is UNet, "the model stays as it was"
    for wrong, message in (
        ({"reuse": 0}, "reuse is 0: give a whole number from 1"),
        ({"reuse": 2, "window": 16}, "cannot be combined with windows"),
    ):
        with pytest.raises(UserError, match=message):
            model.sample("a red apple", **options, **wrong)
