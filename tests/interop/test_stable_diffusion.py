"""Stable Diffusion's single files, shrunken: CLIP and OpenCLIP through transformers, eps and v prediction."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import sfumato
from parity import relative_error
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.denoiser.unet import UNet, UNetConfig
from sfumato.diffusion.schedule import ScaledLinearConfig, betas_of, zero_terminal
from sfumato.errors import UserError
from sfumato.interop.buffers import schedule_buffers
from sfumato.interop.convert import export_model
from sfumato.interop.diffusers_export import export_diffusers
from sfumato.interop.original import import_original
from sfumato.interop.original_export import export_original
from sfumato.interop.source import open_checkpoint
from sfumato.quantization import quantize

transformers = pytest.importorskip("transformers")
WIDTH, WORDS = 64, 30


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def clip(activation: str) -> Any:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=WORDS + 2,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=1,
        max_position_embeddings=12,
        hidden_act=activation,
        bos_token_id=WORDS,
        eos_token_id=WORDS + 1,
        pad_token_id=WORDS + 1,
    )
    return transformers.CLIPTextModel(config).eval()


def text_state(model: Any) -> dict[str, Tensor]:
    """CLIP's tensors under the names of 2022."""
    out = {}
    for key, value in model.state_dict().items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        if not name.endswith("position_ids"):
            out[name] = value
    return out


def open_clip_state(model: Any) -> dict[str, Tensor]:
    """The same encoder as OpenCLIP stores it, written out layer by layer."""
    s = text_state(model)
    out = {
        "token_embedding.weight": s["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": s["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": s["text_model.final_layer_norm.weight"],
        "ln_final.bias": s["text_model.final_layer_norm.bias"],
        "text_projection": torch.ones(WIDTH, WIDTH),
        "logit_scale": torch.tensor(4.6),
    }
    for n in range(3):
        ours, theirs = f"text_model.encoder.layers.{n}.", f"transformer.resblocks.{n}."
        for end in ("weight", "bias"):
            out[f"{theirs}attn.in_proj_{end}"] = torch.cat([s[f"{ours}self_attn.{x}_proj.{end}"] for x in "qkv"])
            out[f"{theirs}attn.out_proj.{end}"] = s[f"{ours}self_attn.out_proj.{end}"]
            out[f"{theirs}ln_1.{end}"] = s[f"{ours}layer_norm1.{end}"]
            out[f"{theirs}ln_2.{end}"] = s[f"{ours}layer_norm2.{end}"]
            out[f"{theirs}mlp.c_fc.{end}"] = s[f"{ours}mlp.fc1.{end}"]
            out[f"{theirs}mlp.c_proj.{end}"] = s[f"{ours}mlp.fc2.{end}"]
    return out


@cache
def checkpoint(version: int, channels: int = 4) -> dict[str, Tensor]:
    """Stable Diffusion's layout at a tenth of its width; to be left as it is."""
    torch.manual_seed(1)
    heads = {"heads": 8} if version == 1 else {"head_channels": 64}
    unet = UNetConfig(
        channels=32 if version == 1 else 64,
        channel_multipliers=(1, 2, 4, 4),
        blocks_per_level=2 if version == 1 else 1,
        attention_factors=(1, 2, 4),
        linear_projections=version == 2,
        vector_projection="none",
        **heads,
    )
    denoiser = UNet(unet, 4, ConditionSpec(token_dim=WIDTH, spatial_channels=channels - 4))
    first = Autoencoder(AutoencoderConfig(channels=32, blocks_per_level=1))
    state = schedule_buffers(betas_of(ScaledLinearConfig(start=0.00085, end=0.012)))
    state |= {f"model.diffusion_model.{key}": value for key, value in denoiser.state_dict().items()}
    state |= {f"first_stage_model.{key}": value for key, value in first.state_dict().items()}
    encoder = clip("quick_gelu" if version == 1 else "gelu")
    if version == 1:
        state |= {f"cond_stage_model.transformer.{key}": value for key, value in text_state(encoder).items()}
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(12)[None]
    else:
        state |= {f"cond_stage_model.model.{key}": value for key, value in open_clip_state(encoder).items()}
    state = {key: value.contiguous().clone() for key, value in state.items()}
    for value in state.values():  # layers that start at zero would hide what comes before them
        if value.dim() > 1 and not value.any():
            value.normal_(std=0.05)
    return state


def tokenizer_folder(path: Path) -> Path:
    """A tokenizer of single letters in the library's own form."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {chr(ord("a") + i): i for i in range(26)} | {"?": 26, ".": 27, "!": 28, ",": 29}
    words |= {"<start>": WORDS, "<end>": WORDS + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = [("<start>", WORDS), ("<end>", WORDS + 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=frame)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="?"
    )
    fast.save_pretrained(path)
    return path


def expected_tokens(version: int, folder: Path, text: list[str]) -> Tensor:
    encoder = clip("quick_gelu" if version == 1 else "gelu")
    ids = transformers.AutoTokenizer.from_pretrained(folder)(
        text, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    ).input_ids
    out = encoder(input_ids=ids, output_hidden_states=True)
    if version == 1:
        return out.last_hidden_state
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    return norm(out.hidden_states[-2])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_single_file_opens_with_its_text_encoder(version: int, suffix: str, tmp_path: Path) -> None:
    state = checkpoint(version)
    path = tmp_path / f"sd{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 470000}, path)
    else:
        save_file(state, path)
    words = tokenizer_folder(tmp_path / "words")
    prediction = "v" if version == 2 else None
    result = import_original(path, tmp_path / "model", tokenizer=str(words), prediction=prediction)
    assert result.config.diffusion is not None
    assert result.config.diffusion.prediction == ("v" if version == 2 else "eps")
    assert result.config.diffusion.schedule.model_dump()["end"] == 0.012
    assert result.config.image_size == ((768, 768) if version == 2 else (512, 512))
    assert not any("no known use" in note for note in result.notes)
    model = sfumato.load(result.folder)
    assert model.scaling.scale.tolist() == pytest.approx([0.18215] * 4)
    assert model.second is not None
    assert model.second.conditioner is not None
    tokens = model.second.conditioner({"text": ["a b c", ""]}).tokens
    assert tokens is not None
    assert relative_error(tokens, expected_tokens(version, words, ["a b c", ""])) <= 1e-5
    back = open_checkpoint(export_original(result.folder, tmp_path / f"back{suffix}").checkpoint)
    assert set(back.tensors) == set(state)
    assert all(torch.equal(back.tensors[key].load(), value) for key, value in state.items())


def test_a_moved_folder_still_finds_its_text_encoder(tmp_path: Path) -> None:
    save_file(checkpoint(1), tmp_path / "sd.safetensors")
    words = tokenizer_folder(tmp_path / "words")
    import_original(tmp_path / "sd.safetensors", tmp_path / "model", tokenizer=str(words))
    moved = (tmp_path / "model").rename(tmp_path / "elsewhere")
    words.rename(tmp_path / "words elsewhere")
    model = sfumato.load(moved)
    assert model.sample("a b", steps=1, size=(64, 64), as_tensor=True).shape == (1, 3, 64, 64)


def test_stable_diffusion_2_asks_what_it_predicts(tmp_path: Path) -> None:
    state = checkpoint(2)
    save_file(state, tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match="give --prediction eps or --prediction v"):
        import_original(tmp_path / "sd.safetensors", tmp_path / "model")
    torch.save({"state_dict": state, "global_step": 875000}, tmp_path / "base.ckpt")
    torch.save({"state_dict": state, "global_step": 110000}, tmp_path / "768.ckpt")
    for name, expected, size in (("base", "eps", 512), ("768", "v", 768)):
        config = import_original(tmp_path / f"{name}.ckpt", tmp_path / name).config
        assert config.diffusion is not None
        assert (config.diffusion.prediction, config.image_size) == (expected, (size, size))


def test_zero_terminal_snr_asks_what_is_predicted_unless_it_is_marked(tmp_path: Path) -> None:
    betas = zero_terminal(betas_of(ScaledLinearConfig(start=0.00085, end=0.012)))
    state = {**checkpoint(1), **schedule_buffers(betas)}
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"zero terminal SNR.*give --prediction v, or --prediction eps"):
        import_original(tmp_path / "x.safetensors", tmp_path / "out")
    state["v_pred"] = torch.zeros(0)
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "x.safetensors")
    done = import_original(tmp_path / "x.safetensors", tmp_path / "out")
    assert done.config.diffusion is not None
    assert done.config.diffusion.prediction == "v"
    assert (
        "the schedule was read from 'betas' in float16: scaled-linear, 0.00085 to 0.012, zero terminal SNR"
        in done.notes
    )


def test_inpainting_takes_mask_and_masked_latent(tmp_path: Path) -> None:
    save_file(checkpoint(1, channels=9), tmp_path / "sd.safetensors")
    words = tokenizer_folder(tmp_path / "words")
    model = sfumato.load(import_original(tmp_path / "sd.safetensors", tmp_path / "model", tokenizer=str(words)).folder)
    assert model.second is not None
    assert model.second.conditioner is not None
    assert set(model.second.conditioner.reads) == {"mask", "masked_latent", "text"}
    mask, masked = torch.zeros(1, 1, 8, 8), torch.ones(1, 4, 8, 8)
    spatial = model.second.conditioner({"mask": mask, "masked_latent": masked, "text": ["a"]}).spatial
    assert spatial is not None
    assert torch.equal(spatial, torch.cat([mask, masked], 1))


def test_the_way_to_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    save_file(checkpoint(1), tmp_path / "sd.safetensors")
    words = tokenizer_folder(tmp_path / "words")
    import_original(tmp_path / "sd.safetensors", tmp_path / "model", tokenizer=str(words))
    export_diffusers(tmp_path / "model", tmp_path / "theirs")
    model = sfumato.load(tmp_path / "model")
    assert model.second is not None
    assert model.second.conditioner is not None
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "theirs" / "unet")
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "theirs" / "vae")
    encoder = transformers.CLIPTextModel.from_pretrained(tmp_path / "theirs" / "text_encoder")
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "theirs" / "scheduler")
    condition = model.second.conditioner({"text": ["a b c"]})
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs" / "tokenizer")(
        ["a b c"], padding="max_length", max_length=12, return_tensors="pt"
    ).input_ids
    tokens = encoder(input_ids=ids).last_hidden_state
    assert condition.tokens is not None
    assert relative_error(condition.tokens, tokens) <= 1e-5
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500])
    assert relative_error(unet(x, t, tokens).sample, model.second.denoiser(x, t, condition)) <= 1e-5
    assert (
        relative_error(
            vae.decode(x / vae.config.scaling_factor).sample, model.autoencoder.decode(model.scaling.to_raw(x))
        )
        <= 1e-5
    )
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("format", ["original", "diffusers"])
def test_an_export_is_read_back_with_its_text_encoder(version: Any, format: Any, tmp_path: Path) -> None:
    """Stable Diffusion 2 reads the last but one layer, which diffusers expresses by leaving out the last one."""
    pytest.importorskip("diffusers")
    save_file(checkpoint(version), tmp_path / "sd.safetensors")
    words = tokenizer_folder(tmp_path / "words")
    prediction = "v" if version == 2 else None
    import_original(tmp_path / "sd.safetensors", tmp_path / "model", tokenizer=str(words), prediction=prediction)
    notes = export_model(tmp_path / "model", tmp_path / "out", format)
    if format == "original":
        return
    assert any("before its last layer" in note for note in notes) == (version == 2)
    encoder = transformers.CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder")
    ids = transformers.AutoTokenizer.from_pretrained(words)(
        ["a b c"], padding="max_length", max_length=12, return_tensors="pt"
    ).input_ids
    expected = expected_tokens(version, words, ["a b c"])
    assert relative_error(encoder(input_ids=ids).last_hidden_state, expected) <= 1e-5


def test_fewer_bits_leave_the_text_encoder_as_it_is(tmp_path: Path) -> None:
    save_file(checkpoint(1), tmp_path / "sd.safetensors")
    words = tokenizer_folder(tmp_path / "words")
    import_original(tmp_path / "sd.safetensors", tmp_path / "model", tokenizer=str(words))
    made = quantize(tmp_path / "model", tmp_path / "small")
    assert made.copied == ("text_encoder", "tokenizer")
    assert made.left_out == ("original.safetensors",)
    shutil.rmtree(tmp_path / "model")  # nothing refers to it
    second = sfumato.load(tmp_path / "small").second
    assert second is not None
    assert second.conditioner is not None
    found = second.conditioner({"text": ["a b c"]}).tokens
    assert found is not None
    assert relative_error(found, expected_tokens(1, words, ["a b c"])) <= 1e-5
