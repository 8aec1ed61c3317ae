"""Several conditioners as one: their conditions are merged field by field (the original's hybrid conditioning)."""

from collections.abc import Mapping

from torch import nn

from sfumato.conditioning.condition import Condition, Conditioner, ConditionSpec, Fields, merge


class Composite(Conditioner):
    """Named parts, each reading its own fields. Tokens follow each other, vectors and spatial maps are concatenated.

    Raises:
        ValueError: there are no parts, or two give tokens of different widths.
    """

    def __init__(self, parts: Mapping[str, Conditioner]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a composite conditioner needs at least one part")
        self.parts = nn.ModuleDict(parts)
        self.reads = tuple(dict.fromkeys(name for part in parts.values() for name in part.reads))
        self.spec = _merged({name: part.spec for name, part in parts.items()})

    def forward(self, fields: Fields) -> Condition:
        return merge([part(fields) for part in self.parts.values()])

    def null(self, n: int, size: tuple[int, int]) -> Condition:
        return merge([part.null(n, size) for part in self._conditioners()])

    def _conditioners(self) -> list[Conditioner]:
        return [part for part in self.parts.values() if isinstance(part, Conditioner)]


def _merged(specs: Mapping[str, ConditionSpec]) -> ConditionSpec:
    widths = {name: spec.token_dim for name, spec in specs.items() if spec.token_dim is not None}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ValueError(
            f"parts of a composite conditioner must give tokens of one width, not {told}; change their dim"
        )
    vectors = [spec.vector_dim for spec in specs.values() if spec.vector_dim is not None]
    return ConditionSpec(
        vector_dim=sum(vectors) if vectors else None,
        token_dim=next(iter(widths.values()), None),
        spatial_channels=sum(spec.spatial_channels for spec in specs.values()),
    )
