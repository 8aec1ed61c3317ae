"""Where an export may go, what it leaves behind when it fails, and what it refuses."""

import errno
import hashlib
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import sfumato
from command_line import Command
from sfumato import checkpoint
from sfumato.autoencoder.scaling import Scaling
from sfumato.errors import UserError
from sfumato.interop import convert, original_export
from sfumato.interop.convert import export_model, import_model
from sfumato.locks import exclusive
from sfumato.model import LatentDiffusion, ModelConfig, build
from sfumato.quantization import quantize

TINY = {"channels": 32, "channel_multipliers": [1, 2], "blocks_per_level": 1, "latent_channels": 3}
UNET = {"channels": 32, "channel_multipliers": [1], "blocks_per_level": 1, "attention_factors": [], "head_channels": 16}


def model_at(
    folder: Path, diffusion: dict[str, Any] | None = None, scaling: Scaling | None = None, **more: Any
) -> Path:
    torch.manual_seed(1)
    raw = {"autoencoder": TINY, "image_size": (16, 16), "diffusion": diffusion, **more}
    model = build(ModelConfig.model_validate(raw))
    with torch.no_grad():
        for part in model.parts().values():
            for p in part.parameters():
                p.add_(torch.randn(p.shape) * 0.05)
    LatentDiffusion(model.config, model.autoencoder, scaling or model.scaling, model.second).save(folder)
    return folder


def run_at(folder: Path) -> Path:
    model_at(folder / "model")
    (folder / "states").mkdir()
    (folder / "states" / "step-00000001.safetensors").write_bytes(b"x")
    (folder / "config.yaml").write_text("a: run\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("format", ["original", "diffusers"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("place", ["run", "run/model", "run/states", "run/new", "."])
def test_a_run_is_never_written_over(
    command: Command, place: str, more: list[str], format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(run_at(tmp_path / "run"))
    done = command("export", "run", place, "--format", format, *more)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "wrote" not in done.out
    assert contents(tmp_path / "run") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("begun", [True, False], ids=["with states", "before the first save"])
@pytest.mark.parametrize("place", ["run/model", "run/states", "run/previews", "run/best/model"])
def test_what_a_run_writes_is_not_another_commands_to_replace(
    command: Command, place: str, begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_at(tmp_path / "run")
    if not begun:
        shutil.rmtree(tmp_path / "run" / "states")
        shutil.rmtree(tmp_path / "run" / "model")
        (tmp_path / "run" / "log.jsonl").write_text("{}")
    model_at(tmp_path / "other")
    export_model("other", "other.ckpt", "original")
    before = contents(tmp_path / "run")
    for line in (["export", "other", place, "--format", "diffusers"], ["import", "other.ckpt", place]):
        done = command(*line, "--overwrite")
        assert done.code == 2, done.out
        assert "is a part of the run" in done.err
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("out", ["used", "used/model.ckpt"])
def test_what_is_in_use_is_replaced_only_when_asked(command: Command, out: str, tmp_path: Path) -> None:
    model = model_at(tmp_path / "model")
    (tmp_path / "used").mkdir()
    held = tmp_path / "used" / "model.ckpt"
    held.write_text("mine")
    done = command("export", str(model), str(tmp_path / out), "--format", "original")
    assert done.code == 2
    assert "--overwrite" in done.err
    assert held.read_text() == "mine"
    done = command("export", str(model), str(tmp_path / out), "--format", "original", "--overwrite")
    assert done.code == 0, done.err
    assert import_model(held, tmp_path / "back").folder.is_dir()
    assert not [p for p in (*tmp_path.iterdir(), *(tmp_path / "used").iterdir()) if p.name.startswith(".")]


def test_a_file_beside_which_a_yaml_stands_is_in_use(tmp_path: Path) -> None:
    model_at(tmp_path / "model")
    (tmp_path / "x.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"x\.yaml' exists"):
        export_model(tmp_path / "model", tmp_path / "x.ckpt", "original")
    assert not (tmp_path / "x.ckpt").exists()


def test_links_lead_to_what_they_name(tmp_path: Path) -> None:
    model_at(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(UserError, match="is also the input"):
        export_model(tmp_path / "model", tmp_path / "link", "diffusers", overwrite=True)
    with pytest.raises(UserError, match="is a link to"):
        export_model(tmp_path / "model", tmp_path / "nowhere", "diffusers")
    with pytest.raises(UserError, match="cannot be created: File name too long"):
        export_model(tmp_path / "model", tmp_path / ("x" * 300), "diffusers")


def test_one_export_writes_at_a_time(tmp_path: Path) -> None:
    model_at(tmp_path / "model")
    with exclusive(tmp_path / "out"), pytest.raises(UserError, match="is being written by process"):
        export_model(tmp_path / "model", tmp_path / "out", "diffusers")


def test_one_import_writes_at_a_time(tmp_path: Path) -> None:
    model_at(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "foreign", "diffusers")
    with exclusive(tmp_path / "out"), pytest.raises(UserError, match="is being written by process"):
        import_model(tmp_path / "foreign", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_model(tmp_path / "foreign", tmp_path / "out")
    assert (tmp_path / "out" / "config.yaml").exists()
    assert not list(tmp_path.glob(".*.lock"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The operating system refuses to write more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("format", "out"), [("original", "a/b"), ("original", "a/b/x.ckpt"), ("diffusers", "a/b")])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(format: Any, out: str, tmp_path: Path) -> None:
    model_at(tmp_path / "model")
    with files_of_at_most(50_000), pytest.raises(UserError, match=r"written|disk"):
        export_model(tmp_path / "model", tmp_path / out, format)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_fills_up_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_at(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", "diffusers")
    before = contents(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "swap_folder", full)
    with pytest.raises(UserError, match="could not be written"):
        export_model(tmp_path / "model", tmp_path / "out", "diffusers", overwrite=True)
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        export_model(tmp_path / "model", tmp_path / "out", "diffusers", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_an_export_that_reads_back_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_at(tmp_path / "model")

    def wrong(folder: Path, config: ModelConfig, say: Any) -> Any:
        state, extras, text = made(folder, config, say)
        return {**state, "decoder.conv_out.bias": state["decoder.conv_out.bias"] + 0.01}, extras, text

    made = original_export._made_here
    monkeypatch.setattr(original_export, "_made_here", wrong)
    with pytest.raises(UserError, match=r"autoencoder's 'decoder\.conv_out\.bias' has other values"):
        export_model(tmp_path / "model", tmp_path / "out", "original")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def stage(conditioner: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    unet = {**UNET, **more.pop("denoiser", {})}
    base = {"denoiser": unet, "conditioner": conditioner or {"kind": "none"}, "schedule": {"kind": "scaled-linear"}}
    return {**base, **more}


TEXT = {"kind": "text", "dim": 16, "depth": 1, "max_tokens": 6, "vocabulary": 110, "tokenizer": "none"}
LAYOUT = {"kind": "layout", "classes": 4, "objects": 2, "vocabulary": 60, "dim": 16, "depth": 1, "mask_padding": False}


@pytest.mark.parametrize(
    ("diffusion", "format", "message"),
    [
        (stage(denoiser={"norm_groups": 8}), "original", "U-Net with norm_groups: 8"),
        (stage(TEXT), "original", "mask_padding.*--format diffusers"),
        (stage({**TEXT, "mask_padding": False, "pooled": True}), "original", "pooled: true"),
        (stage({**TEXT, "pooled": True}), "diffusers", "pooled: true"),
        (stage({**LAYOUT, "box": "center"}), "original", "box: center"),
        (stage({**LAYOUT, "crop_tokens": False}), "original", "crop_tokens: false"),
        (stage(denoiser={"channel_multipliers": [1, 1], "resample": "pool"}), "diffusers", "resample: pool"),
        (stage(schedule={"kind": "sqrt"}), "diffusers", "sqrt schedule cannot.*--format original"),
        (stage(schedule={"kind": "sigmoid"}), "diffusers", "sigmoid schedule cannot.*--format original"),
        (stage(schedule={"kind": "cosine", "max_beta": 0.9}), "diffusers", "max_beta 0.9 cannot"),
        (
            stage(
                {"kind": "composite", "parts": {"c": {"kind": "class", "classes": 3, "dim": 128, "output": "vector"},
                                                "i": {"kind": "image", "channels": 1}}},
                denoiser={"vector_projection": "none"},
            ),
            "diffusers",
            "class vector together with other conditions",
        ),
    ],
)  # fmt: skip
def test_what_a_format_cannot_express_is_refused_by_name(
    diffusion: Any, format: Any, message: str, tmp_path: Path
) -> None:
    model_at(tmp_path / "model", diffusion)
    with pytest.raises(UserError, match=message):
        export_model(tmp_path / "model", tmp_path / "out" / "deep", format)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "sigmoid", "start": -2.0, "temperature": 0.8, "steps": 100},
        {"kind": "cosine", "offset": 0.02, "max_beta": 0.9, "steps": 100},
        {"kind": "sqrt", "zero_terminal_snr": True, "steps": 100},
        {"kind": "scaled-linear", "start": 0.001, "end": 0.0123456789, "steps": 77},
    ],
)
def test_any_table_of_noise_levels_comes_back_through_the_original(schedule: dict[str, Any], tmp_path: Path) -> None:
    model = model_at(tmp_path / "model", stage(schedule=schedule, prediction="v"))
    export_model(model, tmp_path / "out", "original")
    back = import_model(tmp_path / "out" / "model.ckpt", tmp_path / "back").config
    assert back.diffusion == sfumato.load(model).config.diffusion


@pytest.mark.parametrize("format", ["original", "diffusers"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_shift_alone_is_folded_too(alone: bool, format: Any, tmp_path: Path) -> None:
    scaling = Scaling(torch.tensor([0.3, -1.0, 0.1]), torch.ones(3))
    model = sfumato.load(model_at(tmp_path / "model", None if alone else stage(), scaling))
    notes = export_model(tmp_path / "model", tmp_path / "out", format)
    assert "folded" in notes[0]
    source = tmp_path / "out" / "model.ckpt" if format == "original" else tmp_path / "out"
    back = sfumato.load(import_model(source, tmp_path / "back").folder)
    latent = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert (model.decode(latent) - back.decode(latent)).abs().max() <= 1e-5


@pytest.mark.parametrize("format", ["original", "diffusers"])
def test_names_sizes_and_dropout_come_back(format: Any, tmp_path: Path) -> None:
    classes = {"kind": "class", "classes": 2, "dim": 16}
    model = model_at(
        tmp_path / "model", stage(classes, condition_dropout=0.3), image_size=(16, 32), classes=("cat", "dog")
    )
    notes = export_model(model, tmp_path / "out", format)
    assert any("only sfumato reads its training size 16x32 and the names of its 2 classes" in n for n in notes)
    source = tmp_path / "out" / "model.ckpt" if format == "original" else tmp_path / "out"
    back = import_model(source, tmp_path / "back").config
    assert back.model_dump(exclude={"about"}) == sfumato.load(model).config.model_dump(exclude={"about"})


def test_weights_trained_on_after_an_import_in_half_precision_keep_their_digits(tmp_path: Path) -> None:
    model = sfumato.load(model_at(tmp_path / "model"))
    half = {name: t.half() for name, t in model.autoencoder.state_dict().items()}
    export_model(tmp_path / "model", tmp_path / "out", "original")
    torch.save({"state_dict": half}, tmp_path / "half.ckpt")
    (tmp_path / "half.yaml").write_text((tmp_path / "out" / "config.yaml").read_text())
    folder = import_model(tmp_path / "half.ckpt", tmp_path / "half").folder
    tensors, _ = checkpoint.load_tensors(folder / "autoencoder.safetensors")
    tensors["decoder.conv_out.bias"] += 1e-5
    checkpoint.save_tensors(folder / "autoencoder.safetensors", tensors)
    export_model(folder, tmp_path / "again", "original")
    state = torch.load(tmp_path / "again" / "model.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["decoder.conv_out.bias"], tensors["decoder.conv_out.bias"])
    assert state["decoder.conv_in.weight"].dtype == torch.float16


def test_other_programs_read_what_a_file_is(tmp_path: Path) -> None:
    model_at(tmp_path / "portraits", {"denoiser": UNET, "schedule": {"kind": "linear"}}, about={"license": "CC0-1.0"})
    for name in ("one", "two"):
        export_model(tmp_path / "portraits", tmp_path / f"{name}.safetensors", "original")
    written = (tmp_path / "one.safetensors").read_bytes()
    assert written == (tmp_path / "two.safetensors").read_bytes()
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        entries = {key.removeprefix("modelspec."): value for key, value in file.metadata().items()}
    length = int.from_bytes(written[:8], "little")
    assert entries["title"] == "portraits"
    assert entries["architecture"] == "latent-diffusion"
    assert entries["resolution"] == "16x16"
    assert entries["prediction_type"] == "epsilon"
    assert entries["license"] == "CC0-1.0"
    assert entries["hash_sha256"] == f"0x{hashlib.sha256(written[8 + length :]).hexdigest()}"
    back = import_model(tmp_path / "one.safetensors", tmp_path / "back")
    assert sfumato.load(back.folder).digest == sfumato.load(tmp_path / "portraits").digest


@pytest.mark.parametrize("format", ["original", "diffusers"])
def test_a_border_that_is_mirrored_is_refused_by_name(format: Any, tmp_path: Path) -> None:
    model_at(tmp_path / "model", autoencoder={**TINY, "padding": "reflect"})
    with pytest.raises(UserError, match=r"first stage with padding: reflect cannot be exported.*--format onnx"):
        export_model(tmp_path / "model", tmp_path / "out" / "deep", format)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("format", ["original", "diffusers"])
def test_a_model_in_8_bits_is_exported_with_its_expanded_weights(format: Any, tmp_path: Path) -> None:
    text = {**TEXT, "mask_padding": format == "diffusers", "pooled": False}
    quantize(model_at(tmp_path / "model", stage(text, denoiser={"attention_factors": [1]})), tmp_path / "eight")
    export_model(tmp_path / "eight", tmp_path / "out", format)
    source = tmp_path / "out" / "model.ckpt" if format == "original" else tmp_path / "out"
    import_model(source, tmp_path / "back")
    for part in ("autoencoder", "denoiser", "conditioner"):
        expected, _ = checkpoint.load_tensors(tmp_path / "eight" / f"{part}.safetensors")
        found, _ = checkpoint.load_tensors(tmp_path / "back" / f"{part}.safetensors")
        assert checkpoint.stored_bits(tmp_path / "back" / f"{part}.safetensors") is None
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), part
