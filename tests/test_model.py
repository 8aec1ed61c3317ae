"""A model folder: what goes in comes out, whatever happens in between is reported."""

from pathlib import Path

import pytest
import torch

import tiny
from sfumato import model as model_room
from sfumato.errors import UserError
from sfumato.model_folder import load
from sfumato.pipeline.request import DEFAULT_GUIDANCE

OPTIONS = {"steps": 3, "seed": 5, "as_tensor": True}
KINDS = {"text": [], "class": [tiny.BY_CLASS], "unconditional": [tiny.UNCONDITIONAL], "vq": [tiny.VQ]}


def sampled(model: model_room.LatentDiffusion, **options: object) -> torch.Tensor:
    kind = model.config.diffusion.conditioner.kind if model.config.diffusion else ""
    given = {"text": {"prompt": tiny.TEXTS[:2]}, "class": {"label": [0, "square"]}, "none": {"count": 2}}[kind]
    return model.sample(**{**given, **OPTIONS, **options})


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)
def test_a_saved_model_samples_the_same_images(overrides: list[str], tmp_path: Path) -> None:
    model = tiny.model(*overrides)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.digest == model.digest
    assert again.config == model.config
    assert torch.equal(sampled(again), sampled(model))
    assert not any(p.requires_grad for part in again.parts().values() for p in part.parameters())
    again.save(tmp_path / "model")
    assert load(tmp_path).digest == model.digest, "the folder above, as that of a run"
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left beside it"


def test_an_autoencoder_alone_is_saved_and_reconstructs(tmp_path: Path) -> None:
    model = tiny.model("diffusion=null")
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(again.reconstruct(images), model.reconstruct(images))
    with pytest.raises(UserError, match="autoencoder only"):
        again.sample("a red apple")


def test_the_digest_names_weights_and_configuration_but_not_the_story() -> None:
    model, other = tiny.model(), tiny.model()
    assert model.digest == other.digest
    described = model_room.LatentDiffusion(
        model.config.model_copy(update={"about": {"hours": 3}}), model.autoencoder, model.scaling, model.second
    )
    assert described.digest == model.digest
    other = tiny.model()
    other.scaling.shift[0] += 1e-3
    assert other.digest != model.digest
    assert tiny.model("diffusion.prediction=eps").digest != model.digest


@pytest.mark.parametrize("as_pil", [False, True])
def test_a_seed_gives_its_image_in_any_batch(as_pil: bool) -> None:
    model = tiny.model()
    prompts = [tiny.TEXTS[i % 3] for i in range(5)]
    options = {"steps": 4, "sampler": "ddpm", "as_tensor": not as_pil}  # noise in every step
    together = model.sample(prompts, seeds=[7, 8, 9, 10, 11], **options)
    apart = model.sample(prompts, seeds=[7, 8, 9, 10, 11], batch=2, **options)
    alone = model.sample(prompts[2], seed=9, **options)[0]
    if as_pil:
        assert all(abs(a - b) <= 1 for a, b in zip(together[2].tobytes(), alone.tobytes(), strict=True))
        return
    torch.testing.assert_close(apart, together, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(alone, together[2], atol=2e-5, rtol=1e-4)
    assert (together[0] - together[3]).abs().max() > 0.1, "another seed should be another image"


def test_guidance_1_is_no_guidance_and_more_is_more() -> None:
    model = tiny.model()
    plain = sampled(model, guidance=1.0)
    assert torch.equal(plain, sampled(tiny.model("diffusion.condition_dropout=0")))
    differences = [(sampled(model, guidance=scale) - plain).abs().mean().item() for scale in (1.5, 3.0)]
    assert 0 < differences[0] < differences[1]
    assert torch.equal(sampled(model), sampled(model, guidance=DEFAULT_GUIDANCE))


DAMAGES = {
    "config.yaml": "lacks config.yaml",
    "autoencoder.safetensors": "lacks autoencoder.safetensors",
    "scaling.safetensors": "scaling.safetensors.*does not exist",
    "denoiser.safetensors": "denoiser.safetensors.*does not exist",
    "conditioner.safetensors": "conditioner.safetensors.*does not exist",
    "tokenizer.json": "lacks tokenizer.json",
}


@pytest.mark.parametrize(("name", "message"), DAMAGES.items(), ids=DAMAGES)
def test_the_error_about_an_incomplete_folder_names_what_is_missing(name: str, message: str, tmp_path: Path) -> None:
    tiny.model().save(tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(UserError, match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize("name", [name for name in DAMAGES if name.endswith("safetensors")])
def test_a_file_that_was_cut_is_named(name: str, tmp_path: Path) -> None:
    tiny.model().save(tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{name}.*not a readable safetensors file"):
        load(tmp_path / "model")


def test_damaged_text_files_are_named(tmp_path: Path) -> None:
    tiny.model().save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json"):
        load(tmp_path)
    tiny.model().save(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("prediction: v", "predicton: v"))
    with pytest.raises(UserError, match=r"unknown key 'diffusion.predicton'; did you mean 'prediction'"):
        load(tmp_path)
    tiny.model().save(tmp_path)
    config.write_text(config.read_text().replace("channels: 32", "channels: 64"))
    with pytest.raises(UserError, match=r"denoiser.safetensors: key .* has shape .*the configuration asks for"):
        load(tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a model folder nor"):
        load(tmp_path)
    (tmp_path / "states").mkdir()
    (tmp_path / "config.yaml").write_text("train: {}\n")
    with pytest.raises(UserError, match="has not saved a model yet"):
        load(tmp_path)


def test_a_model_is_always_there_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny.model()
    old.save(tmp_path / "model")
    new = tiny.model("diffusion.prediction=eps")
    rename = Path.rename

    for dies_at in (1, 2):
        calls = []

        def counted(self: Path, target: Path, dies_at: int = dies_at, calls: list[Path] = calls) -> Path:
            calls.append(self)
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted)
            with pytest.raises(KeyboardInterrupt):
                new.save(tmp_path / "model")
        assert load(tmp_path / "model").digest == old.digest
        assert load(tmp_path).digest == old.digest
        old.save(tmp_path / "model")
    new.save(tmp_path / "model")
    assert load(tmp_path).digest == new.digest
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_fills_up_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny.model()
    old.save(tmp_path / "model")
    other = tiny.model(tiny.VQ)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=r"could not be replaced.*No space"):
            other.save(tmp_path / "model")
    assert load(tmp_path / "model").digest == old.digest
