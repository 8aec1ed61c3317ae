"""The ComfyUI node pack, loaded and called as ComfyUI does: its contract, and what the nodes compute."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sfumato
import tiny
from sfumato.errors import UserError
from sfumato.images import to_uint8
from sfumato.service.declarations import TASKS, declared_fields

FOLDER = Path(__file__).parents[1] / "integrations" / "comfyui"
SOCKETS = ("IMAGE", "MASK", "LATENT", "SFUMATO_MODEL")
WIDGETS = {"STRING": str, "INT": int, "FLOAT": float, "BOOLEAN": bool}


@pytest.fixture(scope="module")
def pack() -> Iterator[ModuleType]:
    """The package as ComfyUI loads it: by its folder, under a name that is no identifier."""
    name = "/custom_nodes/sfumato"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[loaded]


def execute(pack: ModuleType, name: str, **given: Any) -> Any:
    """Checks the inputs as ComfyUI does, fills in the widgets' defaults, and calls the node. Its first output."""
    node = pack.NODE_CLASS_MAPPINGS[name]
    inputs: dict[str, Any] = {}
    types = node.INPUT_TYPES()
    for group in ("required", "optional"):
        for key, (kind, *more) in types.get(group, {}).items():
            about = more[0] if more else {}
            if key in given:
                inputs[key] = given[key]
            elif kind not in SOCKETS:
                inputs[key] = about["default"]
            else:
                assert group == "optional", f"{name} needs {key}"
            if isinstance(kind, list):
                assert inputs[key] in kind
            elif kind in WIDGETS:
                assert isinstance(inputs[key], WIDGETS[kind])
                assert about.get("min", -np.inf) <= inputs[key] if kind in ("INT", "FLOAT") else True
    assert not set(given) - set(inputs), f"{name} has no {set(given) - set(inputs)}"
    outputs = getattr(node(), node.FUNCTION)(**inputs)
    assert isinstance(outputs, tuple)
    assert len(outputs) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    if node.RETURN_TYPES == ("IMAGE",):
        image = outputs[0]
        assert image.dtype == torch.float32
        assert image.dim() == 4
        assert image.shape[-1] == 3
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
    return outputs[0]


@pytest.fixture(scope="module")
def model(pack: ModuleType) -> Any:
    return execute(pack, "SfumatoLoad", model="zoo:toy", device="cpu", float32=True)


def bytes_of(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


def test_the_contract(pack: ModuleType) -> None:
    nodes = pack.NODE_CLASS_MAPPINGS
    assert set(nodes) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    assert len(nodes) == 3 + len(TASKS)
    for name, node in nodes.items():
        types = node.INPUT_TYPES()
        assert set(types) <= {"required", "optional", "hidden"}
        assert callable(getattr(node, node.FUNCTION)), name
        assert node.CATEGORY == "sfumato"
        assert node.DESCRIPTION.endswith(".")
        for group in types.values():
            for key, (kind, *more) in group.items():
                assert isinstance(kind, list) or kind in SOCKETS or kind in WIDGETS, (name, key)
                assert kind in SOCKETS or "default" in more[0], (name, key)


def test_a_task_s_node_has_the_declared_options_with_their_ranges(pack: ModuleType) -> None:
    types = pack.NODE_CLASS_MAPPINGS["SfumatoEdit"].INPUT_TYPES()
    inputs = {**types["required"], **types["optional"]}
    declared = {one["name"]: one for one in declared_fields("edit")}
    assert set(declared) - set(inputs) == {"interval", "projection", "times"}
    strength = inputs["strength"][1]
    assert (strength["min"], strength["max"]) == (declared["strength"]["range"]["low"], 1.0)
    assert strength["tooltip"] == declared["strength"]["help"]


def test_samples_are_those_of_the_package(pack: ModuleType, model: Any) -> None:
    prompts = ["a red circle", "a blue star"]
    made = execute(pack, "SfumatoSample", model=model, prompt="\n".join(prompts), steps=2, seed=5, guidance="2")
    ours = sfumato.load("zoo:toy").for_inference(torch.float32).sample_tensor(prompts, steps=2, seed=5, guidance=2.0)
    difference = bytes_of(made).int() - to_uint8(ours).permute(0, 2, 3, 1).int()
    assert int(difference.abs().max()) <= 1
    assert float(made.std()) > 0.05


def test_tasks_on_images(pack: ModuleType, model: Any) -> None:
    image = torch.rand(2, 40, 48, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 40, 48)
    mask[:, 8:24, 8:24] = 1
    filled = execute(pack, "SfumatoInpaint", model=model, image=image, mask=mask, prompt="a red circle", steps=2)
    assert filled.shape == image.shape
    assert torch.equal(bytes_of(filled)[:, 30:], bytes_of(image)[:, 30:])
    assert not torch.equal(bytes_of(filled)[:, 12:20, 12:20], bytes_of(image)[:, 12:20, 12:20])
    wider = execute(pack, "SfumatoOutpaint", model=model, image=image[:1], right=8, steps=2)
    assert wider.shape == (1, 40, 56, 3)
    assert torch.equal(bytes_of(wider)[:, :, :48], bytes_of(image[:1]))
    edited = execute(pack, "SfumatoEdit", model=model, image=image[:1], style=image[1:], strength=0.4, steps=2, count=2)
    assert edited.shape == (2, 40, 48, 3)


def test_latents_there_and_back(pack: ModuleType, model: Any) -> None:
    image = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    latent = execute(pack, "SfumatoEncode", model=model, image=image)
    assert latent["samples"].shape == (1, 3, 8, 12)
    back = execute(pack, "SfumatoDecode", model=model, latent=latent)
    ours = sfumato.load("zoo:toy").reconstruct(image.permute(0, 3, 1, 2) * 2 - 1)
    assert float((back.permute(0, 3, 1, 2) * 2 - 1 - ours.clamp(-1, 1)).abs().max()) < 1e-3


def test_a_grey_map_is_read_as_ids(pack: ModuleType) -> None:
    mapped = tiny.model("diffusion.conditioner={kind: semantic, classes: 4, channels: 3, stages: 1}")
    ids = torch.arange(16 * 24).reshape(1, 16, 24, 1).expand(-1, -1, -1, 3) // 100 / 255
    made = execute(pack, "SfumatoSemantic", model=mapped, map=ids, steps=2)
    other = execute(pack, "SfumatoSemantic", model=mapped, map=torch.zeros_like(ids), steps=2)
    assert made.shape == (1, 16, 24, 3)
    assert not torch.equal(made, other)


def test_frames_between_two_seeds_move_comfyui_s_bar(
    pack: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update(self, amount: int) -> None:
            moved.append(amount)

    management, utils = ModuleType("comfy.model_management"), ModuleType("comfy.utils")
    management.throw_exception_if_processing_interrupted = lambda: None  # type: ignore[attr-defined]
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    for module in (ModuleType("comfy"), management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    made = execute(pack, "SfumatoInterpolate", model=model, seeds="1, 2", prompt="a red circle", frames=3, steps=2)
    assert made.shape == (3, 32, 32, 3)
    assert sum(moved) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance": "much"}, "guidance is 'much': give a number, or leave it empty"),
        ({"height": 32}, "height is 32 and width 0: give both"),
        ({"prompt": "a red circle", "label": "3"}, "not trained with label conditioning"),
    ],
)
def test_refusals_name_the_input(pack: ModuleType, model: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        execute(pack, "SfumatoSample", model=model, **given)


def test_boxes_that_are_not_json_are_refused(pack: ModuleType, model: Any) -> None:
    with pytest.raises(UserError, match="boxes are not JSON such as"):
        execute(pack, "SfumatoLayout", model=model, boxes="a dog")
    with pytest.raises(UserError, match="boxes"):
        execute(pack, "SfumatoLayout", model=model, boxes='[{"label": "dog", "box": [0, 0, 1, 1]}]')
