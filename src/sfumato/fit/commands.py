"""Commands to use after a fit: to sample, to continue training, to evaluate."""

import shlex
from pathlib import Path

from sfumato.fit.folder import AUTOENCODER, DIFFUSION
from sfumato.report.fit_result import FitGallery, FitResult


def commands(result: FitResult, gallery: FitGallery, folder: Path, out: Path) -> list[tuple[str, list[str]]]:
    """(remark, command lines) each."""
    model = f"{out}/{DIFFUSION}"
    hours = str(max(1, round(4 * result.asked / 3600)))
    again = ["sfumato", "fit", str(folder)]
    further = [
        *("sfumato", "train", "diffusion", f"{model}/config.yaml", "--start", model),
        *("--autoencoder", f"{out}/{AUTOENCODER}", "--out", f"{out}-longer"),
        *(f"train.steps={2 * result.diffusion.steps}", "train.optimiser.learning_rate=0.001"),
    ]
    return [
        ("sample", [shlex.join(_sample(result.conditioner, gallery, model, f"{out}/samples"))]),
        ("continue to train stage 2, at a lower learning rate", [shlex.join(further)]),
        (
            "plan again with more time: larger images or networks, if the folder has enough images",
            [shlex.join([*again, "--hours", hours, "--out", f"{out}-larger"])],
        ),
        (
            "evaluate with more samples and more metrics",
            [shlex.join(["sfumato", "evaluate", model, str(folder), "--out", f"{out}/card"])],
        ),
    ]


def _sample(conditioner: str, gallery: FitGallery, model: str, samples: str) -> list[str]:
    title = next((row.title for row in gallery.rows if row.title), "a caption like yours")
    common = ["-n", "16", "--out", samples]
    match conditioner:
        case "text":
            return ["sfumato", "sample", model, title, *common]
        case "class":
            return ["sfumato", "sample", model, "--label", title, *common]
        case "semantic":
            return ["sfumato", "semantic-to-image", model, "map.png", "--out", samples]
        case "layout":
            return ["sfumato", "layout-to-image", model, "boxes.json", "--out", samples]
    return ["sfumato", "sample", model, *common]
