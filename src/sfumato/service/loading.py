"""Models in memory: loaded when first used, the least recently used put out when their weights exceed a bound."""

import gc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.service.registry import KnownModel, Stamp, stamp_of

Key = tuple[str, bool]
"""A model's id, and whether it is packed."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory, as of its files' `stamp`."""

    model: LatentDiffusion
    stamp: Stamp
    size: int
    device: torch.device
    precision: torch.dtype


class Loader:
    """Loads models; used by the worker's thread alone.

    Attributes:
        device, dtype: where networks compute and in which type.
        limit: bytes of weights in memory; a single larger model is loaded all the same.
        changed: called after a model came or went.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, limit: int, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.device, self.dtype, self.limit, self.changed = device, dtype, limit, changed
        self._loaded: OrderedDict[Key, Loaded] = OrderedDict()

    def get(self, known: KnownModel, differentiable: bool = False) -> Loaded:
        """The model, packed unless gradients go through it; read again if its files have changed. Raises UserError."""
        key = (known.id, not differentiable)
        there = self._loaded.get(key)
        if there is not None and there.stamp == known.stamp:
            self._loaded.move_to_end(key)
            return there
        self._forget(key)
        self._make_room(known.weights)
        stamp = stamp_of(known.folder)
        model = load(known.path, self.device)
        _ = model.digest
        if not differentiable and self.device.type in ("cpu", "cuda"):
            model.for_inference(self.dtype)
        loaded = Loaded(model, stamp if stamp == known.stamp else known.stamp, known.weights, self.device, self.dtype)
        self._loaded[key] = loaded
        self.changed()
        return loaded

    def digests(self) -> dict[str, str]:
        """The digests of the models in memory, by id."""
        return {name: loaded.model.digest for (name, _), loaded in list(self._loaded.items())}

    @property
    def size(self) -> int:
        """Bytes of weights in memory."""
        return sum(loaded.size for loaded in self._loaded.values())

    def _make_room(self, size: int) -> None:
        while self._loaded and self.size + size > self.limit:
            self._forget(next(iter(self._loaded)))

    def _forget(self, key: Key) -> None:
        if self._loaded.pop(key, None) is not None:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.changed()
