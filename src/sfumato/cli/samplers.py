"""`sfumato samplers`."""


def samplers() -> None:
    """List the samplers and what each suits.

    With its order of accuracy, its network calls a step and the usual spacing of its steps.
    """
    from sfumato.cli.tables import show
    from sfumato.sampling.table import SAMPLERS

    rows = [
        [name, "random" if facts.order is None else str(facts.order), str(facts.calls), facts.grid, facts.suits]
        for name, facts in SAMPLERS.items()
    ]
    show(["sampler", "order", "calls", "grid", "suits"], rows)
