"""Saving and loading a run's state: as one file, or in parts where the processes have parts of it."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sfumato import checkpoint, state_parts
from sfumato.errors import UserError
from sfumato.training.sharding import parted
from sfumato.training.state import TrainState


def save_parts(path: Path, state: TrainState) -> None:
    """Writes the state in parts under a temporary name, then renames it; every process has to call it.

    Raises UserError if the disk is full or cannot be written to.
    """
    draft, leads = state_parts.draft_of(path), dist.get_rank() == 0
    try:
        if leads:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        dist.barrier()
        dcp.save(state.tensors(), storage_writer=HuggingFaceStorageWriter(str(draft), save_distributed=True))
        own = {file.name: state_parts.file_facts(file) for file in draft.glob(f"shard-{dist.get_rank() + 1:05d}-*")}
        facts: list[dict[str, list[int]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(facts, own)
        if leads:
            every = {name: each for part in facts for name, each in part.items()}
            state_parts.seal(draft, path, every, state.numbers())
        dist.barrier()
    except (OSError, dcp.api.CheckpointException) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{str(path)!r} could not be written; is the disk full or read-only? ({reason})") from error


def load_state(path: Path, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and counters of a saved state, in parts where those of `state` are, however it was saved.

    Raises UserError on a damaged one, and KeyError or ValueError if it has a tensor that `state` does not know.
    """
    known = {f"module.{name}": module.state_dict() for name, module in state.modules.items()}
    for name, optimiser in state.optimisers.items():
        parameters = [p.detach() for group in optimiser.param_groups for p in group["params"]]
        known[f"optimiser.{name}"] = {str(index): parameter for index, parameter in enumerate(parameters)}
    if not path.is_dir():
        tensors, numbers = checkpoint.load_tensors(path)
        return {name: parted(value, _like(known, name, value.shape)) for name, value in tensors.items()}, numbers
    numbers = state_parts.read_numbers(path)
    reader = HuggingFaceStorageReader(str(path))
    found = reader.read_metadata().state_dict_metadata
    tensors = {}
    for name, about in found.items():
        assert isinstance(about, TensorStorageMetadata)
        like = _like(known, name, about.size)
        tensors[name] = torch.empty_like(like, dtype=about.properties.dtype, memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=not dist.is_initialized())
    return tensors, numbers


def _like(known: Mapping[str, Mapping[str, Tensor]], name: str, shape: torch.Size) -> Tensor:
    """The run's own tensor of this name, or the parameter that an optimiser's belongs to; a new one if none has the
    shape."""
    kind, part, key = [*name.split(".", 2), "", ""][:3]
    own = known.get(f"{kind}.{part}", {})
    like = own.get(key.partition(".")[0] if kind == "optimiser" else key)
    return like if like is not None and like.shape == shape else torch.empty(shape)
