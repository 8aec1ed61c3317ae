"""The card of a model, README.md of its repository: written from what is known, and open about what is not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from sfumato import __version__
from sfumato.cards.card import Card
from sfumato.conditioning.table import class_config
from sfumato.foreign import printable
from sfumato.pipeline.conditions import source_of
from sfumato.publishing.facts import Facts
from sfumato.report.format import duration, millions, value

SAMPLES, RECONSTRUCTIONS = "samples.png", "reconstructions.png"
CURVES = {"autoencoder": "curve-autoencoder.png", "diffusion": "curve-diffusion.png"}
TITLES = {"autoencoder": "Stage 1, the autoencoder", "diffusion": "Stage 2, the diffusion model"}
FEW = 1000
"""Training images below which samples are likely to repeat them."""
SHOWN_CLASSES = 20
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Words:
    """Facts that no folder contains: the name of the repository, the licences of the weights and of the data."""

    repository: str
    licence: str | None = None
    data_licence: str | None = None


def model_card(facts: Facts, words: Words, files: set[str]) -> str:
    """The card in Markdown with the hub's metadata; `files`: the images beside it."""
    sections = [
        _metadata(facts, words),
        [f"# {words.repository.split('/')[-1]}", "", _what(facts)],
        _image(SAMPLES, "Samples of the newest preview of its training, uncurated", files),
        _use(facts, words),
        ["## The model", "", *_table(_sizes(facts))],
        ["## Data", "", *_data(facts, words)],
        ["## Training", "", *_training(facts), *_curves(files)],
        ["## Evaluation", "", *_evaluation(facts, files)],
        ["## Limits", "", *(f"- {one}" for one in _limits(facts, words))],
    ]
    return "\n\n".join("\n".join(lines).strip() for lines in sections if lines) + "\n"


def _metadata(facts: Facts, words: Words) -> list[str]:
    reads = _reads(facts)
    task = "unconditional-image-generation" if not reads else "text-to-image" if "text" in reads else "image-to-image"
    fields: dict[str, Any] = {"library_name": "sfumato", "tags": ["latent-diffusion", "sfumato"], "pipeline_tag": task}
    if words.licence:
        fields["license"] = words.licence
    return ["---", yaml.safe_dump(fields, sort_keys=False).strip(), "---"]


def _reads(facts: Facts) -> list[str]:
    return [] if facts.model.second is None else list(source_of(facts.model).reads)


def _what(facts: Facts) -> str:
    height, width = facts.model.config.image_size
    if facts.model.second is None:
        return f"An autoencoder of {width} × {height} pixels: the first stage of a latent diffusion model."
    reads = _reads(facts)
    condition = f"conditioned on {', '.join(one.replace('_', ' ') for one in reads)}" if reads else "unconditional"
    return (
        f"A latent diffusion model (Rombach et al. 2022) that makes images of {width} × {height} pixels, {condition}. "
        f"Trained with sfumato {__version__}."
    )


def _use(facts: Facts, words: Words) -> list[str]:
    if facts.model.second is None:
        return []
    reads = _reads(facts)
    name = f"hub:{words.repository}"
    if "text" in reads:
        typed = f'sfumato sample {name} "a caption like those of the data" -n 8 --out samples'
    elif "label" in reads:
        classes = facts.model.config.classes
        typed = f"sfumato sample {name} --label {classes[0] if classes else 0} -n 8 --out samples"
    elif not reads:
        typed = f"sfumato sample {name} -n 8 --out samples"
    else:
        typed = f"sfumato studio  # {name} needs {', '.join(reads)}: see `sfumato info {name}`"
    python = f'model = sfumato.load("{name}")'
    return ["```sh", "pip install 'sfumato[hub]'", typed, "```", "", f"In Python: `{python}`."]


def _sizes(facts: Facts) -> dict[str, str]:
    model = facts.model
    height, width = model.config.image_size
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.parts().items()}
    rows = {"images": f"{width} × {height} pixels", "compression": f"f = {model.autoencoder.factor}"}
    rows["latent"] = " × ".join(map(str, model.latent_shape))
    rows |= {f"parameters, {name}": millions(count) for name, count in counts.items() if count and name != "scaling"}
    if model.second is not None:
        config = model.second.config
        rows["prediction"] = f"{config.prediction}, schedule {config.schedule.kind}"
        classes = class_config(config.conditioner)
        if classes is not None:
            names = model.config.classes or ()
            more = ", …" if len(names) > SHOWN_CLASSES else ""
            rows["classes"] = f"{classes.classes}: {', '.join(names[:SHOWN_CLASSES])}{more}" if names else str(classes)
    return {**rows, "digest": f"`{model.digest}`"}


def _data(facts: Facts, words: Words) -> list[str]:
    seen = {name: text for name, one in facts.about.items() if (text := data_of(one, facts.images)) is not None}
    stated = words.data_licence or next((str(one["licence"]) for one in facts.about.values() if "licence" in one), None)
    lines = [f"- {TITLES.get(name, name)}: {text}" for name, text in seen.items()] or [f"- Data: {NOT_STATED}."]
    return [*lines, f"- Licence of the data: {(stated or NOT_STATED).rstrip('.')}."]


def data_of(about: Mapping[str, Any], count: int | None = None) -> str | None:
    """The data of a stage, without the path on anybody's machine; `count`: of its images, where only the run knows."""
    data = about.get("data")
    if not isinstance(data, dict):
        return None
    kind = str(data.get("kind", NOT_STATED))
    named = f"a folder named {PurePath(str(data['path'])).name}" if data.get("path") else None
    images = data.get("length", count)
    text = named or {"toy": "the toy world of sfumato"}.get(kind, kind)
    return f"{text}, {images:,} images" if isinstance(images, int) else text


def _training(facts: Facts) -> list[str]:
    rows = [
        [
            TITLES.get(name, name),
            f"{one.get('steps', 0):,}",
            f"{one.get('images', 0):,}",
            duration(3600 * float(one.get("hours", 0))),
        ]
        for name, one in facts.about.items()
        if "steps" in one
    ]
    return _rows(["stage", "steps", "images seen", "time"], rows) if rows else [f"{NOT_STATED.capitalize()}."]


def _curves(files: set[str]) -> list[str]:
    shown = [f"![Training curve of {name}]({file})" for name, file in CURVES.items() if file in files]
    return ["", *shown] if shown else []


def _evaluation(facts: Facts, files: set[str]) -> list[str]:
    lines = []
    for card in facts.cards:
        lines += [*_card(card), ""]
    if not facts.cards:
        lines = ["No evaluation is given.", ""]
    return [*lines, *_image(RECONSTRUCTIONS, "Images of the data and their reconstructions, alternating", files)]


def _card(card: Card) -> list[str]:
    rows = [
        [name, f"{value(metric.value)}{'' if metric.std is None else f' ± {value(metric.std)}'}", metric.better or ""]
        for name, metric in card.metrics.items()
    ]
    against = PurePath(str(card.data.get("path", NOT_STATED))).name
    protocol = ", ".join(
        f"{key} {value(one)}" for key, one in card.protocol.items() if isinstance(one, int | float | str)
    )
    return [*_rows(["metric", "value", "better is"], rows), "", f"Against {against}; {protocol or 'no protocol'}."]


def _limits(facts: Facts, words: Words) -> list[str]:
    height, width = facts.model.config.image_size
    limits = [*facts.learnt, f"It was trained at {width} × {height} pixels; other sizes were not seen in training."]
    if facts.images is not None and facts.images < FEW:
        limits.append(f"It was trained on {facts.images:,} images: samples are likely to repeat them.")
    for card in facts.cards:
        limits += card.warnings
    if "text" in _reads(facts):
        limits.append("It knows the words of its captions; other words mean little to it.")
    if words.data_licence is None and not any("licence" in one for one in facts.about.values()):
        limits.append("The licence of its data is not stated: ask before using its images.")
    return [*limits, "Samples can resemble training images; what the data lacks or overstates, the samples do too."]


def _image(file: str, text: str, files: set[str]) -> list[str]:
    return [f"![{text}]({file})"] if file in files else []


def _table(rows: Mapping[str, str]) -> list[str]:
    return _rows(["", ""], [[key, text] for key, text in rows.items()])


def _rows(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
