"""DiTPipeline folders of diffusers in and out: the same predictions, the same images, the same bytes."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sfumato
import tiny
from command_line import Command
from denoiser.contract import gaussian
from denoiser.test_dit import dit
from interop.test_diffusers import filled, relative_error, same_tensors, small_vae
from sfumato.conditioning.condition import Condition
from sfumato.config import apply_overrides, parse
from sfumato.errors import UserError
from sfumato.interop.convert import export_model, import_model
from sfumato.interop.expressible import refuse_for_diffusers
from sfumato.model import LatentDiffusion, ModelConfig
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest

diffusers = pytest.importorskip("diffusers")
TOLERANCE = 1e-5
WEIGHTS = "diffusion_pytorch_model.safetensors"
NAMES = {0: "tench, Tinca tinca", 1: "great white shark, white shark", 2: "crane", 3: "crane", 999: "toilet tissue"}
OLD: dict[str, Any] = {  # what a folder of an early release has besides
    "_class_name": "Transformer2DModel",
    "cross_attention_dim": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": False,
}
SETTINGS = {"beta_schedule": "linear", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@cache
def transformer(variance: bool = True, classes: int = 1000) -> Any:
    """A small one without a zero weight, whose blocks share the embeddings as in folders made from DiT."""
    made = filled(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=3,
            out_channels=6 if variance else None,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=classes,
        )
    )
    first, *others = made.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A pipeline folder as diffusers writes it, with names of some classes, made once for each of its kinds."""
    root = tmp_path_factory.mktemp("pipelines")

    def make(variance: bool = True, classes: int = 1000) -> Path:
        path = root / f"{variance}-{classes}"
        if not path.exists():
            scheduler = diffusers.DDIMScheduler(**SETTINGS)
            parts = {"transformer": transformer(variance, classes), "vae": small_vae(3), "scheduler": scheduler}
            diffusers.DiTPipeline(**parts).save_pretrained(path)
            edit(path / "model_index.json", id2label={k: v for k, v in NAMES.items() if k < classes})
        return path

    return make


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def predicted(model: LatentDiffusion, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    assert model.second is not None
    assert model.second.conditioner is not None
    out: Tensor = model.second.denoiser(x, t, model.second.conditioner({"label": labels}))
    return out


T, LABELS = torch.tensor([0, 437, 999]), torch.tensor([3, 999, 1000])


@pytest.mark.parametrize(("variance", "old"), [(True, False), (False, True)])
def test_a_folder_computes_what_diffusers_does_and_comes_back(
    variance: bool, old: bool, saved: Callable[..., Path], tmp_path: Path
) -> None:
    source = shutil.copytree(saved(variance), tmp_path / "theirs")
    if old:
        edit(source / "transformer" / "config.json", **OLD)
        edit(source / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    imported = import_model(source, tmp_path / "ours")
    assert any("a learned variance, is not used" in note for note in imported.notes) == variance
    model = sfumato.load(imported.folder)
    config = model.config.diffusion
    assert config is not None
    assert (config.prediction, config.schedule.kind, model.config.image_size) == ("eps", "linear", (16, 16))
    assert model.config.classes is not None
    assert [model.config.classes[i] for i in (0, 2, 4, 999)] == [NAMES[0], "crane", "4", "toilet tissue"]
    theirs = transformer(variance)
    for side in (8, 16, 6):  # at other sizes positions are interpolated
        x = gaussian(3, 3, side, side, seed=side)
        expected = theirs(x, timestep=T, class_labels=LABELS).sample[:, :3]
        assert relative_error(predicted(model, x, T, LABELS), expected) <= TOLERANCE
    z = gaussian(1, 3, 8, 8)
    expected = small_vae(3).decode(z / 0.18215).sample
    assert relative_error(model.decode(z), expected) <= TOLERANCE

    export_model(imported.folder, tmp_path / "back", "diffusers")
    for part in ("transformer", "vae"):
        assert same_tensors(source / part / WEIGHTS, tmp_path / "back" / part / WEIGHTS)
    for name in ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        assert json.loads((source / name).read_text()) == json.loads((tmp_path / "back" / name).read_text())


def images_of(folder: Path, labels: list[int], guidance: float) -> tuple[Tensor, Tensor]:
    """DiTPipeline's images after four steps, in [-1, 1], and the noise from which they were made."""
    made = diffusers.DiTPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    random = torch.Generator().manual_seed(5)
    noise = torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(5))
    options = {"guidance_scale": guidance, "num_inference_steps": 4, "generator": random, "output_type": "pt"}
    return made(class_labels=labels, **options).images * 2 - 1, noise


def ours(model: LatentDiffusion, labels: list[int | str], guidance: float, noise: Tensor) -> Tensor:
    request = SampleRequest(label=labels, steps=4, sampler="ddim", grid="leading", guidance=guidance, noise=noise)
    return pipeline.sample(model, request).images.clamp(-1, 1)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pipelines_make_the_same_images(guidance: float, saved: Callable[..., Path], tmp_path: Path) -> None:
    model = sfumato.load(import_model(saved(), tmp_path / "ours").folder)
    expected, noise = images_of(saved(), [1, 999], guidance)
    made = ours(model, ["white shark", 999], guidance, noise)
    assert expected.std() > 0.05
    assert (made - expected).abs().max() <= 1e-4


MADE = (
    "image_size=[16,16]",
    "autoencoder.norm_groups=8",
    "diffusion.denoiser={kind: dit, width: 32, depth: 2, heads: 2, vector_projection: none, time_frequencies: closed}",
    "diffusion.conditioner={kind: class, classes: 2, dim: 32, output: vector}",
    "diffusion.schedule={kind: scaled-linear, start: 0.001, end: 0.015}",
)


def test_a_model_trained_here_opens_in_diffusers_with_equal_images(tmp_path: Path) -> None:
    model = tiny.model(*MADE)
    model.save(tmp_path / "ours")
    notes = export_model(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    assert any("classes 2 to 999 of the table are copies of the unconditional one" in note for note in notes)
    assert not any("only sfumato reads" in note for note in notes)
    for guidance in (1.0, 2.5):
        expected, noise = images_of(tmp_path / "theirs", [0, 1], guidance)
        assert (ours(model, ["round", "square"], guidance, noise) - expected).abs().max() <= 1e-4
    index = json.loads((tmp_path / "theirs" / "model_index.json").read_text())
    assert (index["_class_name"], index["id2label"]) == ("DiTPipeline", {"0": "round", "1": "square"})
    back = sfumato.load(import_model(tmp_path / "theirs", tmp_path / "back").folder)
    assert back.config.diffusion == model.config.diffusion
    assert back.config.classes == ("round", "square")
    (tmp_path / "theirs" / "sfumato.yaml").unlink()  # by what diffusers stores alone
    imported = import_model(tmp_path / "theirs", tmp_path / "again")
    assert any("classes 2 to 999 are copies" in note for note in imported.notes)
    assert imported.config.classes == ("round", "square")
    x, t, labels = gaussian(3, 3, 8, 8), torch.tensor([1, 40, 800]), torch.tensor([0, 1, 2])
    expected = predicted(model, x, t, labels)
    assert relative_error(predicted(sfumato.load(imported.folder), x, t, labels), expected) <= TOLERANCE


def test_a_variance_is_left_out_once_the_network_was_trained_on(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = import_model(saved(), tmp_path / "ours").folder
    weights = load_file(folder / "denoiser.safetensors")
    model = sfumato.load(folder)
    weights["blocks.0.mlp.fc1.bias"] += 1
    assert model.second is not None
    model.second.denoiser.load_state_dict(weights)
    shutil.copytree(folder / "diffusers", tmp_path / "kept")
    model.save(folder)
    shutil.copytree(tmp_path / "kept", folder / "diffusers", dirs_exist_ok=True)
    notes = export_model(folder, tmp_path / "back", "diffusers")
    assert any("learned variance of the imported network is left out" in note for note in notes)
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "back" / "transformer")
    x = gaussian(3, 3, 8, 8)
    theirs = back(x, timestep=T, class_labels=LABELS).sample
    assert theirs.shape[1] == 3
    assert relative_error(theirs, predicted(model, x, T, LABELS)) <= TOLERANCE


def denoiser(**changes: Any) -> str:
    options = {"width": 32, "depth": 1, "heads": 2, "vector_projection": "none", "time_frequencies": "closed"}
    listed = ", ".join(f"{key}: {value}" for key, value in {**options, **changes}.items())
    return f"diffusion.denoiser={{kind: dit, {listed}}}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["diffusion.conditioner={kind: none}"], "DiT without a condition cannot be exported.*output: vector"),
        (["diffusion.conditioner={kind: class, classes: 2, dim: 32}"], "whose class is a token cannot be exported"),
        ([denoiser(time_frequencies="open")], "time_frequencies: open cannot be exported.*train with .*: closed"),
        ([denoiser(vector_projection="mlp")], "MLP cannot be exported.*vector_projection: none and conditioner.dim"),
        ([denoiser(expansion=3)], "expansion: 3 cannot be exported"),
        ([denoiser(position_grid=3)], "position_grid: 3 cannot be exported.*position_grid: 4 or null"),
        ([denoiser(time="clean-share"), "diffusion.schedule={kind: flow}"], "clean-share .SiT. cannot be exported"),
        (["image_size=[16,24]"], "images of 16x24 cannot be exported: DiTPipeline samples squares"),
        (["diffusion.conditioner={kind: class, classes: 1001, dim: 32, output: vector}"], "at most 1000"),
        (["diffusion.conditioner={kind: class, classes: 2, dim: 32, output: vector, 'null': none}"], "null: learned"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_name(changes: list[str], message: str, tmp_path: Path) -> None:
    settings = {change.partition("=")[0]: change for change in (*MADE, *changes)}
    made = parse(apply_overrides(tiny.CONFIG, settings.values()), ModelConfig, "tiny")
    with pytest.raises(UserError, match=message):
        refuse_for_diffusers(made, tmp_path)


def test_a_refused_export_leaves_nothing_behind(tmp_path: Path) -> None:
    tiny.model(*MADE[:-1], "diffusion.schedule={kind: flow}", "diffusion.prediction=flow").save(tmp_path / "ours")
    with pytest.raises(UserError, match="flow cannot be exported"):
        export_model(tmp_path / "ours", tmp_path / "theirs", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "transformer" / WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


def config(place: str = "transformer/config.json", **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / place, **changes)


UNTIED = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weights(lambda w: w[UNTIED].add_(1)), f"the key '{UNTIED}' has other values than .*blocks share"),
        (weights(lambda w: w.pop("proj_out_1.bias")), "lacks the key 'proj_out_1.bias'"),
        (weights(lambda w: w.update({"pos_embed.pos_embed": torch.zeros(1, 16, 32)})), "not the fixed sines"),
        (weights(lambda w: w["proj_out_2.bias"].fill_(math.nan)), "proj_out_2.bias"),
        (config(out_channels=5), "out_channels is 5: it must be 3, as in_channels, or twice"),
        (config(num_embeds_ada_norm=7), r"has shape \(6, 32\), its configuration requires \(8, 32\)"),
        (config(norm_type="ada_norm_single"), "norm_type 'ada_norm_single'. is not supported; known is that of DiT"),
        (config(_class_name="SD3Transformer2DModel"), "the transformer 'SD3Transformer2DModel'"),
        (config(activation_fn="geglu"), "activation_fn = 'geglu' has no counterpart"),
        (config(patch_size=3), "patch_size 3 does not divide sample_size 8"),
        (config(norm_eps="small"), "feed_forward_eps"),
        (config("model_index.json", id2label={"5": "six"}), "id2label names the class 5, the transformer has 5"),
        (config("model_index.json", id2label=["one"]), "id2label is .*it must map the numbers"),
        (config("model_index.json", id2label={"one": "1"}), "id2label maps 'one' to '1'"),
        (config("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatch"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: Callable[[Path], None], message: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved(True, 5), tmp_path / "theirs")
    change(folder)
    with pytest.raises(UserError, match=message):
        import_model(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_half_precision_and_stored_positions_are_read(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved(True, 5), tmp_path / "theirs")
    path = folder / "transformer" / WEIGHTS
    half = {key: value.half() for key, value in load_file(path).items()}
    save_file(half | {"pos_embed.pos_embed": transformer(True, 5).pos_embed.pos_embed.half()}, path)
    model = sfumato.load(import_model(folder, tmp_path / "ours").folder)
    network = copy.deepcopy(transformer(True, 5))
    network.load_state_dict({key: value.float() for key, value in half.items()})
    x, labels = gaussian(3, 3, 8, 8), torch.tensor([0, 4, 5])
    expected = network(x, timestep=T, class_labels=labels).sample[:, :3]
    assert relative_error(predicted(model, x, T, labels), expected) <= TOLERANCE


def test_the_settings_are_the_two_differences_from_the_published_network(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    """By the paper's equations, on the imported weights: with both settings at their defaults the two agree."""
    model = sfumato.load(import_model(saved(), tmp_path / "ours").folder)
    assert model.second is not None
    assert model.second.conditioner is not None
    state: Mapping[str, Tensor] = model.second.denoiser.state_dict()
    named = {key.replace("time_embed.", "t_embedder.mlp."): value for key, value in state.items()}
    x, vector = gaussian(3, 3, 8, 8), model.second.conditioner({"label": LABELS}).vector
    assert vector is not None
    expected = dit(named, x, T.float(), vector, 2, 2)
    own = model.second.config.denoiser.model_copy(update={"time_frequencies": "open", "feed_forward_eps": 1e-6})
    made = sfumato.model.build_denoiser(own, 3, model.second.denoiser.spec)
    made.load_state_dict(state)
    assert relative_error(made(x, T, Condition(vector=vector)), expected) <= TOLERANCE
    assert relative_error(model.second.denoiser(x, T, Condition(vector=vector)), expected) > 1e-3


def test_from_the_command_line_by_a_class_of_many_names(
    command: Command, saved: Callable[..., Path], tmp_path: Path
) -> None:
    about = command("info", saved())
    assert about.code == 0, about.err
    assert "DiTPipeline" in about.out
    assert "a DiT of 2 blocks of 32 channels, 2 heads, patches of 2" in about.out
    assert "1000 classes and an unconditional one" in about.out
    done = command("import", saved(), tmp_path / "ours")
    assert done.code == 0, done.err
    assert "1,000 classes, and one of unconditional samples" in done.out
    info = command("info", tmp_path / "ours")
    assert "dit, width 32" in info.out
    assert "and 960 more" in info.out
    made = command("sample", tmp_path / "ours", "--label", "white shark", "--steps", 2, "--out", tmp_path / "images")
    assert made.code == 0, made.err
    assert len(list((tmp_path / "images").glob("*.png"))) >= 1
    several = command("sample", tmp_path / "ours", "--label", "crane", "--steps", 2, "--out", tmp_path / "more")
    assert several.code == 2
    assert "label 'crane' is a name of 2 of this model's classes: give the number, 2 or 3" in several.err
    unknown = command("sample", tmp_path / "ours", "--label", "white shrk", "--out", tmp_path / "more")
    assert unknown.code == 2
    assert "did you mean 'white shark'?" in unknown.err
    assert "and 960 more, which `sfumato info --json` lists" in unknown.err
    refused = command("sample", saved(), "--label", 1, "--out", tmp_path / "more")
    assert refused.code == 2
    assert "is a diffusers folder: convert it with `sfumato import`" in refused.err
