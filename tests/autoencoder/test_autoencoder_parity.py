"""The first stage against tensors recorded from the original models."""

import pytest
import torch
from originals import NAMES, autoencoder, by_rule, config_of, fill
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from parity import full_size, golden, needs_parity, relative_error
from sfumato.autoencoder import losses
from sfumato.autoencoder.discriminator import PatchDiscriminator, frozen
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.perceptual import LPIPS

pytestmark = needs_parity


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return relative_error(actual, expected) <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_full_size_keys_and_shapes(name: str) -> None:
    facts = full_size(name)
    with torch.device("meta"):
        model = Autoencoder(config_of(facts["hparams"]["params"]))
        parts: dict[str, nn.Module] = {
            "": model,
            "loss.perceptual_loss.": LPIPS(),
            "loss.discriminator.": PatchDiscriminator(layers=2 if name == "vq-f8" else 3),
        }
    own = {p + k: list(v.shape) for p, part in parts.items() for k, v in part.state_dict().items()}
    expected = {k: v for k, v in facts["state_dict"].items() if k != "loss.logvar"}
    assert own == expected
    assert sum(p.numel() for p in model.parameters()) == facts["params"]["autoencoder"]


def convolutions(model: Autoencoder, tensors: dict[str, Tensor]) -> None:
    """The encoder's output, also of a faint image (where the epsilons of the norms decide), and quant_conv's."""
    features = model.encoder(tensors["in/x"])
    assert close(features, tensors["fs/encoder"])
    assert close(model.quant_conv(features), tensors["fs/quant_conv"])
    assert close(model.encoder(0.01 * tensors["in/x"]), tensors["fs/encoder_lowvar"])


@pytest.mark.parametrize("name", ["kl-f8", "kl-f32"])
def test_kl_numbers(name: str) -> None:
    tensors, model = golden(name), autoencoder(name)
    with torch.no_grad():
        encoding = model.encode(tensors["in/x"], tensors["in/posterior_noise"])
        assert close(encoding.moments, torch.cat([tensors["fs/mean"], tensors["fs/logvar"]], 1))
        convolutions(model, tensors)
        mean, log_variance = encoding.moments.chunk(2, 1)
        posterior = Normal(mean, torch.exp(0.5 * log_variance))
        assert close(posterior.stddev, tensors["fs/std"])
        assert close(kl_divergence(posterior, Normal(0.0, 1.0)), tensors["fs/normal_kl"])
        assert close(encoding.z, tensors["fs/sample"])
        assert close(encoding.regulariser, tensors["fs/kl"].mean())
        assert encoding.indices is None
        assert close(model.latent_from_moments(encoding.moments, tensors["in/posterior_noise"]), tensors["fs/sample"])
        assert close(model.encode(tensors["in/x"]).z, tensors["fs/mode"])
        assert close(model.decode(tensors["fs/mode"]), tensors["fs/decode"])


@pytest.mark.parametrize("name", ["vq-f4", "vq-f8"])
def test_vq_numbers(name: str) -> None:
    tensors, model = golden(name), autoencoder(name)
    clear = tensors["fs/margin"] > 1e-4
    code = tensors["in/code"].reshape(2, 2, 2)
    with torch.no_grad():
        encoding = model.encode(tensors["in/x"])
        assert encoding.indices is not None
        assert close(encoding.moments, tensors["fs/encode"])
        convolutions(model, tensors)
        assert model.quantize is not None
        assert close(model.quantize.embed(code), tensors["fs/codebook_entry"])
        assert close(encoding.z, tensors["fs/quantized"])
        assert close(encoding.regulariser, tensors["fs/codebook_loss"])
        assert torch.equal(encoding.indices.flatten()[clear], tensors["fs/indices"][clear])
        assert close(model.decode(tensors["fs/encode"]), tensors["fs/decode"])
        assert close(model.decode(tensors["fs/encode"], quantize=False), tensors["fs/decode_noquant"])
        assert close(model.decode(encoding.z, quantize=False), tensors["fs/decode"])
        assert close(model.decode_indices(code), tensors["fs/decode_code"])


PHASES = {"eval/post": (False, 50_001), "train/pre": (True, 0), "train/post": (True, 50_001)}
"""The cases recorded with the original: whether the networks train (the discriminator's batch norm), and the step."""
ADVERSARIAL = {"kl-f8": (0.5, 50_001, 3), "kl-f32": (0.5, 50_001, 3), "vq-f4": (0.75, 0, 3), "vq-f8": (0.6, 1, 2)}
"""Weight and start of the adversarial term, layers of the discriminator."""


def gradient_norm(loss: Tensor, *modules: nn.Module) -> Tensor:
    parameters = [p for module in modules for p in module.parameters()]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.stack([gradient.norm() for gradient in found if gradient is not None]).norm()


@pytest.mark.parametrize("name", NAMES)
def test_training_losses(name: str) -> None:
    """One step of both networks, put together from our pieces as the training loop does."""
    tensors, model, kl = golden(name), autoencoder(name), name.startswith("kl")
    disc_weight, start, layers = ADVERSARIAL[name]
    config = losses.LossConfig(
        reduction="sum" if kl else "mean", adversarial=losses.AdversarialConfig(weight=disc_weight, start=start)
    )
    lpips = LPIPS()
    fill(lpips, "loss.perceptual_loss.")
    image = tensors["in/x"]
    encoding = model.encode(image, tensors.get("in/posterior_noise"))
    decoded = model.decode(encoding.z)
    distance = lpips(image, decoded)
    log_variance = by_rule("loss.logvar", torch.zeros(())) if kl else None
    error = losses.with_perceptual(losses.reconstruction(image, decoded), distance, 1.0)
    nll = losses.negative_log_likelihood(error, config.reduction, log_variance)
    regulariser = losses.regularisation(config, "kl" if kl else "vq", encoding.regulariser, image[0].numel())
    assert close(distance, tensors["loss/lpips"].flatten())
    for phase, (trains, step) in PHASES.items():
        critic = fill(PatchDiscriminator(layers=layers), "loss.discriminator.").train(trains)
        strength = losses.adversarial_strength(config.adversarial, step)
        with frozen(critic):
            adversarial = losses.generator_loss(critic(decoded))
        weight = losses.adaptive_weight(nll, adversarial, model.last_layer())
        total = nll + regulariser + strength * disc_weight * weight * adversarial
        recorded = f"loss/{phase}/gen/"
        expected = {"rec_loss": error.mean(), "nll_loss": nll, "g_loss": adversarial, "d_weight": disc_weight * weight}
        expected |= {"total_loss": total, "disc_factor": torch.tensor(strength)}
        expected |= {"grad_norm": gradient_norm(total, model.encoder, model.decoder)}
        if kl:
            assert log_variance is not None
            expected |= {"kl_loss": encoding.regulariser, "logvar": log_variance}
        else:
            expected |= {"quant_loss": encoding.regulariser, "p_loss": distance.mean()}
        compare(tensors, recorded, expected)

        real, fake = critic(image), critic(decoded.detach())
        disc_loss = strength * losses.discriminator_loss(real, fake, "hinge")
        expected = {"disc_loss": disc_loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        compare(tensors, f"loss/{phase}/disc/", expected | {"grad_norm": gradient_norm(disc_loss, critic)})


def compare(tensors: dict[str, Tensor], prefix: str, found: dict[str, Tensor]) -> None:
    """Every recorded number under a prefix, none left out."""
    assert {prefix + key for key in found} == {key for key in tensors if key.startswith(prefix)}
    for key, value in found.items():
        loose = key in ("d_weight", "total_loss", "grad_norm")  # sums and ratios of gradients
        torch.testing.assert_close(
            value.detach(), tensors[prefix + key], rtol=1e-4 if loose else 1e-5, atol=1e-7, msg=prefix + key
        )
