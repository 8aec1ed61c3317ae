"""The first stage against tensors recorded from the original models."""

import pytest
import torch
from originals import NAMES, autoencoder, by_rule, config_of, fill
from torch import Tensor, nn

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


@pytest.mark.parametrize("name", ["kl-f8", "kl-f32"])
def test_kl_numbers(name: str) -> None:
    tensors, model = golden(name), autoencoder(name)
    with torch.no_grad():
        encoding = model.encode(tensors["in/x"], tensors["in/posterior_noise"])
        assert close(encoding.moments, torch.cat([tensors["fs/mean"], tensors["fs/logvar"]], 1))
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
        assert close(encoding.z, tensors["fs/quantized"])
        assert close(encoding.regulariser, tensors["fs/codebook_loss"])
        assert torch.equal(encoding.indices.flatten()[clear], tensors["fs/indices"][clear])
        assert close(model.decode(tensors["fs/encode"]), tensors["fs/decode"])
        assert close(model.decode(tensors["fs/encode"], quantize=False), tensors["fs/decode_noquant"])
        assert close(model.decode(encoding.z, quantize=False), tensors["fs/decode"])
        assert close(model.decode_indices(code), tensors["fs/decode_code"])


def generator_terms(name: str, model: Autoencoder, critic: nn.Module, lpips: LPIPS) -> dict[str, Tensor]:
    """One generator step of the original, put together from our pieces."""
    tensors, kl = golden(name), name.startswith("kl")
    image = tensors["in/x"]
    encoding = model.encode(image, tensors.get("in/posterior_noise"))
    decoded = model.decode(encoding.z)
    reduction: losses.Reduction = "sum" if kl else "mean"
    config = losses.LossConfig(reduction=reduction)
    log_variance = by_rule("loss.logvar", torch.zeros(())) if kl else None
    distance = lpips(image, decoded)
    error = losses.with_perceptual(losses.reconstruction(image, decoded), distance, 1.0)
    nll = losses.negative_log_likelihood(error, reduction, log_variance)
    with frozen(critic):
        adversarial = losses.generator_loss(critic(decoded))
    weight = losses.adaptive_weight(nll, adversarial, model.last_layer())
    regulariser = losses.regularisation(config, "kl" if kl else "vq", encoding.regulariser, image[0].numel())
    return {
        "decoded": decoded,
        "distance": distance,
        "rec_loss": error.mean(),
        "nll_loss": nll,
        "g_loss": adversarial,
        "weight": weight,
        "regulariser": regulariser,
    }


def gradient_norm(*modules: nn.Module) -> Tensor:
    return torch.stack([p.grad.norm() for m in modules for p in m.parameters() if p.grad is not None]).norm()


@pytest.mark.parametrize("name", ["kl-f8", "vq-f4", "vq-f8"])
def test_training_losses(name: str) -> None:
    tensors, model = golden(name), autoencoder(name)
    critic = fill(PatchDiscriminator(layers=2 if name == "vq-f8" else 3), "loss.discriminator.")
    lpips = LPIPS()
    fill(lpips, "loss.perceptual_loss.")
    disc_weight = {"kl-f8": 0.5, "vq-f4": 0.75, "vq-f8": 0.6}[name]

    terms = generator_terms(name, model, critic, lpips)
    total = terms["nll_loss"] + disc_weight * terms["weight"] * terms["g_loss"] + terms["regulariser"]
    total.backward()
    recorded = "loss/train/post/gen/"
    for key in ("rec_loss", "nll_loss", "g_loss"):
        assert close(terms[key], tensors[recorded + key]), key
    assert close(disc_weight * terms["weight"], tensors[recorded + "d_weight"], 1e-4)
    assert close(total, tensors[recorded + "total_loss"], 1e-4)
    assert close(gradient_norm(model.encoder, model.decoder), tensors[recorded + "grad_norm"], 1e-4)
    if name.startswith("vq"):
        assert close(terms["distance"].mean(), tensors[recorded + "p_loss"])
    assert all(p.grad is None for p in critic.parameters())

    real, fake = critic(tensors["in/x"]), critic(terms["decoded"].detach())
    judged = losses.discriminator_loss(real, fake, "hinge")
    judged.backward()
    recorded = "loss/train/post/disc/"
    assert close(judged, tensors[recorded + "disc_loss"])
    assert close(real.mean(), tensors[recorded + "logits_real"])
    assert close(fake.mean(), tensors[recorded + "logits_fake"])
    assert close(gradient_norm(critic), tensors[recorded + "grad_norm"], 1e-4)


@pytest.mark.parametrize("name", ["kl-f8", "vq-f4"])
def test_lpips(name: str) -> None:
    tensors, lpips = golden(name), LPIPS()
    fill(lpips, "loss.perceptual_loss.")
    model = autoencoder(name)
    with torch.no_grad():
        encoding = model.encode(tensors["in/x"], tensors.get("in/posterior_noise"))
        distance = lpips(tensors["in/x"], model.decode(encoding.z))
    assert close(distance, tensors["loss/lpips"].flatten())
