"""Model folders in 8 and 16 bits: they open as any other, and every command takes them."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import sfumato
import tiny
from command_line import Command, check, contents
from sfumato import checkpoint
from sfumato.autoencoder.model import autoencoder_digest
from sfumato.autoencoder.tiny import TinyDecoder, TinyDecoderConfig
from sfumato.autoencoder.tiny_file import DistilledConfig, DistilledDecoder
from sfumato.config import parse
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.publishing.facts import gather
from sfumato.publishing.upload import write_repository
from sfumato.quantization import quantize
from sfumato.service.registry import described

PROMPTS = ["a red apple", "two blue discs"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model with a tiny decoder, in a folder with a card."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    model = tiny.model()
    torch.manual_seed(3)
    config = TinyDecoderConfig(latent_channels=3, factor=2, channels=16)
    header = DistilledConfig(decoder=config, autoencoder=autoencoder_digest(model.autoencoder))
    sfumato.LatentDiffusion(
        model.config, model.autoencoder, model.scaling, model.second, DistilledDecoder(header, TinyDecoder(config))
    ).save(folder)
    (folder / "README.md").write_text("# apples\n")
    return folder


@pytest.fixture(scope="module")
def eight(plain: Path) -> Path:
    quantize(plain, plain.with_name("eight"), 8)
    return plain.with_name("eight")


def weights(model: LatentDiffusion) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": w for name, part in model.parts().items() for key, w in part.state_dict().items()}


@pytest.mark.parametrize(("bits", "share", "error"), [(16, 0.62, 5e-4), (8, 0.45, 0.012)])
def test_a_smaller_folder_opens_as_the_same_model_within_its_error(
    plain: Path, tmp_path: Path, bits: int, share: float, error: float
) -> None:
    made = quantize(plain, tmp_path / "small", bits)  # type: ignore[arg-type]
    before, after = sfumato.load(plain), sfumato.load(tmp_path / "small")
    assert 0 < made.error < error
    assert made.digests == (before.digest, after.digest)
    assert made.digests[0] != made.digests[1]
    assert (made.left_out, made.copied) == (("README.md",), ())
    assert sum(size for _, size in made.sizes.values()) < share * sum(size for size, _ in made.sizes.values())
    assert set(made.sizes) == {path.name for path in plain.glob("*.safetensors")}
    assert after.config == before.config
    others = weights(after)
    for name, w in weights(before).items():
        assert others[name].dtype == torch.float32
        assert float((others[name] - w).norm()) <= made.error * 1.001 * float(w.norm()) + 1e-12, name
    assert torch.equal(after.scaling.scale, before.scaling.scale)
    assert torch.equal(after.scaling.shift, before.scaling.shift)
    assert after.tiny is not None
    images = [model.sample_tensor(PROMPTS, steps=3, seed=1) for model in (before, after)]
    assert 0 < float((images[0] - images[1]).abs().mean()) < 0.1 * float(images[0].std())


def test_saving_with_bits_writes_the_same_files(plain: Path, eight: Path, tmp_path: Path) -> None:
    sfumato.load(plain).save(tmp_path / "saved", bits=8)
    assert contents(tmp_path / "saved") == contents(eight)
    sfumato.load(eight).save(tmp_path / "again", bits=8)
    assert contents(tmp_path / "again") == contents(eight), "what is rounded already stays the same, bit for bit"
    sfumato.load(eight).save(tmp_path / "whole")
    assert sfumato.load(tmp_path / "whole").digest == sfumato.load(eight).digest
    assert checkpoint.stored_bits(tmp_path / "whole" / "denoiser.safetensors") is None


def test_the_keys_are_those_of_the_modules_with_a_scale_for_each_int8_tensor(plain: Path, eight: Path) -> None:
    from safetensors import safe_open

    with safe_open(eight / "denoiser.safetensors", "pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    names = set(checkpoint.load_tensors(plain / "denoiser.safetensors")[0])
    scales = {name for name in kinds if name.endswith(".scale")}
    assert kinds.keys() - scales == names
    assert scales == {f"{name}.scale" for name, kind in kinds.items() if kind == "I8"}
    assert kinds["input_blocks.1.0.in_layers.2.weight"] == "I8"
    assert kinds["input_blocks.1.0.in_layers.2.weight.scale"] == "BF16"
    assert kinds["input_blocks.1.0.in_layers.0.weight"] == "F16"


def test_a_folder_of_float16_weights_loses_nothing_in_16_bits(plain: Path, tmp_path: Path) -> None:
    """Such as an older model of half precision, whose files do not say how they are stored."""
    shutil.copytree(plain, tmp_path / "half", ignore=shutil.ignore_patterns("tiny_decoder.safetensors", "config.yaml"))
    lines = (plain / "config.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "half" / "config.yaml").write_text("".join(line for line in lines if line[0] != "#"))  # no checksums
    for path in (tmp_path / "half").glob("*.safetensors"):
        if path.stem != "scaling":
            checkpoint.save_tensors(path, {name: w.half() for name, w in checkpoint.load_tensors(path)[0].items()})
    assert quantize(tmp_path / "half", tmp_path / "small", 16).error == 0
    half, small = (weights(sfumato.load(tmp_path / name)) for name in ("half", "small"))
    assert all(torch.equal(half[name].float(), w) for name, w in small.items())
    assert {w.dtype for w in small.values()} == {torch.float32}


def test_the_command_states_sizes_error_and_what_is_left_out(command: Command, plain: Path, tmp_path: Path) -> None:
    done = command("quantize", plain, "--out", tmp_path / "out")
    assert done.code == 0, done
    before, after = (sfumato.load(folder) for folder in (plain, tmp_path / "out"))
    lines = done.out.splitlines()
    assert f"digest: {before.digest} before, {after.digest} after" in lines
    assert "left out: README.md" in lines
    (whole,) = (line for line in lines if line.startswith("all weights"))
    for folder, shown in ((plain, whole.split()[2]), (tmp_path / "out", whole.split()[4])):
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert float(shown) == pytest.approx(size / 1e6, abs=0.006)
    rows = dict(line.split(maxsplit=1) for line in command("info", tmp_path / "out").out.splitlines())
    assert rows["stored"].startswith("bits 8, bytes ")
    assert rows["digest"].strip() == after.digest


def test_refusals(command: Command, plain: Path, eight: Path, tmp_path: Path) -> None:
    for bits in (8, 16):
        done = command("quantize", eight, "--out", tmp_path / "out", "--bits", bits)
        check(done, f"is stored in 8 bits already: {bits} bits would not make it smaller")
    assert command("quantize", plain, "--out", tmp_path / "out", "--bits", 4).code == 2
    for call in (lambda: quantize(plain, tmp_path / "out", 4), lambda: sfumato.load(plain).save(tmp_path / "out", 4)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="bits: weights are stored in 8 or 16 bits, not '4'"):
            call()
    check(command("quantize", plain, "--out", eight), "is in use")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "model")
    (tmp_path / "model" / "conditioner.safetensors").write_bytes(b"no")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        quantize(tmp_path / "model", tmp_path / "out")
    assert contents(tmp_path) == before


def test_a_push_has_as_few_bits(eight: Path, tmp_path: Path) -> None:
    from sfumato.publishing.card import Words

    write_repository(gather(eight), Words("ada/apples"), tmp_path / "pushed")
    names = {path.name for path in eight.glob("*.safetensors")}
    assert {path.name for path in (tmp_path / "pushed").glob("*.safetensors")} == names
    assert all((tmp_path / "pushed" / name).read_bytes() == (eight / name).read_bytes() for name in names)


def test_a_service_counts_the_memory_of_expanded_weights(plain: Path, eight: Path) -> None:
    model = sfumato.load(eight)
    numbers = sum(4 * w.numel() for w in weights(model).values())
    for folder in (plain, eight):
        tiny_file = (folder / "tiny_decoder.safetensors").stat().st_size
        assert described("x", folder).weights == numbers + tiny_file


def test_pretrained_encoders_inside_the_folder_are_copied_as_they_are(tmp_path: Path) -> None:
    from sfumato.model_config import ModelConfig
    from sfumato.quantization import _encoders_inside

    raw = yaml.safe_load("""
        denoiser: {kind: unet, channels: 32, channel_multipliers: [1], blocks_per_level: 1, attention_factors: []}
        conditioner:
          kind: composite
          parts:
            text: {kind: pretrained-text, source: text_encoder, tokenizer: tokenizer}
            other: {kind: pretrained-text, source: openai/clip-vit-large-patch14, tokenizer: ../elsewhere}
        schedule: {kind: linear}
    """)
    config = parse(tiny.CONFIG | {"diffusion": raw}, ModelConfig, "x")
    for name in ("model/text_encoder", "model/tokenizer", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    assert _encoders_inside(config, tmp_path / "model") == ["text_encoder", "tokenizer"], "nothing outside the folder"
