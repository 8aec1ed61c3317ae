"""Every command, end to end on tiny trained models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import sfumato
import tiny
from command_line import Command, Runs
from command_line import facts_of as facts
from data.make_images import noise, save, truncated
from sfumato import flops
from sfumato.config import zoo_names
from sfumato.denoiser.unet import UNetConfig
from sfumato.evaluation.image_quality import psnr
from sfumato.images import from_pil, pad_to_multiple
from sfumato.rng import SampleNoise
from sfumato.sampling.table import EVERY_SAMPLER, SAMPLERS
from sfumato.shipped import shipped_models

COMMANDS = [
    "demo",
    "data",
    "shard",
    "fit",
    "sample",
    "interpolate",
    "invert",
    "reconstruct",
    "evaluate",
    "evaluate-autoencoder",
    "compare",
    "info",
    "estimate",
    "bench",
    "samplers",
    "zoo",
    "import",
    "export",
]
COMMANDS += ["semantic-to-image", "layout-to-image", "upscale", "inpaint", "edit", "outpaint"]
COMMANDS += [
    "train autoencoder",
    "train diffusion",
    "train joint",
    "train classifier",
    "train transformer",
    "study baselines",
    "study downsampling",
    "study latents",
    "study joint",
    "ema",
    "distill-decoder",
    "replace-decoder",
    "quantize",
]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- the command line itself


def test_every_help_starts_without_torch() -> None:
    code = f"""
import sys
from sfumato.cli import main
for command in {COMMANDS!r}:
    try:
        main([*command.split(), "--help"])
    except SystemExit as stopped:
        assert not stopped.code, command
    assert "torch" not in sys.modules and "PIL" not in sys.modules, command
"""
    source = str(Path(sfumato.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(COMMANDS)


def test_help_names_every_command(command: Command) -> None:
    help_text = command("--help").out
    assert all(name.split()[0] in help_text for name in COMMANDS)
    assert "..." not in help_text.split("Commands:")[1], "a summary is too long for its line"


def test_version(command: Command) -> None:
    assert command("--version").out == f"sfumato {sfumato.__version__}\n"


# ---- sample


def test_images_carry_how_they_were_made(command: Command, runs: Runs, tmp_path: Path) -> None:
    done = command("sample", runs.text, "a red circle", "-n", 3, "--steps", 3, "--seed", 5, "--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert names(tmp_path) == ["0000.png", "0001.png", "0002.png", "grid.png"]
    assert str(tmp_path) in done.out
    assert "sampler: unipc of order 2, trailing grid, 3 steps (auto; `--why` explains)\n" in done.out
    model = sfumato.load(runs.text)
    assert facts(tmp_path / "0002.png") == {
        "prompt": "a red circle",
        "seed": "7",
        "sampler": "unipc",
        "steps": "3",
        "grid": "trailing",
        "guidance": "3.0",
        "model": model.digest,
        "sfumato": sfumato.__version__,
    }
    assert pixels(tmp_path / "0000.png").shape == (32, 32, 3)
    assert pixels(tmp_path / "grid.png").shape == (66, 66, 3)


def test_a_seed_is_the_same_image_in_any_batch(command: Command, runs: Runs, tmp_path: Path) -> None:
    common = ("sample", runs.text, "a ring", "--steps", 3, "--sampler", "ddpm", "--precision", "float32", "--out")
    command(*common, tmp_path / "together", "-n", 3)
    command(*common, tmp_path / "parted", "-n", 3, "--batch", 2)
    command(*common, tmp_path / "alone", "-n", 1, "--seed", 2)
    third = pixels(tmp_path / "together" / "0002.png")
    assert np.abs(third - pixels(tmp_path / "parted" / "0002.png")).max() <= 1
    assert np.abs(third - pixels(tmp_path / "alone" / "0000.png")).max() <= 1
    assert np.abs(third - pixels(tmp_path / "together" / "0001.png")).max() > 10


def test_a_sample_does_not_hear_of_its_batch(runs: Runs) -> None:
    model = sfumato.load(runs.text)
    options = {"steps": 4, "sampler": "dpmpp-2m-sde", "guidance": 2.0}
    together = model.sample_tensor(["a", "b", "c"], seeds=[7, 8, 9], **options)
    alone = model.sample_tensor(["b"], seeds=[8], **options)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    several, one = SampleNoise([7, 8, 9]), SampleNoise([8])
    for _ in range(2):
        assert torch.equal(several((3, 4, 8, 8))[1], one((1, 4, 8, 8))[0])


def test_a_folder_in_use_is_gone_on_with(command: Command, runs: Runs, tmp_path: Path) -> None:
    common = ("sample", runs.plain, "-n", 2, "--steps", 2, "--out", tmp_path)
    command(*common)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    done = command(*common, "--seed", 2)
    assert names(tmp_path) == ["0000.png", "0001.png", "0002.png", "0003.png", "grid-0002.png", "grid.png"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert "0002" in done.err


def test_prompts_from_the_line_and_from_a_file(command: Command, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a blue square\n\na green star\n", encoding="utf-8")
    out = tmp_path / "out"
    command("sample", runs.text, "a ring", "--prompts", tmp_path / "prompts.txt", "--steps", 1, "--out", out)
    recorded = [(facts(out / f"{i:04d}.png")["prompt"], facts(out / f"{i:04d}.png")["seed"]) for i in range(3)]
    assert recorded == [("a ring", "0"), ("a blue square", "1"), ("a green star", "2")]
    assert names(out) == ["0000.png", "0001.png", "0002.png", "grid.png"]


@pytest.mark.parametrize("given", ["plain ring", "15"])
def test_a_label_by_name_or_number(command: Command, runs: Runs, tmp_path: Path, given: str) -> None:
    model = sfumato.load(runs.label)
    assert model.config.classes is not None
    assert model.config.classes[15] == "plain ring"
    common = ("--steps", 2, "-n", 1, "--guidance", 1, "--precision", "float32", "--out", tmp_path)
    assert command("sample", runs.label, "--label", given, *common).code == 0
    expected = model.sample(label=15, steps=2, guidance=1.0)
    assert np.abs(pixels(tmp_path / "0000.png") - np.asarray(expected[0]).astype(int)).max() <= 1
    assert facts(tmp_path / "0000.png")["label"] == given


@pytest.mark.parametrize("name", ["text", "label"])
def test_no_prompt_is_the_unconditional_sample(command: Command, runs: Runs, tmp_path: Path, name: str) -> None:
    folder = getattr(runs, name)
    assert command("sample", folder, "-n", 1, "--steps", 2, "--precision", "float32", "--out", tmp_path).code == 0
    written = facts(tmp_path / "0000.png")
    assert written["guidance"] == "1.0"
    assert "prompt" not in written
    model = sfumato.load(folder)
    assert model.second is not None
    assert model.second.conditioner is not None
    null = model.second.conditioner.null(1, (8, 8)).tokens
    given, _ = tiny.conditions(model, 1)
    assert given.tokens is not None
    assert torch.equal(given.tokens, null)  # type: ignore[arg-type]  # both have tokens


def test_options_reach_the_sampler(command: Command, runs: Runs, tmp_path: Path) -> None:
    def sampled(name: str, *options: object) -> np.ndarray:
        common = ("sample", runs.text, "a red ring", "-n", 1, "--steps", 4, "--precision", "float32")
        done = command(*common, *options, "--out", tmp_path / name)
        assert done.code == 0, done.err
        return pixels(tmp_path / name / "0000.png")

    plain, off = sampled("plain"), sampled("off", "--guidance", 1)
    assert (plain != off).any()
    assert (sampled("never", "--interval", "0,0") == off).all()
    assert (sampled("always", "--interval", "0,1") == plain).all()
    assert (sampled("negative", "--negative", "a blue star") != plain).any()
    assert np.abs(sampled("like-null", "--negative", "") - plain).max() <= 1
    ddim, ddpm_like = sampled("ddim", "--sampler", "ddim"), sampled("eta", "--sampler", "ddim", "--eta", 1)
    assert (ddim != ddpm_like).any()
    assert facts(tmp_path / "eta" / "0000.png")["eta"] == "1.0"
    assert (sampled("grid", "--sampler", "ddim", "--grid", "trailing") != ddim).any()
    assert facts(tmp_path / "grid" / "0000.png")["grid"] == "trailing"
    assert sampled("size", "--size", "48x24").shape == (48, 24, 3)


def test_guidance_of_many_kinds_is_recorded_in_the_image(command: Command, runs: Runs, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "#2040c0").save(tmp_path / "blue.png")
    settings = ("--sampler", "unipc:order=3", "--grid", "karras:rho=5", "--shift", 2, "--interval", "0.1,0.9")
    guidance = ("--guidance", "1,4", "--same-seed", "--rescale", 0.5, "--apg", "limit=5,momentum=-0.5")
    helpers = ("--autoguide", runs.undropped, "--autoguide-scale", 1.5, "--strip", 3, "--preview-every", 1)
    out = tmp_path / "out"
    done = command("sample", runs.text, "a ring", "-n", 2, "--steps", 3, *settings, *guidance, *helpers, "--out", out)
    assert done.code == 0, done.err
    assert names(out) == ["0000.png", "0001.png", "grid.png", "strip-0000.png"]
    recorded = facts(out / "0001.png")
    weaker = sfumato.load(runs.undropped).digest
    expected = {
        "sampler": "unipc",
        "order": "3",
        "grid": "karras",
        "rho": "5.0",
        "shift": "2.0",
        "guidance": "4.0",
        "seed": "0",
        "rescale": "0.5",
        "apg": "parallel=0,limit=5,momentum=-0.5",
        "interval": "0.1,0.9",
        "autoguide": weaker,
        "autoguide scale": "1.5",
    }
    assert {name: recorded[name] for name in expected} == expected
    assert facts(out / "0000.png")["guidance"] == "1.0"
    assert (pixels(out / "0000.png") != pixels(out / "0001.png")).any()
    assert pixels(out / "strip-0000.png").shape == (66, 3 * 34 - 2, 3)
    guidance = (
        "--image-guidance",
        f"low-res={tmp_path / 'blue.png'}",
        "--image-guidance",
        "colour=#2040c0",
        "--times",
        "999,500,100",
    )
    done = command("sample", runs.plain, "-n", 8, *guidance, "--image-guidance-scale", 0.8, "--out", tmp_path / "led")
    assert done.code == 0, done.err
    recorded = facts(tmp_path / "led" / "0000.png")
    assert recorded["image guidance"].endswith("colour=#2040c0")
    assert (recorded["grid"], recorded["steps"], recorded["times"][:5]) == ("times", "3", "[1.0,")
    free = command("sample", runs.plain, "-n", 8, "--times", "999,500,100", "--out", tmp_path / "free")
    assert free.code == 0
    target = np.array([0x20, 0x40, 0xC0])
    distances = {
        name: np.mean([np.abs(pixels(tmp_path / name / f"{i:04d}.png").mean((0, 1)) - target).mean() for i in range(8)])
        for name in ("led", "free")
    }
    assert distances["led"] < distances["free"]


def test_a_way_between_prompts_and_seeds(command: Command, runs: Runs, tmp_path: Path) -> None:
    common = ("--steps", 2, "--sampler", "ddim", "--precision", "float32")
    done = command(
        "interpolate",
        runs.text,
        "a red ring",
        "a blue star",
        "--seeds",
        "3,4",
        "--frames",
        3,
        *common,
        "--out",
        tmp_path,
    )
    assert done.code == 0, done.err
    assert names(tmp_path) == ["0000.png", "0001.png", "0002.png", "interpolation.gif", "strip.png"]
    command("sample", runs.text, "a blue star", "-n", 1, "--seed", 4, *common, "--out", tmp_path / "alone")
    assert np.abs(pixels(tmp_path / "0002.png") - pixels(tmp_path / "alone" / "0000.png")).max() <= 1
    with Image.open(tmp_path / "interpolation.gif") as moving:
        assert moving.n_frames == 4  # type: ignore[attr-defined]  # there and back


def test_interpolation_replaces_no_image(command: Command, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "0001.png").write_bytes(b"mine")
    done = command("interpolate", runs.plain, "--frames", 2, "--steps", 1, "--sampler", "ddim", "--out", tmp_path)
    assert done.code == 0, done.err
    assert names(tmp_path) == ["0001.png", "0002.png", "0003.png", "interpolation-0002.gif", "strip-0002.png"]
    assert (tmp_path / "0001.png").read_bytes() == b"mine"
    recorded = facts(tmp_path / "0003.png")
    assert (recorded["frame"], recorded["seeds"], recorded["sampler"]) == ("2 of 2", "0,1", "ddim")
    assert recorded["model"] == sfumato.load(runs.plain).digest


def test_why_explains_the_sampler(command: Command, runs: Runs, tmp_path: Path) -> None:
    common = ("sample", runs.plain, "-n", 1, "--steps", 2, "--out", tmp_path)
    assert "2 steps (auto: 2 steps are few, where" in command(*common, "--why").out
    assert "sampler: ddim, leading grid, 2 steps (as requested)" in command(*common, "--why", "--sampler", "ddim").out
    assert "sampler:" not in command(*common, "--sampler", "ddim").out


def test_a_seed_for_each_image(command: Command, runs: Runs, tmp_path: Path) -> None:
    common = ("sample", runs.plain, "--steps", 1, "--out", tmp_path)
    assert command(*common, "--seeds", "9,4").code == 0
    assert [facts(tmp_path / f"000{i}.png")["seed"] for i in range(2)] == ["9", "4"]
    assert "2 seeds for 1 prompt or label" in command(*common, "--seeds", "9,4", "-n", 3).err
    assert "--seeds and --seed both choose seeds" in command(*common, "--seeds", "9,4", "--seed", 1).err


def test_a_snapshot_is_a_model(command: Command, runs: Runs, tmp_path: Path) -> None:
    snapshot = min((runs.plain / "snapshots").iterdir())
    done = command("sample", snapshot, "-n", 1, "--steps", 1, "--out", tmp_path)
    assert done.code == 0, done.err
    assert facts(tmp_path / "0000.png")["model"] == sfumato.load_snapshot(snapshot).digest


def test_inversion_is_measured(command: Command, runs: Runs, tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"], 32, 32)
    out = tmp_path / "out"
    common = ("--steps", 3, "--refinements", 2, "--new-text", "a blue star", "--out", out)
    done = command("invert", runs.text, tmp_path / "a.png", tmp_path / "b.png", "--text", "noise", *common)
    assert done.code == 0, done.err
    assert names(out) == ["grid.png", "metrics.jsonl", "noise.safetensors"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"file", "psnr autoencoder", "psnr inversion", "psnr both"}] * 2
    mean = sum(line["psnr both"] for line in lines) / 2
    assert f"{mean:.2f} dB after inversion and sampling" in done.out
    assert pixels(out / "grid.png").shape == (66, 4 * 34 - 2, 3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_samples(command: Command, runs: Runs, tmp_path: Path, name: str) -> None:
    done = command("sample", runs.plain, "-n", 1, "--steps", 3, "--sampler", name, "--out", tmp_path)
    assert done.code == 0, done.err
    assert facts(tmp_path / "0000.png")["sampler"] == name


def test_bfloat16_samples_nearly_the_same(command: Command, runs: Runs, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        done = command("sample", runs.plain, "-n", 1, "--steps", 3, "--precision", precision, "--out", out)
        assert done.code == 0, done.err
    difference = pixels(tmp_path / "float32" / "0000.png") - pixels(tmp_path / "bfloat16" / "0000.png")
    assert 0 < np.abs(difference).mean() < 5


# ---- reconstruct


def test_reconstruct_a_folder_of_any_sizes(command: Command, runs: Runs, tmp_path: Path) -> None:
    images = tmp_path / "images"
    save(images, ["a.png", "b.png"], 32, 32)
    save(images, ["deep/c.png"], 37, 50)
    save(images, ["tiny.png"], 3, 5)
    truncated(images / "half.png")
    (images / "notes.txt").write_text("no image")
    done = command("reconstruct", runs.autoencoder, images, "--precision", "float32", "--out", tmp_path / "out")
    assert done.code == 0
    assert "half.png" in done.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a.png", "b.png", "deep/c.png", "tiny.png"]
    assert [(line["height"], line["width"]) for line in lines] == [(32, 32), (32, 32), (37, 50), (3, 5)]
    assert lines[3]["ssim"] is None
    model = sfumato.load(runs.autoencoder)
    image = from_pil(Image.open(images / "b.png"))[None]
    expected = psnr(model.reconstruct(image).clamp(-1, 1), image).item()
    assert lines[1]["psnr"] == pytest.approx(expected, abs=1e-3)
    mean = sum(line["psnr"] for line in lines) / 4
    assert f"PSNR {mean:.2f} dB" in done.out
    sheet = pixels(tmp_path / "out" / "grid.png")
    assert sheet.shape == (2 * 37 + 2, 4 * 50 + 3 * 2, 3)
    assert (sheet[2:34, 9:41] == pixels(images / "a.png")).all(), "the original stands first, in the cell's middle"


def test_size_makes_the_largest_images_readable(command: Command, runs: Runs, tmp_path: Path) -> None:
    Image.new("L", (9_500, 9_450), 90).save(tmp_path / "scan.png", compress_level=1)
    arguments = ("reconstruct", runs.text, tmp_path / "scan.png", "--out", tmp_path / "out")
    assert "9500x9450 pixels are more than" in command(*arguments).err
    assert command(*arguments, "--size", "16").code == 0


def test_reconstruct_one_file_at_another_size(command: Command, runs: Runs, tmp_path: Path) -> None:
    noise(0, 40, 40).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert command("reconstruct", runs.text, tmp_path / "a.png", "--size", "16x24", "--out", out).code == 0
    line = json.loads((out / "metrics.jsonl").read_text())
    assert (line["height"], line["width"]) == (16, 24)
    again = command("reconstruct", runs.text, tmp_path / "a.png", "--out", out)
    assert "replaced" in again.err


@pytest.mark.parametrize(("height", "width"), [(37, 50), (40, 48), (9, 11)])
def test_padding_reflects(height: int, width: int) -> None:
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    more = (0, max(16, -(-width // 8) * 8) - width, 0, max(16, -(-height // 8) * 8) - height)
    assert torch.equal(pad_to_multiple(image, 8), F.pad(image, more, mode="reflect"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 1)])
def test_padding_takes_what_is_smaller_than_its_reflection(height: int, width: int) -> None:
    image = torch.arange(height * width).reshape(1, 1, height, width).float()
    grown = pad_to_multiple(image, 8)
    assert grown.shape == (1, 1, 16, 16)
    assert torch.equal(grown[..., :height, :width], image)
    assert set(grown.unique().tolist()) == set(image.unique().tolist())


# ---- info, samplers, zoo


def test_info_counts(command: Command, runs: Runs) -> None:
    recorded = json.loads(command("info", runs.text, "--json").out)
    model = sfumato.load(runs.text)
    assert model.second is not None
    assert model.second.conditioner is not None
    assert recorded["digest"] == model.digest
    assert (recorded["f"], recorded["latent shape"], recorded["image size"]) == (4, [4, 8, 8], [32, 32])
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    assert recorded["parameters"] == {
        "autoencoder": counts["autoencoder"],
        "denoiser": counts["denoiser"],
        "conditioner": counts["conditioner"],
        "total": sum(counts.values()),
    }
    assert recorded["scaling"]["scale"] == pytest.approx(model.scaling.scale.tolist(), abs=1e-4)
    assert recorded["conditioner"]["kind"] == "text"
    assert recorded["conditioner"]["tokens"] == 16
    assert recorded["trained on"]["diffusion"]["steps"] == 4
    denoiser = model.second.config.denoiser
    assert isinstance(denoiser, UNetConfig)
    call = flops.denoise(denoiser, 4, model.second.conditioner.spec, (8, 8), 16)
    decode = flops.decode(model.config.autoencoder, (32, 32))
    assert recorded["flops"]["network call"] == call
    assert recorded["flops"]["20-step guided image"] == 40 * call + decode


@pytest.mark.parametrize("name", ["autoencoder", "text", "label", "undropped", "plain"])
def test_info_is_a_plain_table(command: Command, runs: Runs, name: str) -> None:
    folder = getattr(runs, name)
    done = command("info", folder)
    assert (done.code, done.err) == (0, "")
    rows = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert rows["latent shape"].split() == ["latent", "shape", "4", "x", "8", "x", "8"]
    assert rows["digest"].split()[1] == sfumato.load(folder).digest
    assert rows["decode"].rstrip().endswith("FLOPs")
    assert ("20-step image" in rows) == (name in ("undropped", "plain"))
    assert ("20-step guided image" in rows) == (name in ("text", "label"))


def test_samplers_are_all_listed(command: Command) -> None:
    lines = command("samplers").out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(EVERY_SAMPLER)
    assert all(sampler.suits in line for line, sampler in zip(lines, EVERY_SAMPLER.values(), strict=True))


def test_the_zoo_is_listed_with_what_each_is(command: Command) -> None:
    lines = [line for line in command("zoo").out.splitlines() if line.startswith("zoo:")]
    assert sorted(line.split()[0] for line in lines) == [
        f"zoo:{name}" for name in sorted([*shipped_models(), *zoo_names()])
    ]
    assert all(len(line.split()) > 3 for line in lines), "a configuration begins with a comment that describes it"


def test_a_zoo_configuration_can_be_printed(command: Command, tmp_path: Path) -> None:
    name = zoo_names()[0]
    assert command("zoo", name).out == command("zoo", f"zoo:{name}").out
    assert isinstance(yaml.safe_load(command("zoo", name).out), dict)
