"""ONNX graphs: what docs/onnx.md says a program without torch can do with them, done by its code."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from command_line import Command
from sfumato.errors import UserError
from sfumato.interop.convert import export_model
from sfumato.interop.onnx import write
from sfumato.model import LatentDiffusion

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"
FLOW = "diffusion.schedule={kind: flow}"
MAP = "diffusion.conditioner={kind: semantic, classes: 4, channels: 3, stages: 1}"
SEVERAL = (
    "diffusion.conditioner={kind: composite, parts: {class: {kind: class, classes: 3, dim: 16}, "
    "mask: {kind: image, field: mask, channels: 1}, boxes: {kind: layout, classes: 3, objects: 3, vocabulary: 32, "
    "dim: 16, depth: 1, heads: 2, head_dim: 8}, text: {kind: text, dim: 16, depth: 1, heads: 2, head_dim: 8, "
    "max_tokens: 8, pooled: true}, images: {kind: embeddings, dim: 16}}}"
)
STUDENT = ("diffusion.denoiser.flow_map=true", "diffusion.student={teacher: a, method: trajectories, low: 1, high: 8}")
CONVNEXT = "diffusion.denoiser={kind: convnext, channels: 16, channel_multipliers: [1, 2], blocks: [1, 1]}"
DIT = "diffusion.denoiser={kind: dit, patch: 2, width: 32, depth: 2, heads: 2}"
PIXELS = "autoencoder={channels: 8, channel_multipliers: [1], bottleneck: {kind: pixels}}"
N, STEPS, SCALE = 2, 4, 3.0


def page() -> dict[str, Any]:
    """The names that the code of the page defines; it may import what a program without torch has."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    imported = {name.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"json", "numpy", "onnxruntime"}
    made: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), made)
    return made


def exported(folder: Path, model: LatentDiffusion) -> Path:
    model.save(folder / "model")
    export_model(folder / "model", folder / "onnx", "onnx")
    return folder / "onnx"


def text(folder: Path) -> dict[str, Any]:
    ids: dict[str, Any] = page()["text_ids"](folder, tiny.TEXTS[:N])
    return ids


@pytest.mark.parametrize(
    ("overrides", "given", "options"),
    [
        ((), text, {"prompt": tiny.TEXTS[:N]}),
        (
            (tiny.BY_CLASS, FLOW, CONVNEXT, "autoencoder.padding=reflect"),
            {"label": np.array([0, 1])},
            {"label": [0, 1]},
        ),
        ((tiny.BY_CLASS, DIT), {"label": np.array([0, 1])}, {"label": [0, 1]}),
        ((tiny.UNCONDITIONAL, tiny.VQ, "diffusion.prediction=eps"), None, {"count": N}),
        ((MAP,), {"map": np.arange(N * 16 * 24).reshape(N, 16, 24) // 3 % 4}, None),
        ((tiny.BY_CLASS, *STUDENT), {"label": np.array([1, 0])}, {"label": [1, 0]}),
    ],
    ids=["text", "class, convolutional", "transformer", "codebook", "map", "student"],
)
def test_a_program_without_torch_makes_the_same_images(
    overrides: tuple[str, ...], given: Callable[[Path], Any] | dict[str, Any] | None, options: Any, tmp_path: Path
) -> None:
    model = tiny.model(*overrides)
    out = exported(tmp_path, model)
    noise = torch.randn(N, *model.latent_shape, generator=torch.Generator().manual_seed(3))
    if options is None:
        assert isinstance(given, dict)
        options = {"fields": {name: torch.from_numpy(value) for name, value in given.items()}}
    assert model.config.diffusion is not None
    sampler = {} if model.config.diffusion.student else {"sampler": "ddim", "grid": "trailing"}
    guidance = {} if "count" in options else {"guidance": SCALE}
    ours = model.sample_tensor(noise=noise, steps=STEPS, **guidance, **sampler, **options).clamp(-1, 1)
    inputs = given(out) if callable(given) else given
    theirs = page()["sample"](out, noise.numpy(), inputs, STEPS, guidance.get("guidance"))
    assert theirs.shape == (N, 3, 16, 24)
    assert np.abs(theirs - ours.numpy()).max() < 1e-3
    assert float(ours.std()) > 0.05
    about = json.loads((out / "model.json").read_text())
    assert about["model"] == model.digest
    assert sorted(p.stem for p in out.glob("*.onnx")) == sorted(about["graphs"])


def test_several_conditions_are_inputs_of_one_graph(tmp_path: Path) -> None:
    out = exported(tmp_path, tiny.model(SEVERAL))
    about = json.loads((out / "model.json").read_text())
    names = [condition["name"] for condition in about["conditions"]]
    assert names == ["label", "mask", "layout_ids", "text_ids", "embeddings"]
    session = onnxruntime.InferenceSession(out / "conditioner.onnx")
    assert [given.name for given in session.get_inputs()] == names
    assert {made.name for made in session.get_outputs()} == set(about["graphs"]["conditioner"]["outputs"])


def test_a_model_in_pixel_space_has_only_a_denoiser(command: Command, tmp_path: Path) -> None:
    tiny.model(PIXELS, tiny.UNCONDITIONAL).save(tmp_path / "model")
    done = command("export", tmp_path / "model", tmp_path / "out", "--format", "onnx")
    assert done.code == 0, done.err
    assert "no encoder and no decoder" in done.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["denoiser.onnx", "model.json"]


AUTOENCODER = ("diffusion=null", "autoencoder.attention=linear")


def test_a_graph_that_computes_something_else_is_not_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.model(*AUTOENCODER).save(tmp_path / "model")
    load = onnx.load

    def damaged(path: Path) -> Any:
        graph = load(path)
        weight = max(graph.graph.initializer, key=lambda one: len(one.raw_data))
        values = np.frombuffer(weight.raw_data, np.float32) * np.float32(1.01)
        weight.raw_data = values.tobytes()
        return graph

    monkeypatch.setattr(onnx, "load", damaged)
    done = command("export", tmp_path / "model", tmp_path / "out", "--format", "onnx")
    assert done.code == 2
    assert re.search(r"read by onnxruntime, the encoder's latent differs by 0\.\d+ of its largest number", done.err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_large_weights_are_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "ONE_FILE", 1000)
    out = exported(tmp_path, tiny.model(*AUTOENCODER))
    assert sorted(p.name for p in out.iterdir()) == [
        "decoder.onnx",
        "decoder.onnx.data",
        "encoder.onnx",
        "encoder.onnx.data",
        "model.json",
    ]


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.model(*AUTOENCODER).save(tmp_path / "model")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'sfumato\[onnx\]'"):
        export_model(tmp_path / "model", tmp_path / "out", "onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
