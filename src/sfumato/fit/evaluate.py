"""The evaluation of a fit: reconstructions, samples of the folder's own conditions, memorisation, what was learnt."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato import rng
from sfumato.data.dataset import Dataset, Progress
from sfumato.data.loader import sweep
from sfumato.evaluation.memorisation import memorised_share, nearest_rows
from sfumato.fit.distance import kernel_score
from sfumato.fit.latent import latent_numbers
from sfumato.fit.plan import FitPlan
from sfumato.images import to_unit
from sfumato.model import LatentDiffusion
from sfumato.pipeline import pipeline
from sfumato.pipeline.choices import chosen
from sfumato.pipeline.parts import second_stage
from sfumato.pipeline.request import AUTO, DEFAULT_GUIDANCE, DEFAULT_STEPS, SampleRequest
from sfumato.report import measure
from sfumato.report.fit_result import Agreement, FitGallery, KernelScore, LatentNumber, Memorised, NearRow, SampleRow
from sfumato.report.result import FirstStage, Sampling
from sfumato.training.condition_images import condition_images
from sfumato.training.conditions import preview_fields
from sfumato.training.data import RunData
from sfumato.training.diffusion_run import DiffusionRun

LOW_GUIDANCE = 1.5
ROWS = 16
"""Conditions of which samples are shown."""
EACH = 2
"""Samples of a condition and scale."""
SHEET = 48
BATCH = 32
MEASURED = 128
"""Images that are reconstructed."""
COMPARED = 20_000
"""Training images at most among which the nearest is searched."""
COMPARED_SIDE = 32
NEAR = 8
NEIGHBOURS = 3
LEAST_SAMPLES = 2
"""Of a word or class, to be listed."""
LISTED = 6
COMMON = 0.5
"""Words in a larger share of the captions do not distinguish captions."""
SHORTEST = 3


@dataclass(frozen=True)
class Conditions:
    """The conditions of the samples: one title each, and the request's fields; `real` images by title."""

    titles: tuple[str, ...]
    request: dict[str, Any]
    shown: int
    """So many of the first conditions are rows of the page, the others only samples."""
    real: dict[str, Tensor]
    images: Tensor | None = None
    """Conditions as images (N, 3, H, W)."""


@dataclass(frozen=True)
class Evaluation:
    """Results and images."""

    first_stage: FirstStage
    sampling: Sampling
    memorised: Memorised | None
    agreement: Agreement | None
    variety: float | None
    kernel: KernelScore | None
    latent: tuple[LatentNumber, ...]
    gallery: FitGallery


def evaluate(
    model: LatentDiffusion,
    data: RunData,
    plan: FitPlan,
    config: DiffusionRun,
    progress: Callable[[str], Progress],
) -> Evaluation:
    """Measures a trained model on the held-out images, or on training images where none is held out."""
    originals = torch.cat([batch.images for batch in _first(data.measured, MEASURED)])
    numbers, outputs = measure.first_stage(model, originals)
    conditions = conditions_of(model, data, plan.samples, config)
    guided = guidance_of(model)
    scale = DEFAULT_GUIDANCE if guided else 1.0
    t_start = time.perf_counter()
    samples = sample(model, conditions, scale, progress("sampling"))
    seconds = time.perf_counter() - t_start
    both = guided and conditions.shown > 0
    low = [sample(model, first_of(conditions, conditions.shown * EACH), LOW_GUIDANCE)] if both else []
    alone = measure.seconds_of(lambda: sample(model, first_of(conditions, 1), scale))
    kind = chosen(second_stage(model), AUTO, None, DEFAULT_STEPS, scale).sampler.kind
    rows, images = compared(data.training, plan.mirrored)
    kernel = None
    if plan.machine.features:
        some = torch.cat([batch.images for batch in _first(data.training, MEASURED)])
        kernel = kernel_score(samples, originals, some)
    nearest, near, memorised = _memorisation(samples, images, conditions, plan.mirrored)
    agreed = None
    if memorised is not None:
        agreed = agreement(conditions.titles, _titles_of(data.training, rows), nearest, plan)
    return Evaluation(
        first_stage=numbers,
        sampling=Sampling(kind, DEFAULT_STEPS, scale, min(BATCH, len(samples)), alone, seconds / len(samples)),
        memorised=memorised,
        agreement=agreed,
        variety=_variety(samples, images),
        kernel=kernel,
        latent=latent_numbers(model, data.measured, plan),
        gallery=FitGallery(
            originals=originals,
            reconstructions=outputs,
            guidance=(LOW_GUIDANCE, scale) if both else (),
            rows=_rows(conditions, [*low, samples]),
            sheet=samples[0:0] if conditions.images is not None else samples[conditions.shown * EACH :][:SHEET],
            near=near,
        ),
    )


# ---- conditions and samples


def guidance_of(model: LatentDiffusion) -> bool:
    """Whether the model can be guided: it is conditioned, and was trained without its condition some of the time."""
    second = model.second
    return second is not None and second.conditioner is not None and second.config.condition_dropout > 0


def conditions_of(model: LatentDiffusion, data: RunData, count: int, config: DiffusionRun) -> Conditions:
    """The conditions of `count` samples: some of held-out images, and the most frequent ones of the training.

    Each of the first ROWS stands twice, next to itself: two samples of it are shown.
    """
    reads = () if model.second is None or model.second.conditioner is None else model.second.conditioner.reads
    if config.conditions.gives:
        fields, images = preview_fields(data.measured, min(ROWS, count), model, config.data, config.conditions)
        shown = condition_images(fields, model.config.conditioning_metadata, images)
        titles = tuple("" for _ in images)
        request = {"fields": fields, "count": len(images)}
        return Conditions(titles, request, 0, {}, torch.cat([shown[0], images], 3) if shown else images)
    if "text" in reads:
        unseen, often = mixed(data.measured.captions() or []), by_frequency(data.training.captions() or [])
        held = unseen[: ROWS // 2]
        chosen_texts = [*held, *[text for text in often if text not in held][: ROWS - len(held)]]
        further = unseen[len(held) : 10 * count] + often[ROWS:]
        titles = _filled(chosen_texts, further, count)
        return Conditions(titles, {"prompt": list(titles)}, len(chosen_texts), _real(data, titles))
    if "label" in reads and data.training.classes:
        names = list(data.training.classes)
        titles = _filled(names[:ROWS], names, count)
        labels = [names.index(title) for title in titles]
        return Conditions(titles, {"label": labels}, min(ROWS, len(names)), _real(data, titles))
    return Conditions(tuple("" for _ in range(count)), {"count": count}, 0, {})


def first_of(conditions: Conditions, count: int) -> Conditions:
    """The first of the conditions."""
    request: dict[str, Any] = {}
    for name, value in conditions.request.items():
        if name == "count":
            request[name] = min(count, value)
        elif name == "fields":
            request[name] = {key: part[:count] for key, part in value.items()}
        else:
            request[name] = value[:count]
    return Conditions(conditions.titles[:count], request, conditions.shown, conditions.real)


def sample(model: LatentDiffusion, conditions: Conditions, guidance: float, progress: Progress | None = None) -> Tensor:
    """One image for each condition, (N, 3, H, W) on the CPU in [-1, 1], with seeds 0, 1, 2, ..."""
    total, images = len(conditions.titles), []
    for start in range(0, total, BATCH):
        part = _slice(conditions.request, start, min(start + BATCH, total))
        seeds = list(range(start, min(start + BATCH, total)))
        request = SampleRequest(**part, seeds=seeds, guidance=guidance, steps=DEFAULT_STEPS, batch=BATCH)
        images.append(pipeline.sample(model, request).images.clamp(-1, 1).cpu())
        if progress is not None:
            progress(seeds[-1] + 1, total)
    return torch.cat(images)


def _slice(request: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for name, value in request.items():
        if name == "count":
            part[name] = stop - start
        elif name == "fields":
            part[name] = {key: each[start:stop] for key, each in value.items()}
        else:
            part[name] = value[start:stop]
    return part


def _filled(first: Sequence[str], further: Sequence[str], count: int) -> tuple[str, ...]:
    """Each of the first ones EACH times, then the further ones, as often as it takes."""
    titles = [title for title in first for _ in range(EACH)]
    rest = list(further) or list(first)
    while len(titles) < count:
        titles += rest
    return tuple(titles[: max(count, EACH * len(first))])


def mixed(texts: Iterable[str]) -> list[str]:
    """The different texts, in an order that looks random: neighbours in a folder are often alike."""
    return sorted({text for text in texts if text}, key=lambda text: rng.derive(0, text))


def by_frequency(texts: Sequence[str]) -> list[str]:
    """The different texts, the most frequent ones first, equally frequent ones mixed."""
    counts = Counter(texts)
    return sorted(mixed(texts), key=lambda text: -counts[text])


def _real(data: RunData, titles: Sequence[str]) -> dict[str, Tensor]:
    """An image of each of the first titles, held-out ones before training images."""
    found: dict[str, Tensor] = {}
    wanted = set(titles[: EACH * ROWS])
    for source in (data.measured, data.training):
        for row, title in enumerate(_titles_of(source, range(len(source)))):
            if title in wanted and title not in found:
                found[title] = to_unit(source[row].image)
            if len(found) == len(wanted):
                return found
    return found


def _titles_of(source: Dataset, rows: Sequence[int]) -> list[str]:
    """Caption or class of rows; "" without."""
    texts = source.captions()
    if texts is not None:
        return [texts[row] for row in rows]
    classes = source.classes
    if classes is None:
        return ["" for _ in rows]
    return [classes[int(batch_label)] for batch_label in _labels(source, rows)]


def _labels(source: Dataset, rows: Sequence[int]) -> list[int]:
    describe = getattr(source, "labels", None)
    if callable(describe):
        known = describe()
        if known is not None:
            return [known[row] for row in rows]
    return [int(source[row].fields.get("label", 0)) for row in rows]


# ---- memorisation


def compared(source: Dataset, mirrored: bool) -> tuple[list[int], Tensor]:
    """Rows of training images, and these as uint8 (M, 3, h, w) of COMPARED_SIDE at most; mirrored ones come last."""
    count = min(COMPARED, len(source))
    chosen_rows = (
        range(len(source))
        if count == len(source)
        else sorted(torch.randperm(len(source), generator=rng.generator(0, "fit", "compared"))[:count].tolist())
    )
    rows: list[int] = []
    images: list[Tensor] = []
    for batch in sweep(source, 64, list(chosen_rows), unreadable=lambda row, error: None):
        rows += [int(row) for row in batch.index]
        images.append(_small(batch.images))
    found = torch.cat(images)
    return (rows + rows, torch.cat([found, found.flip(-1)])) if mirrored else (rows, found)


def _small(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] averaged to COMPARED_SIDE, as uint8."""
    H, W = images.shape[2:]
    side = min(COMPARED_SIDE, H), min(COMPARED_SIDE, W)
    return ((F.adaptive_avg_pool2d(images.float(), side) + 1) * 127.5).round().to(torch.uint8)


def _memorisation(
    samples: Tensor, images: Tensor, conditions: Conditions, mirrored: bool
) -> tuple[list[int], tuple[NearRow, ...], Memorised | None]:
    """The position of the training image nearest to each sample, the samples that are nearest to one, and f_mem."""
    if len(images) < NEIGHBOURS:
        return [], (), None
    small = _small(samples)
    nearest, distances = nearest_rows(small.flatten(1).float(), images.flatten(1).float(), NEIGHBOURS)
    ratio = distances[:, 0] / distances[:, 1].clamp(min=1e-9)
    closest = ratio.argsort()[:NEAR].tolist()
    near = tuple(
        NearRow(conditions.titles[i], samples[i], tuple(images[row] for row in nearest[i].tolist()), float(ratio[i]))
        for i in closest
    )
    memorised = Memorised(memorised_share(distances), len(samples), len(images), images.shape[-1], mirrored)
    return nearest[:, 0].tolist(), near, memorised


def _variety(samples: Tensor, images: Tensor) -> float | None:
    """Mean distance of neighbouring samples over that of training images; None where there are too few."""
    if min(len(samples), len(images)) < 2:
        return None
    some = torch.randperm(len(images), generator=rng.generator(0, "fit", "variety"))[: max(64, len(samples))]

    def spread(batch: Tensor) -> float:
        rows = batch.flatten(1).double()
        return float(torch.pdist(rows[:256]).mean())

    real = spread(images[some])
    return spread(_small(samples)) / real if real > 0 else None


def agreement(
    titles: Sequence[str], training: Sequence[str], nearest: Sequence[int], plan: FitPlan
) -> Agreement | None:
    """How often the nearest training image has a sample's class, or a word of its caption.

    Args:
        titles: of the samples.
        training: of the training images, in the order of `rows`.
        nearest: the position of each sample's nearest training image among them.
        plan: its conditioner decides between classes and words.
    """
    if plan.conditioner not in ("text", "class"):
        return None
    words = _words_of(training) if plan.conditioner == "text" else None

    def parts(title: str) -> set[str]:
        return {title} if words is None else {word for word in _split(title) if word in words}

    found = [(parts(title), parts(training[place])) for title, place in zip(titles, nearest, strict=True)]
    found = [(wanted, there) for wanted, there in found if wanted]
    if not found:
        return None
    hits = [bool(wanted & there) for wanted, there in found]
    others = [bool(wanted & found[(i + len(found) // 2 + 1) % len(found)][1]) for i, (wanted, _) in enumerate(found)]
    by_part: dict[str, list[bool]] = {}
    for wanted, there in found:
        for part in wanted:
            by_part.setdefault(part, []).append(part in there)
    listed = [(part, sum(each) / len(each), len(each)) for part, each in by_part.items() if len(each) >= LEAST_SAMPLES]
    ranked = sorted(listed, key=lambda one: (-one[1], -one[2], one[0]))
    best = [one for one in ranked[:LISTED] if one[1] > 0]
    worst = [one for one in reversed(ranked) if one not in best][:LISTED]
    return Agreement(sum(hits) / len(hits), sum(others) / len(others), tuple(best), tuple(worst))


def _words_of(texts: Sequence[str]) -> set[str]:
    """Words that distinguish captions."""
    count = Counter(word for text in texts for word in set(_split(text)))
    return {word for word, times in count.items() if times <= COMMON * len(texts)}


def _split(text: str) -> list[str]:
    cleaned = "".join(c if c.isalnum() else " " for c in text.lower())
    return [word for word in cleaned.split() if len(word) >= SHORTEST]


def _rows(conditions: Conditions, groups: Sequence[Tensor]) -> tuple[SampleRow, ...]:
    if conditions.images is not None:
        rows = zip(conditions.titles, conditions.images, groups[-1], strict=True)
        return tuple(SampleRow(title, condition, (image[None],), None) for title, condition, image in rows)
    rows_shown = []
    for i in range(conditions.shown):
        part = slice(EACH * i, EACH * (i + 1))
        title = conditions.titles[EACH * i]
        rows_shown.append(SampleRow(title, None, tuple(g[part] for g in groups), conditions.real.get(title)))
    return tuple(rows_shown)


def _first(source: Dataset, count: int) -> Any:
    return sweep(source, BATCH, range(min(count, len(source))), unreadable=lambda row, error: None)
