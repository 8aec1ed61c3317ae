"""The facts about a model in its run: data, training, curves, samples, evaluations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.cards.card import CARD_FILE, Card, load_card
from sfumato.model import LatentDiffusion
from sfumato.model_folder import bits_of, find_folder, load
from sfumato.shipped import is_shipped, samples, shipped_name
from sfumato.stored_precision import Bits
from sfumato.training.log import read_lines

FIT_NUMBERS, DATA = "report.json", "data.json"


@dataclass(frozen=True)
class Facts:
    """A model with the facts in its folders.

    Attributes:
        model: opened.
        curves: lines of the logs of stage 1 and stage 2, empty if there are none.
        samples, reconstructions: newest previews of the trainings.
        cards: evaluations.
        images: of the data, where that is known.
        learnt: sentences of a fit.
        bits: in which the model's folder stores its weights; None: as they are.
    """

    model: LatentDiffusion
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: Path | None = None
    reconstructions: Path | None = None
    cards: tuple[Card, ...] = ()
    images: int | None = None
    learnt: tuple[str, ...] = ()
    bits: Bits | None = None

    @property
    def about(self) -> dict[str, dict[str, Any]]:
        """How each part was trained, as its model folder has it."""
        return {name: one for name, one in self.model.config.about.items() if isinstance(one, dict)}


def gather(path: Path, cards: Sequence[Path] = ()) -> Facts:
    """The facts of a model folder, a run, or the diffusion run of a fit.

    cards: folders of evaluations; a `card` beside the run is found automatically. Raises UserError for
    anything that is neither a model nor a card.
    """
    model, folder = load(path), find_folder(path)
    bits = bits_of(folder)
    if is_shipped(path):
        return Facts(model, samples=samples(shipped_name(path)), cards=tuple(map(load_card, cards)), bits=bits)
    run = folder.parent if folder.name == "model" else folder
    first = run.parent / "autoencoder"
    found = [*cards, *(one for one in (run / "card", run.parent / "card") if (one / CARD_FILE).is_file())]
    unique = list({one.resolve(): one for one in found}.values())
    fit = _numbers(run.parent / FIT_NUMBERS)
    images = fit.get("images", _numbers(run / DATA).get("images"))
    learnt = fit.get("learnt", ())
    return Facts(
        model,
        {"autoencoder": read_lines(first / "log.jsonl"), "diffusion": read_lines(run / "log.jsonl")},
        _newest(run, "samples"),
        _newest(first, "reconstruction"),
        tuple(map(load_card, unique)),
        images if type(images) is int else None,
        tuple(one for one in learnt if isinstance(one, str)) if isinstance(learnt, list) else (),
        bits,
    )


def _newest(run: Path, kind: str) -> Path | None:
    found = sorted((run / "previews").glob(f"{kind}-*.png"))
    return found[-1] if found else None


def _numbers(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
