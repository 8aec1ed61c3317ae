"""Several conditioners as one: their conditions are merged field by field (the original's hybrid conditioning)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields, merge, select


class Composite(Conditioner):
    """Named parts, each reading its own fields. Tokens follow each other, vectors and spatial maps are concatenated.

    Raises:
        ValueError: there are no parts, or two have tokens of different widths.
    """

    def __init__(self, parts: Mapping[str, Conditioner]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a composite conditioner needs at least one part")
        self.parts = nn.ModuleDict(parts)
        self.reads = tuple(dict.fromkeys(name for part in parts.values() for name in part.reads))
        self.spec = _merged({name: part.spec for name, part in parts.items()})

    def prepare(self, fields: Fields) -> dict[str, Any]:
        """The fields that the parts prepare; unchanged if two of them prepare the same field in different ways."""
        made = [part.prepare(fields) for _, part in self._named()]
        new = [name for one in made for name in one if name not in fields]
        if len(set(new)) < len(new):
            return super().prepare(fields)
        return {name: value for one in made for name, value in one.items()}

    def forward(self, fields: Fields) -> Condition:
        return merge([part(fields) for part in self.parts.values()])

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        return merge([part.null(n, size) for _, part in self._named()])

    def partly(self, fields: Fields, keep: Mapping[str, Tensor], size: tuple[int, int]) -> Condition:
        """Each part's condition for the samples that keep it, (B,) bool by name, its null one for the others."""
        chosen = []
        for name, part in self._named():
            condition = part(fields)
            n = next(iter(condition.tensors().values())).shape[0]
            chosen.append(select(keep[name], condition, part.null(n, size)))
        return merge(chosen)

    def one_by_one(self, fields: Fields, n: int, size: tuple[int, int], names: Sequence[str]) -> list[Condition]:
        """Conditions of n samples: first all parts without the named ones, then each of these added in order.

        Raises ValueError for a name that is not a part.
        """
        named = dict(self._named())
        if unknown := [name for name in names if name not in named]:
            raise ValueError(f"{unknown[0]!r} is not one of the conditioner's parts {', '.join(named)}")
        conditions = []
        for k in range(len(names) + 1):
            absent = set(names[k:])
            chosen = [part.null(n, size) if name in absent else part(fields) for name, part in named.items()]
            conditions.append(merge(chosen))
        return conditions

    def _named(self) -> list[tuple[str, Conditioner]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Conditioner)]


def _merged(specs: Mapping[str, ConditionSpec]) -> ConditionSpec:
    widths = {name: spec.token_dim for name, spec in specs.items() if spec.token_dim is not None}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(
            f"parts of a composite conditioner must have tokens of one width, not {listed}; change their dim"
        )
    vectors = [spec.vector_dim for spec in specs.values() if spec.vector_dim is not None]
    return ConditionSpec(
        vector_dim=sum(vectors) if vectors else None,
        token_dim=next(iter(widths.values()), None),
        spatial_channels=sum(spec.spatial_channels for spec in specs.values()),
    )
