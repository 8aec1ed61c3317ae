"""`sfumato samplers`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.sampling.table import SamplerFacts


def samplers() -> None:
    """List the samplers and what each suits.

    Prints for each its order of accuracy, network calls per step, default grid and settings, which are given as in
    --sampler ddim:eta=0.5. `auto`, the default of `sfumato sample`, chooses one of them; --why explains the choice.
    """
    from sfumato.cli.tables import show
    from sfumato.sampling.table import EVERY_SAMPLER

    rows = [
        [
            name,
            "random" if facts.order is None else str(facts.order),
            str(facts.calls),
            facts.grid,
            _settings(facts),
            facts.suits,
        ]
        for name, facts in EVERY_SAMPLER.items()
    ]
    show(["sampler", "order", "calls", "grid", "settings", "suits"], rows)


def _settings(facts: "SamplerFacts") -> str:
    """The settings and their usual values."""
    fields = {name: field.default for name, field in facts.config.model_fields.items() if name != "kind"}
    shown = (f"{name}={round(value, 3) if isinstance(value, float) else value}" for name, value in fields.items())
    return " ".join(shown) or "-"
