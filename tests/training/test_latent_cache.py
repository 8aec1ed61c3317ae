"""The cache of latents: keyed by what makes the moments, made by one run while others wait, kept by a resumed run."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from runs import Hooks, Images, first_model, latents_of, second_run
from sfumato.autoencoder.bottleneck import codebook_digest
from sfumato.autoencoder.model import Autoencoder, encoder_digest
from sfumato.data.latents import LatentDataset
from sfumato.locks import exclusive
from sfumato.model import LatentDiffusion
from sfumato.training import encode
from sfumato.training.diffusion import train_diffusion
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model, conditional_denoiser

VQ = "model.bottleneck={kind: vq, codes: 8}"


def changed(model: LatentDiffusion, *parts: str) -> LatentDiffusion:
    """The model with other values in the weights whose names begin so."""
    autoencoder = Autoencoder(model.autoencoder.config)
    weights = model.autoencoder.state_dict()
    autoencoder.load_state_dict({name: t + 0.01 if name.startswith(parts) else t for name, t in weights.items()})
    return replace(model, autoencoder=autoencoder.eval().requires_grad_(False))


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("overrides", [(), (VQ,)])
def test_what_comes_after_the_moments_leaves_the_cache_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    model = first_model(*overrides)
    before = latents_of(model, tmp_path)
    monkeypatch.setattr(encode, "LatentWriter", lambda *given: pytest.fail("encoded again"))
    others = [
        changed(model, "decoder.", "post_quant_conv.", "quantize."),
        replace(model, config=model.config.model_copy(update={"about": {"note": "something"}, "classes": None})),
        first_model(*overrides, "model.dropout=0.5"),
    ]
    for other in others:
        assert latents_of(other, tmp_path).path == before.path
    assert caches(tmp_path) == [before.path.name]


@pytest.mark.parametrize("part", ["encoder.conv_in", "encoder.conv_out", "quant_conv.bias"])
def test_what_makes_the_moments_makes_another_cache(part: str) -> None:
    model = first_model()
    assert encoder_digest(changed(model, part).autoencoder) != encoder_digest(model.autoencoder)


def test_settings_that_change_the_moments_of_the_same_weights_enter_the_key() -> None:
    plain, unit = (first_model(f"model.bottleneck={{kind: vq, codes: 8, normalise: {flag}}}") for flag in (False, True))
    assert encoder_digest(plain.autoencoder) != encoder_digest(unit.autoencoder)
    other = first_model("model.norm_groups=16")
    other.autoencoder.load_state_dict(first_model().autoencoder.state_dict())
    assert encoder_digest(other.autoencoder) != encoder_digest(first_model().autoencoder)


def test_the_codes_are_named_by_their_codebook() -> None:
    model = first_model(VQ)
    one, other = model.autoencoder.quantize, changed(model, "quantize.").autoencoder.quantize
    assert one is not None
    assert other is not None
    assert codebook_digest(one) != codebook_digest(other)


def test_a_run_goes_on_when_its_decoder_was_replaced(tmp_path: Path) -> None:
    def train(first: LatentDiffusion, steps: int) -> int:
        config = second_run("conditioner={kind: none}", f"train.steps={steps}")
        latents = latents_of(first, tmp_path / "cache")
        model = build_model(config, first, latents)
        assert model.second is not None
        folder, hooks = RunFolder(tmp_path / "run"), Hooks()
        folder.claim(config)
        networks, schedule = conditional_denoiser(model), model.second.schedule
        parts = (model.autoencoder, model.scaling, latents, folder, hooks.preview, hooks.export)
        return train_diffusion(config, networks, schedule, *parts).step

    first = first_model()
    assert train(first, 1) == 1
    assert train(changed(first, "decoder.", "post_quant_conv."), 2) == 2


def test_of_two_runs_on_one_new_cache_one_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    messages: list[str] = []
    original = encode._encode

    def counted(*given: object) -> None:
        encoded.append(1)
        original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "_encode", counted)
    models = [first_model(), first_model()]
    place = latents_of(models[0], tmp_path / "elsewhere").path.name
    encoded.clear()

    def open_cache(model: LatentDiffusion) -> LatentDataset:
        return encode.cached_latents(
            model, Images(), tmp_path / "cache", mirrored=True, precision="float32", log=messages.append
        )

    with ThreadPoolExecutor(2) as pool:
        with exclusive(tmp_path / "cache" / place):
            both = [pool.submit(open_cache, model) for model in models]
            while len(messages) < 2:
                time.sleep(0.01)
            assert encoded == []
        one, other = (future.result() for future in both)
    assert encoded == [1]
    assert one.path == other.path
    assert caches(tmp_path / "cache") == [place]
