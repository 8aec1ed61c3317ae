"""One network of a diffusers folder: its configuration, its tensors read on demand, and sfumato's tensors from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato.counts import how_many
from sfumato.documents import read_json_object
from sfumato.errors import UserError
from sfumato.interop.diffusers_keys import OLD_ATTENTION, Entry
from sfumato.interop.members import check_finite, find_weights, inside, variant_note
from sfumato.interop.recognise import no_model_of_ours
from sfumato.interop.source import open_checkpoint

Shape = tuple[int, ...]
Report = Callable[[str], None]
WEIGHTS = "diffusion_pytorch_model"
"""Name of the file with a network's weights, without its ending."""


@dataclass
class Component:
    """One model of a diffusers folder: its configuration, and its tensors read on demand."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Any]
    dtype: str = "float32"
    used: set[str] = field(default_factory=set)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises UserError if the file is missing or does not contain one."""
    if not path.exists():
        raise UserError(f"{path} does not exist; is the folder complete?")
    return read_json_object(path)


def open_component(folder: Path, root: Path | None = None, report: Report = lambda line: None) -> Component:
    """config.json and its weights: safetensors or a pickle, whole or in shards, in the preferred variant.

    root: the folder that links must not leave; by default the folder itself.
    """
    root = root or folder
    config = read_json(inside(root, folder / "config.json"))
    weights = find_weights(root, folder, (WEIGHTS,))
    if weights is None:
        raise UserError(f"{folder} has no {WEIGHTS}.safetensors or .bin; is the folder complete?")
    line = variant_note(weights, folder.name)
    if line is not None:
        report(line)
    tensors: dict[str, Any] = {}
    for path in weights.files:
        tensors |= open_checkpoint(path).tensors
    renamed = {modern(key): tensor for key, tensor in tensors.items()}
    what = no_model_of_ours({key: tensor.shape for key, tensor in renamed.items()})
    if what is not None:
        raise UserError(f"{folder} is {what}")
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in renamed.values()}
    return Component(folder, config, renamed, kinds.pop() if len(kinds) == 1 else "float32")


def modern(key: str) -> str:
    """A key renamed as in later releases."""
    for old, new in OLD_ATTENTION.items():
        if old in key:
            return key.replace(old, new)
    return key


def convert(component: Component, entries: Mapping[str, Entry], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """sfumato's tensors from a component's; raises UserError for a missing, misshapen or left-over key."""
    out = {}
    for ours, shape in shapes.items():
        entry = entries[ours]
        for key in entry.theirs:
            if key not in component.tensors:
                raise UserError(f"{component.path} lacks the key {key!r} that its configuration requires")
        parts = {key: component.tensors[key].load() for key in entry.theirs}
        misfit = entry.misfit(parts, shape)
        if misfit is not None:
            raise UserError(
                f"{component.path}: the key {misfit!r} has shape {tuple(parts[misfit].shape)}, its configuration "
                f"requires {shape}"
            )
        check_finite(parts.items(), component.path)
        other = entry.unlike_the_first(parts)
        if other is not None:
            raise UserError(
                f"{component.path}: the key {other!r} has other values than {entry.theirs[0]!r}; only networks whose "
                "blocks share these weights are supported"
            )
        component.used |= set(entry.theirs)
        out[ours] = entry.to_ours(parts, shape).float().contiguous()
    left = sorted(set(component.tensors) - component.used)
    if left:
        raise UserError(f"{component.path} has {how_many(len(left), 'key')} of no known use, the first is {left[0]!r}")
    return out


def shapes_of(module: nn.Module) -> dict[str, Shape]:
    """The shape of each of a module's tensors."""
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
