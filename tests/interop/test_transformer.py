"""Published DiT and SiT files, shrunken: what the imported model computes is what their equations say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
from command_line import Command
from denoiser.contract import gaussian
from denoiser.test_dit import dit, grid_positions
from sfumato.errors import UserError
from sfumato.interop.convert import describe, import_model
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest

CLASSES, WIDTH, DEPTH, HEADS, PATCH, SIDE = 5, 32, 2, 4, 2, 8


def weights(channels: int = 3, learned: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the published keys, with the published shapes at a smaller width and depth."""
    linear = {"t_embedder.mlp.0": (WIDTH, 256), "t_embedder.mlp.2": (WIDTH, WIDTH)}
    for i in range(DEPTH):
        linear[f"blocks.{i}.attn.qkv"] = (3 * WIDTH, WIDTH)
        linear[f"blocks.{i}.attn.proj"] = (WIDTH, WIDTH)
        linear[f"blocks.{i}.mlp.fc1"] = (4 * WIDTH, WIDTH)
        linear[f"blocks.{i}.mlp.fc2"] = (WIDTH, 4 * WIDTH)
        linear[f"blocks.{i}.adaLN_modulation.1"] = (6 * WIDTH, WIDTH)
    linear["final_layer.adaLN_modulation.1"] = (2 * WIDTH, WIDTH)
    linear["final_layer.linear"] = (PATCH * PATCH * channels * (1 + learned), WIDTH)
    out = {}
    for number, (name, shape) in enumerate(linear.items()):
        out[f"{name}.weight"] = gaussian(*shape, seed=seed + 2 * number) / shape[1] ** 0.5
        out[f"{name}.bias"] = 0.1 * gaussian(shape[0], seed=seed + 2 * number + 1)
    out["x_embedder.proj.weight"] = gaussian(WIDTH, channels, PATCH, PATCH, seed=seed + 90) / 4
    out["x_embedder.proj.bias"] = gaussian(WIDTH, seed=seed + 91) / 4
    out["y_embedder.embedding_table.weight"] = gaussian(CLASSES + 1, WIDTH, seed=seed + 92)
    out["pos_embed"] = grid_positions(SIDE // PATCH, SIDE // PATCH, WIDTH)[None]
    return out


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A model folder with three latent channels and f = 2."""
    tiny.model("diffusion=null").save(tmp_path / "first")
    return tmp_path / "first"


def imported(state: dict[str, Any], first: Path, prediction: str, **options: Any) -> LatentDiffusion:
    path = first.parent / "published.pt"
    torch.save(state, path)
    out = import_model(
        path, first.parent / "out", prediction=prediction, autoencoder=first, heads=HEADS, overwrite=True, **options
    )
    assert any("learned variance, is left out" in note for note in out.notes)
    return load(out.folder)


def predicted(model: LatentDiffusion, x_t: Tensor, times: Tensor, labels: list[int]) -> Tensor:
    assert model.second is not None
    assert model.second.conditioner is not None
    with torch.no_grad():
        condition = model.second.conditioner({"label": torch.tensor(labels)})
        made: Tensor = model.second.denoiser(x_t, times, condition)
    return made


X, LABELS = gaussian(3, 3, SIDE, SIDE, seed=5), [0, CLASSES - 1, CLASSES]


def test_a_dit_predicts_the_noise_and_leaves_the_variance_out(first: Path) -> None:
    state, t = weights(), torch.tensor([0.0, 437.0, 999.0])
    model = imported(state, first, "eps")
    both = dit(state, X, t, state["y_embedder.embedding_table.weight"][LABELS], PATCH, HEADS)
    assert both.shape[1] == 6
    torch.testing.assert_close(predicted(model, X, t, LABELS), both[:, :3], atol=1e-5, rtol=1e-5)
    config = model.config.diffusion
    assert config is not None
    assert (config.prediction, config.schedule.kind, model.config.image_size) == ("eps", "linear", (16, 16))
    assert model.second is not None
    betas = 1 - model.second.schedule(torch.tensor([1 / 1000], dtype=torch.float64))[0] ** 2
    torch.testing.assert_close(betas, torch.tensor([1e-4], dtype=torch.float64))
    null = model.second.conditioner.null(3, (8, 8)).vector  # type: ignore[union-attr]
    torch.testing.assert_close(null, state["y_embedder.embedding_table.weight"][[CLASSES] * 3])


def test_a_sit_predicts_the_velocity_with_its_sign_turned(first: Path) -> None:
    state, clean = weights(), torch.tensor([0.0, 0.25, 0.9])
    model = imported(state, first, "flow")
    velocity = dit(state, X, clean, state["y_embedder.embedding_table.weight"][LABELS], PATCH, HEADS)[:, :3]
    ours = predicted(model, X, 1000 * (1 - clean) - 1, LABELS)  # t = 1 is noise, and the network time t · 1000 - 1
    torch.testing.assert_close(ours, -velocity, atol=1e-5, rtol=1e-5)
    # Euler's single step of SiT, from its time 0 to 1, and ours from t = 1 to 0
    noise, row = gaussian(1, 3, SIDE, SIDE, seed=6), state["y_embedder.embedding_table.weight"][[2]]
    step = SampleRequest(label=[2], steps=1, sampler="ddim", grid="trailing", guidance=1.0, noise=noise)
    latent = noise + dit(state, noise, torch.zeros(1), row, PATCH, HEADS)[:, :3]
    with torch.no_grad():
        expected = model.decode(latent)
    torch.testing.assert_close(pipeline.sample(model, step).images, expected, atol=1e-4, rtol=1e-4)


def test_files_of_a_training_have_averaged_and_live_weights(first: Path) -> None:
    live, averaged = weights(), weights(seed=300)
    state = {"model": live, "ema": averaged, "opt": {"state": {}}, "args": "none"}
    t = torch.tensor([5.0, 50.0, 500.0])
    for options, chosen in (({}, averaged), ({"weights": "ema"}, averaged), ({"weights": "live"}, live)):
        model = imported(state, first, "eps", **options)
        expected = dit(chosen, X, t, chosen["y_embedder.embedding_table.weight"][LABELS], PATCH, HEADS)[:, :3]
        torch.testing.assert_close(predicted(model, X, t, LABELS), expected, atol=1e-5, rtol=1e-5)
    assert any(
        "DiT or SiT of 2 blocks of 32 channels, heads not known" in line
        for line in describe(first.parent / "published.pt")
    )


def test_the_command_takes_a_file_of_another_program_as_first_stage(command: Command, tmp_path: Path) -> None:
    from sfumato.interop.convert import export_model

    tiny.model("diffusion=null", "autoencoder.norm_groups=8").save(tmp_path / "first")
    export_model(tmp_path / "first", tmp_path / "vae", "diffusers")
    save_file({f"module.{key}": value for key, value in weights().items()}, tmp_path / "dit.safetensors")
    done = command(
        "import", tmp_path / "dit.safetensors", tmp_path / "out", "--prediction", "eps", "--heads", HEADS,
        "--autoencoder", tmp_path / "vae",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "classes: 5; the last row of the table is the class of unconditional samples" in done.out
    model, own = load(tmp_path / "out"), load(tmp_path / "first")
    latent = gaussian(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(latent), own.decode(latent), atol=1e-4, rtol=1e-4)


def dropped(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"prediction": None}, "give --prediction eps or --prediction flow"),
        (None, {"prediction": "v"}, "flow, not --prediction v"),
        (None, {"autoencoder": None}, "without a first stage: give --autoencoder"),
        (None, {"heads": None}, "known are 384, 768, 1024, 1152.: give --heads"),
        (None, {"heads": 3}, "heads 3 does not divide the width of 32"),
        (None, {"weights": "ema"}, "has no ema weights"),
        (None, {"config": "x.yaml"}, "--config is for original checkpoints, not for a DiT"),
        (dropped("blocks.1.mlp.fc2.bias"), {}, "lacks the key 'blocks.1.mlp.fc2.bias'"),
        (lambda s: s.update(pos_embed=s["pos_embed"] + 0.1), {}, "not the fixed sines and cosines"),
        (lambda s: s.update({"blocks.0.norm1.weight": torch.ones(32)}), {}, "1 key of no known use in a DiT"),
        (lambda s: s["x_embedder.proj.bias"].fill_(float("nan")), {}, "x_embedder.proj.bias"),
        (lambda s: s.update(weights(channels=4)), {}, "has latents of 3 channels"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: Callable[[dict[str, Tensor]], object] | None, options: dict[str, Any], message: str, first: Path
) -> None:
    state, path = weights(), first.parent / "published.safetensors"
    if change is not None:
        change(state)
    save_file(state, path)
    given = {"prediction": "eps", "autoencoder": first, "heads": HEADS, **options}
    with pytest.raises(UserError, match=message):
        import_model(path, first.parent / "out", **given)
    assert not (first.parent / "out").exists()


def test_options_of_transformers_are_refused_elsewhere(first: Path) -> None:
    path = first.parent / "other.safetensors"
    save_file({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, path)
    for options, message in (({"autoencoder": first}, "--autoencoder"), ({"prediction": "flow"}, "--prediction flow")):
        with pytest.raises(UserError, match=f"{message} is for files of DiT or SiT"):
            import_model(path, first.parent / "out", **options)
