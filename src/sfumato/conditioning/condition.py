"""The condition of a denoiser: a frozen bundle of optional tensors, and the interface of conditioners."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fields = Mapping[str, Any]
"""A batch's fields by name: text (list of B str), label (B,) long, spatial maps (B, C, H, W), boxes, ..."""


@dataclass(frozen=True)
class ConditionSpec:
    """The result of a conditioner and input of a denoiser; None or 0 means the field is absent.

    Example:
        >>> sfumato.load("zoo:toy").second.conditioner.spec
        ConditionSpec(vector_dim=64, token_dim=64, spatial_channels=0)
    """

    vector_dim: int | None = None
    token_dim: int | None = None
    spatial_channels: int = 0


@dataclass(frozen=True)
class Condition:
    """vector (B, D), tokens (B, M, D) with mask (B, M) bool (True = real), spatial (B, C, h, w); each optional.

    Example:
        >>> model = sfumato.load("zoo:toy")
        >>> condition = model.second.conditioner({"text": ["a red circle"]})
        >>> sorted(condition.tensors())
        ['mask', 'tokens', 'vector']
        >>> len(model.sample(condition=condition, steps=1))
        1
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    spatial: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are present, by name."""
        named = {"vector": self.vector, "tokens": self.tokens, "mask": self.mask, "spatial": self.spatial}
        return {name: value for name, value in named.items() if value is not None}


def merge(conditions: Sequence[Condition]) -> Condition:
    """Concatenates field by field: vectors and spatial maps along channels, tokens along the token axis."""
    tokens = [c.tokens for c in conditions if c.tokens is not None]
    masks: list[Tensor] = []
    if any(c.mask is not None for c in conditions):
        for c in conditions:
            if c.tokens is not None:
                full = torch.ones(c.tokens.shape[:2], dtype=torch.bool, device=c.tokens.device)
                masks.append(full if c.mask is None else c.mask)
    vectors = [c.vector for c in conditions if c.vector is not None]
    spatials = [c.spatial for c in conditions if c.spatial is not None]
    return Condition(
        vector=torch.cat(vectors, 1) if vectors else None,
        tokens=torch.cat(tokens, 1) if tokens else None,
        mask=torch.cat(masks, 1) if masks else None,
        spatial=torch.cat(spatials, 1) if spatials else None,
    )


def select(keep: Tensor, condition: Condition, null: Condition) -> Condition:
    """Per sample the condition where `keep` (B,) bool is True, else the null one; both must have the same fields."""

    def pick(a: Tensor | None, b: Tensor | None, name: str) -> Tensor | None:
        if a is None and b is None:
            return None
        if a is None or b is None:
            raise ValueError(f"field {name} is in only one of the conditional and the null condition")
        return torch.where(keep.reshape(-1, *[1] * (a.dim() - 1)), a, b)

    return Condition(
        vector=pick(condition.vector, null.vector, "vector"),
        tokens=pick(condition.tokens, null.tokens, "tokens"),
        mask=pick(condition.mask, null.mask, "mask"),
        spatial=pick(condition.spatial, null.spatial, "spatial"),
    )


def stack(conditions: Sequence[Condition]) -> Condition:
    """Concatenates along the batch axis (the doubled batch of guidance); all must have the same fields.

    Where their numbers of tokens differ, the shorter ones are padded with tokens that are masked out.
    """
    lengths = [c.tokens.shape[1] for c in conditions if c.tokens is not None]
    if len(set(lengths)) > 1:
        conditions = [_padded(c, max(lengths)) for c in conditions]
    names = {frozenset(c.tensors()) for c in conditions}
    if len(names) != 1:
        raise ValueError(f"conditions with different fields cannot share a batch: {[sorted(n) for n in names]}")
    return Condition(**{name: torch.cat([c.tensors()[name] for c in conditions]) for name in next(iter(names))})


def _padded(condition: Condition, length: int) -> Condition:
    """The condition padded to `length` tokens, the added ones masked out."""
    tokens = condition.tokens
    if tokens is None:
        return condition
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    missing = length - tokens.shape[1]
    return replace(
        condition,
        tokens=F.pad(tokens, (0, 0, 0, missing)),
        mask=F.pad(mask if condition.mask is None else condition.mask, (0, missing)),
    )


def take(condition: Condition, rows: slice | Tensor) -> Condition:
    """The samples of a batch in `rows`, a slice or indices."""
    return Condition(**{name: tensor[rows] for name, tensor in condition.tensors().items()})


def between(a: Condition, b: Condition, weight: Tensor) -> Condition:
    """Conditions interpolated by `weight` (N,) from a to b, each of one sample: fields linearly, masks joined.

    Linear, since the vectors of a condition have no common length that a spherical path would keep. Raises ValueError
    if they have different fields.
    """
    if a.tensors().keys() != b.tensors().keys():
        raise ValueError(f"conditions of different fields: {sorted(a.tensors())} and {sorted(b.tensors())}")

    def mixed(one: Tensor, other: Tensor) -> Tensor:
        if one.dtype == torch.bool:
            return (one | other).expand(len(weight), *one.shape[1:])
        return torch.lerp(one, other, weight.to(one).reshape(-1, *[1] * (one.dim() - 1)))

    return Condition(**{name: mixed(one, b.tensors()[name]) for name, one in a.tensors().items()})


class Conditioner(nn.Module):
    """Interface: the batch's fields -> Condition.

    `spec` lists the fields of Condition that it returns, `reads` the batch's fields that it uses; `null(n, size)` is
    the condition of n unconditional samples, with the same fields and shapes as from `forward`; `size` is the latent's
    (h, w), which only spatial conditioners need.
    """

    spec: ConditionSpec
    reads: tuple[str, ...]

    def prepare(self, fields: Fields) -> dict[str, Any]:
        """The fields that `forward` needs, prepared on the host: texts as ids, values checked.

        Best called before the fields go to a device, since checks there would have to wait for it.
        """
        return {name: fields[name] for name in self.reads if name in fields}

    def forward(self, fields: Fields) -> Condition:
        """Accepts fields as they are, or as returned by `prepare`."""
        raise NotImplementedError  # abstract

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        raise NotImplementedError  # abstract
