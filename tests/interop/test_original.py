"""Original checkpoints in and out: every key accounted for, every byte given back, every mistake one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from published_configs import full_size
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor

import sfumato
from parity import golden, needs_parity, scaled_weights
from sfumato.checkpoint import load_tensors, save_tensors
from sfumato.diffusion.schedule import (
    CosineConfig,
    LinearConfig,
    ScaledLinearConfig,
    ScheduleConfig,
    SigmoidConfig,
    SqrtConfig,
    betas_of,
    build_schedule,
    zero_terminal,
)
from sfumato.errors import UserError
from sfumato.interop.buffers import schedule_buffers
from sfumato.interop.original import KEPT_FILE, Imported, find_yaml, import_original, read_architecture
from sfumato.interop.original_export import export_original
from sfumato.interop.source import open_checkpoint
from sfumato.interop.stored_schedule import match

ALL = [
    "bsr_sr",
    "cin256",
    "ffhq256",
    "semantic_synthesis256",
    "text2img256",
    "x-hybrid",
    "kl-f8",
    "kl-f32",
    "vq-f4",
    "vq-f8",
]
NO_LOSS_IN_FILE = "x-hybrid"


@needs_parity
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("weights", [None, "live"])
def test_import_then_export_gives_the_same_bytes(
    name: str, weights: str | None, imported: Callable[..., Imported], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    result = export_original(imported(name, weights).folder, tmp_path / "out")
    before, after = open_checkpoint(checkpoint(name)), open_checkpoint(result.checkpoint)
    assert list(after.tensors) == list(before.tensors), "the same keys in the same order"
    for key, tensor in before.tensors.items():
        a, b = tensor.load(), after.tensors[key].load()
        assert a.dtype == b.dtype, key
        assert torch.equal(a, b), key
    assert after.extras == before.extras
    assert result.config.read_text() == checkpoint(name).with_suffix(".yaml").read_text()
    assert result.notes == ()


@needs_parity
@pytest.mark.parametrize("name", ALL)
def test_the_architecture_is_found_without_yaml(
    name: str, imported: Callable[..., Imported], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    bare = tmp_path / "renamed.ckpt"
    bare.symlink_to(checkpoint(name))
    with_yaml = imported(name).config
    if name == "x-hybrid":  # no published model has its topology
        with pytest.raises(UserError, match="attention heads: give its original configuration with --config"):
            import_original(bare, tmp_path / "model")
        return
    found = import_original(bare, tmp_path / "model")
    assert found.config.model_copy(update={"about": {}}) == with_yaml.model_copy(update={"about": {}})
    if with_yaml.diffusion is not None:
        assert any("the shapes do not determine the attention heads" in note for note in found.notes)


@needs_parity
def test_every_key_that_is_not_used_is_listed(imported: Callable[..., Imported]) -> None:
    notes = "\n".join(imported("text2img256").notes)
    assert "688 keys: live weights" in notes
    assert "12 keys: buffers of the noise schedule" in notes
    assert "2 keys: an output head" in notes
    assert "2 keys: counters" in notes
    assert "no known use" not in notes
    kept, manifest = load_tensors(imported("text2img256").folder / KEPT_FILE)
    assert len(kept) == 704
    assert len(manifest["keys"]) == 2017


@needs_parity
def test_the_duplicated_first_stage_is_stored_once(tmp_path: Path) -> None:
    """The configuration of inpainting_big: its conditioner is the first stage."""
    weights, config = scaled_weights("ffhq256")
    weights = dict(weights)
    p = config = json.loads(json.dumps(config))
    p = config["model"]["params"]
    p |= {"cond_stage_config": "__is_first_stage__", "concat_mode": True, "cond_stage_key": "masked_image"}
    p["unet_config"]["params"]["in_channels"] = 7
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for key in (first, "model_ema." + first[len("model.") :].replace(".", "")):
        weights[key] = torch.randn(32, 7, 3, 3, generator=torch.Generator().manual_seed(1))
    weights |= {
        "cond_stage_model." + k.removeprefix("first_stage_model."): v.clone()
        for k, v in weights.items()
        if k.startswith("first_stage_model.")
    }
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": weights}, path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    result = import_original(path, tmp_path / "model")
    assert "kept for export, not used: 205 keys: second copies of the first stage" in result.notes
    kept, manifest = load_tensors(result.folder / KEPT_FILE)
    assert len(manifest["copies"]) == 205
    assert not any(key.startswith("cond_stage_model.") for key in kept)
    model = sfumato.load(result.folder)
    assert model.second is not None
    assert model.second.conditioner is not None
    assert model.second.conditioner.reads == ("masked_latent", "mask")
    back = open_checkpoint(export_original(result.folder, tmp_path / "back.ckpt").checkpoint)
    assert list(back.tensors) == list(weights)
    assert all(torch.equal(back.tensors[key].load(), value) for key, value in weights.items())


@needs_parity
def test_scale_factor_is_taken_from_the_buffer(tmp_path: Path) -> None:
    """The configuration of lsun_churches: scale_by_std, and a key instead of a setting."""
    weights, config = scaled_weights("ffhq256")
    config = json.loads(json.dumps(config))
    config["model"]["params"]["scale_by_std"] = True
    torch.save({"state_dict": {**weights, "scale_factor": torch.tensor(0.2271)}}, tmp_path / "x.ckpt")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    model = sfumato.load(import_original(tmp_path / "x.ckpt", tmp_path / "model").folder)
    assert model.scaling.scale.tolist() == pytest.approx([0.2271] * 3)
    torch.save({"state_dict": weights}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="lacks the key 'scale_factor'"):
        import_original(tmp_path / "x.ckpt", tmp_path / "model")


@needs_parity
def test_first_stage_training_parts_are_kept(tmp_path: Path) -> None:
    weights, config = scaled_weights("kl-f8")
    extra = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.3.num_batches_tracked": torch.tensor(5)}
    torch.save({"state_dict": {**weights, **extra}}, tmp_path / "x.ckpt")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    result = import_original(tmp_path / "x.ckpt", tmp_path / "model")
    assert any("2 keys: parts of the training loss" in note for note in result.notes)
    back = open_checkpoint(export_original(result.folder, tmp_path / "back.safetensors").checkpoint)
    assert back.tensors["loss.discriminator.main.3.num_batches_tracked"].load().dtype == torch.int64


@needs_parity
def test_half_precision_comes_back_as_it_was(tmp_path: Path) -> None:
    weights, config = scaled_weights("vq-f4")
    half = {key: value.half() for key, value in weights.items()}
    save_file(half, tmp_path / "x.safetensors")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    result = import_original(tmp_path / "x.safetensors", tmp_path / "model")
    model = sfumato.load(result.folder)
    assert model.autoencoder.quant_conv.weight.dtype == torch.float32
    back = open_checkpoint(export_original(result.folder, tmp_path / "back.safetensors").checkpoint)
    assert all(torch.equal(back.tensors[k].load(), v) and back.tensors[k].dtype == v.dtype for k, v in half.items())


@needs_parity
def test_a_model_trained_further_gives_its_new_weights(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    folder = import_original(checkpoint("ffhq256"), tmp_path / "model").folder
    tensors, _ = load_tensors(folder / "denoiser.safetensors")
    tensors["out.2.bias"] = tensors["out.2.bias"] + 1
    save_tensors(folder / "denoiser.safetensors", tensors)
    result = export_original(folder, tmp_path / "back.ckpt")
    assert any("denoiser changed since the import" in note for note in result.notes)
    back = open_checkpoint(result.checkpoint).tensors
    for key in ("model.diffusion_model.out.2.bias", "model_ema.diffusion_modelout2bias"):
        assert torch.equal(back[key].load(), tensors["out.2.bias"])
    conv = "input_blocks.0.0.weight"
    assert torch.equal(back[f"model.diffusion_model.{conv}"].load(), tensors[conv])


# -- mistakes ---------------------------------------------------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.mid.attn_1.q.weight": None},
            r"not a published|lacks the key 'encoder.mid.attn_1.q.weight'.*\(128, 128, 1, 1\)",
        ),
        ({"decoder.conv_out.bias": torch.zeros(7)}, r"'decoder.conv_out.bias' has shape \(7,\).*requires \(3,\)"),
        (
            {"quant_conv.weight": torch.zeros(3, 4, 1, 1)},
            r"'quant_conv.weight' has shape \(3, 4, 1, 1\).*\(3, 3, 1, 1\)",
        ),
    ],
)
def test_missing_and_misshapen_keys_are_named(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    weights, config = scaled_weights("vq-f4")
    state = {key: change.get(key, value) for key, value in weights.items() if change.get(key, value) is not None}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=message) as caught:
        import_original(tmp_path / "x.ckpt", tmp_path / "model")
    assert str(tmp_path / "x.ckpt") in str(caught.value)
    assert not (tmp_path / "model").exists()


@needs_parity
def test_an_unknown_key_is_listed_and_given_back(tmp_path: Path) -> None:
    weights, config = scaled_weights("vq-f4")
    torch.save({"state_dict": {**weights, "mystery.weight": torch.ones(2)}}, tmp_path / "x.ckpt")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    result = import_original(tmp_path / "x.ckpt", tmp_path / "model")
    assert "kept for export, not used: 1 key: keys of no known use, such as 'mystery.weight'" in result.notes
    back = open_checkpoint(export_original(result.folder, tmp_path / "back.ckpt").checkpoint)
    assert torch.equal(back.tensors["mystery.weight"].load(), torch.ones(2))


@needs_parity
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["unet_config"].update(target="os.system"), "unet_config.target 'system' is not supported"),
        (lambda p: p["first_stage_config"].update(target="x.Y"), "first_stage_config.target 'Y' is not supported"),
        (lambda p: p.update(cond_stage_config={"target": "builtins.eval"}), "target 'eval' is not supported"),
        (lambda p: p["unet_config"]["params"].update(dims=3), "dims = 3 has no counterpart"),
        (lambda p: p["unet_config"]["params"].update(wings=2), "unknown parameter 'wings'"),
        (lambda p: p["first_stage_config"]["params"]["ddconfig"].update(tanh_out=True), "tanh_out = True has no"),
        (lambda p: p["unet_config"]["params"].pop("model_channels"), "lacks the parameter 'model_channels'"),
        (lambda p: p.update(beta_schedule="bumpy"), "beta_schedule 'bumpy' is not supported"),
        (lambda p: p["unet_config"]["params"].update(model_channels=30), "must be a multiple of norm_groups = 32"),
        (lambda p: p["unet_config"]["params"].update(out_channels=4), "the U-Net outputs 4 channels"),
        (lambda p: p["unet_config"]["params"].update(channel_mult=[1, 2, 3, 5]), r"has shape .* requires"),
    ],
)
def test_a_yaml_that_cannot_be_met_is_refused(
    tmp_path: Path, checkpoint: Callable[[str], Path], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    config = json.loads(json.dumps(scaled_weights("ffhq256")[1]))
    change(config["model"]["params"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=message):
        import_original(checkpoint("ffhq256"), tmp_path / "model", config=path)


def test_other_checkpoints_are_recognised(tmp_path: Path) -> None:
    torch.save({"state_dict": {"layer1.weight": torch.ones(2, 2)}}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"no known layout.*'layer1.weight'"):
        import_original(tmp_path / "resnet.pth", tmp_path / "model")
    torch.save({"state_dict": {"model.diffusion_model.x": torch.ones(2, 2)}}, tmp_path / "unet.pth")
    with pytest.raises(UserError, match="has a U-Net but no first stage"):
        import_original(tmp_path / "unet.pth", tmp_path / "model")


@needs_parity
def test_averaged_weights_are_asked_of_a_file_without_them(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="has no averaged weights"):
        import_original(checkpoint("vq-f4"), tmp_path / "model", weights="ema")


def test_yaml_beside_the_checkpoint(tmp_path: Path) -> None:
    for name in ("a.ckpt", "model.ckpt", "last.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "config.yaml").write_text("model: {target: x}")
    (tmp_path / "a.yaml").write_text("autoencoder: {}")  # ours, not the original's
    assert find_yaml(tmp_path / "a.ckpt") is None
    assert find_yaml(tmp_path / "model.ckpt") == tmp_path / "config.yaml"
    assert find_yaml(tmp_path / "last.ckpt") == tmp_path / "config.yaml"
    (tmp_path / "a.yaml").write_text("model: {target: x}")
    assert find_yaml(tmp_path / "a.ckpt") == tmp_path / "a.yaml"


# -- schedule ---------------------------------------------------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize("name", ["ffhq256", "bsr_sr", "semantic_synthesis256"])
def test_schedule_buffers(name: str) -> None:
    g = golden(name)
    config = match("betas", g["schedule/betas"])
    assert config["end"] == {"ffhq256": 0.0195, "bsr_sr": 0.0155, "semantic_synthesis256": 0.0205}[name]
    made = schedule_buffers(betas_of(ScaledLinearConfig(**{k: v for k, v in config.items() if k != "kind"})))
    for key, value in made.items():
        assert (value - g[f"schedule/{key}"]).abs().max() <= 1e-6 * g[f"schedule/{key}"].abs().max(), key


@pytest.mark.parametrize(
    "config",
    [
        ScaledLinearConfig(start=0.00085, end=0.012),
        LinearConfig(start=0.0001, end=0.02),
        SqrtConfig(start=0.0002, end=0.01),
        CosineConfig(),
        ScaledLinearConfig(steps=250, start=0.0015, end=0.0205),
    ],
)
def test_a_schedule_is_recognised_by_its_betas(config: ScaledLinearConfig | SqrtConfig) -> None:
    expected = config.model_dump(exclude={"zero_terminal_snr"})
    found = match("betas", betas_of(config).float())
    assert found.keys() == expected.keys()
    assert {k: v for k, v in found.items() if not isinstance(v, float)} == {
        k: v for k, v in expected.items() if not isinstance(v, float)
    }
    assert all(found[k] == pytest.approx(v, rel=1e-6) for k, v in expected.items() if isinstance(v, float))


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="follow no known schedule"):
        match("betas", torch.rand(1000, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("stored", "found", "noted"),
    [
        (betas_of(CosineConfig()), CosineConfig(), 0),
        (zero_terminal(betas_of(CosineConfig())), CosineConfig(zero_terminal_snr=True), 1),
        (betas_of(ScaledLinearConfig(end=0.0205)), ScaledLinearConfig(end=0.0205), 1),
        (betas_of(SigmoidConfig()), SigmoidConfig(), 1),
    ],
)
def test_the_stored_schedule_overrules_the_configured_one(
    stored: Tensor, found: ScaledLinearConfig | CosineConfig, noted: int, tmp_path: Path
) -> None:
    config = full_size("ffhq256")
    config["model"]["params"]["beta_schedule"] = "cosine"
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    torch.save({"betas": stored.float()}, tmp_path / "x.ckpt")
    notes: list[str] = []
    read = read_architecture(open_checkpoint(tmp_path / "x.ckpt"), tmp_path / "x.yaml", None, notes.append)
    assert read.diffusion is not None
    config_of_it = TypeAdapter[ScheduleConfig](ScheduleConfig).validate_python(read.diffusion.schedule)
    torch.testing.assert_close(build_schedule(config_of_it).betas, build_schedule(found).betas, rtol=1e-5, atol=1e-7)
    assert config_of_it.kind == found.kind
    assert len(notes) == noted
