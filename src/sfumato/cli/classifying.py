"""Options of `sfumato sample` that lead a model to a class by a classifier's gradient."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import ClassifierGuidance

ClassOption = Annotated[
    str | None, typer.Option("--class", metavar="N", help="The class, by name or number, that --classifier leads to.")
]
ClassifierOption = Annotated[
    Path | None, typer.Option("--classifier", metavar="RUN", help="A run of `sfumato train classifier`.")
]
ClassifierScaleOption = Annotated[
    float, typer.Option("--classifier-scale", metavar="S", help="How strongly the classifier leads; 0 is off.")
]


def led_by(
    model: "LatentDiffusion", classifier: Path | None, label: str | None, scale: float
) -> "tuple[ClassifierGuidance | None, dict[str, Any]]":
    """The guidance by a classifier, and what images record of it beside its scale; nothing without a classifier.

    To be called before the model is packed. Raises UserError for options that do not go together, or with the model.
    """
    from sfumato.classifier import load_classifier
    from sfumato.errors import UserError

    if (classifier is None) != (label is None):
        missing = "--classifier, a run of `sfumato train classifier`" if classifier is None else "--class"
        raise UserError(f"--class and --classifier go together: give {missing} too")
    if classifier is None or label is None:
        return None, {}
    judge = load_classifier(classifier, model.device)
    judge.check_fits(model)
    return judge.guide(label, scale), {"class": label}
