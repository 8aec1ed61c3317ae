"""The sections of the page, one function each: numbers and pictures in, markup out."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.data.toyworld.facts import KINDS, Fact, Score
from sfumato.evaluation.image_quality import psnr, ssim
from sfumato.report.gallery import Drawn, Gallery, PromptShown
from sfumato.report.html import Markup, element, figure, image, join, table
from sfumato.report.measure import in_words
from sfumato.report.result import DemoResult, ScoreRow, Training
from sfumato.report.svg import Series, dot_plot, line_chart

PAPER = "https://arxiv.org/abs/2112.10752"
PAIRS_SHOWN = 8
ATTRIBUTES = ("size", "texture", "colour", "shape")

LogLines = Sequence[Mapping[str, Any]]


# ---- words for numbers


def percent(share: float | None) -> str:
    """0.934 -> 93.4 %; a dash for None."""
    return "–" if share is None else f"{share:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """Seconds as a person would say them: 48 s, 11 min 52 s, 3 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def minutes(seconds: float) -> str:
    """Seconds as one short number: 48 s, 11.9 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def rate(per_second: float) -> str:
    """A rate with three digits."""
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}"


def millions(parameters: int) -> str:
    """A count of parameters."""
    return f"{parameters / 1e6:.2f} M"


def shape(sizes: Sequence[int]) -> str:
    """(4, 16, 16) -> 4 × 16 × 16."""
    return " × ".join(str(size) for size in sizes)


# ---- the page from top to bottom


def opening(result: DemoResult) -> Markup:
    """What was trained, where, how long, and the numbers to remember."""
    machine, headline = result.machine, result.headline
    cores = f"{machine.cores} core" + ("s" if machine.cores != 1 else "")
    _, H, W = result.first_stage.image_shape
    lead = (
        f"An autoencoder and a text-steered diffusion model in its latent space, trained from nothing in "
        f"{duration(result.autoencoder.seconds + result.diffusion.seconds)} on {machine.device}, {cores}."
    )
    numbers = (
        (
            percent(headline["facts_right"]),
            "of stated facts right",
            f"held-out compositions, guidance {_scale(result)}",
        ),
        (f"{headline['psnr']:.1f} dB", "PSNR of reconstructions", f"f = {result.first_stage.factor}, held-out scenes"),
        (rate(headline["pictures_per_second"]), "pictures a second", f"{result.sampling.steps} steps, guided"),
        (minutes(result.seconds), "in all", "training, drawing and scoring"),
    )
    tiles = [
        element("div", element("dd", value, class_="big"), element("dt", join([name, below], Markup("<br>"))))
        for value, name, below in numbers
    ]
    shortened = element("p", "A shortened run (--quick): it shows that everything works, not how well.", class_="note")
    return element(
        "header",
        element("p", f"sfumato {result.version} · demo · {result.created}", class_="eyebrow"),
        element("h1", f"The whole paper, small: latent diffusion on a toy world of {W} × {H} pixels"),
        element("p", lead, class_="lead"),
        shortened if result.quick else Markup(),
        _short_of_time(result),
        element("dl", *tiles, class_="headline"),
    )


def _short_of_time(result: DemoResult) -> Markup:
    """What a slow machine left out, where it did."""
    trainings = ("stage 1", result.autoencoder), ("stage 2", result.diffusion)
    cut = [f"{t.steps} of {t.configured} steps of {stage}" for stage, t in trainings if t.configured is not None]
    if not cut:
        return Markup()
    told = f"This machine had time for {' and '.join(cut)}. Pictures get better with more: sfumato demo --minutes 60."
    return element("p", told, class_="note")


def reconstructions(result: DemoResult, gallery: Gallery) -> Markup:
    """Held-out scenes through the first stage and back, the latent as grey maps, its statistics."""
    stage = result.first_stage
    shown = slice(0, PAIRS_SHOWN)
    originals, outputs = gallery.originals[shown], gallery.reconstructions[shown]
    quality = zip(psnr(outputs, originals).tolist(), ssim(outputs, originals).tolist(), strict=True)
    pairs = [
        element(
            "div",
            image(original, "original", width=128),
            image(output, "reconstruction", width=128),
            element("p", f"{db:.1f} dB · SSIM {similarity:.3f}"),
            class_="pair",
        )
        for original, output, (db, similarity) in zip(originals, outputs, quality, strict=True)
    ]
    lead = (
        f"Left the scene, right what is left of it after {shape(stage.latent_shape)} numbers: "
        f"{stage.compression:g} times fewer than its {shape(stage.image_shape)}. Over {stage.pictures} scenes of "
        f"compositions that training never showed: PSNR {stage.psnr:.2f} dB, SSIM {stage.ssim:.4f}."
    )
    return section(
        "Stage 1: what the latent keeps",
        "Sections 3.1 and 4.1, appendix G",
        element("p", lead),
        element("div", *pairs, class_="pairs"),
        element("div", element("div", *_maps(gallery)), _latent_table(result), class_="beside"),
    )


def _maps(gallery: Gallery) -> list[Markup]:
    first = figure(image(gallery.originals[0], "the first scene", width=80), "scene")
    channels = [
        figure(image(grey, f"latent channel {c}", width=80), f"channel {c}")
        for c, grey in enumerate(gallery.latent_maps)
    ]
    said = "The first scene's latent, a channel each. Mid-grey is the mean, black and white are three deviations away."
    return [
        element("h3", "The latent, seen"),
        element("div", first, *channels, class_="row"),
        element("p", said, class_="note", style="margin-top:14px"),
    ]


def _latent_table(result: DemoResult) -> Markup:
    stage = result.first_stage
    rows = [
        [
            str(c),
            f"{ch.mean:+.3f}",
            f"{ch.std:.3f}",
            f"{ch.kurtosis:+.2f}",
            f"{ch.scaled_mean:+.3f}",
            f"{ch.scaled_std:.3f}",
        ]
        for c, ch in enumerate(stage.channels)
    ]
    bits = "a codebook" if stage.bits_per_dimension is None else f"{stage.bits_per_dimension:.2f} bits a number (KL)"
    note = (
        f"Held-out scenes, scaled as measured on the training set; excess kurtosis. The posterior carries {bits}."
        if stage.bits_per_dimension is not None
        else f"Held-out scenes, scaled as measured on the training set; excess kurtosis. The bottleneck is {bits}."
    )
    head = ["channel", "mean", "std", "kurtosis", "scaled mean", "scaled std"]
    return element(
        "div",
        element("h3", "Latent statistics"),
        table(head, rows),
        element("p", note, class_="note", style="margin-top:14px"),
    )


def samples(result: DemoResult, gallery: Gallery) -> Markup:
    """Pictures beside their prompts for several guidance scales, with the reader's verdict on every fact."""
    heads = [f"guidance {scale:g}" + (" (off)" if scale == 1 else "") for scale in gallery.guidance]
    head = element(
        "div", element("span"), *(element("span", h) for h in [*heads, "a real scene"]), class_="sample head"
    )
    lead = (
        f"The first {len(gallery.prompts)} held-out prompts, not chosen. Each contains a composition of shape, colour, "
        "number or relation that training never showed. Every row starts from the same noise; below each picture, "
        "what a reader without any network finds in it."
    )
    said = f"The next {len(gallery.sheet)} prompts at guidance {_scale(result)}; point at a picture to read its prompt."
    tiles = [
        element("span", image(picture, caption), title=caption)
        for picture, caption in zip(gallery.sheet, gallery.sheet_captions, strict=True)
    ]
    sheet = figure(element("div", *tiles, class_="sheet"), said) if tiles else Markup()
    return section(
        "Stage 2: samples beside their prompts",
        "Sections 3.2 and 3.3; classifier-free guidance: Ho and Salimans 2022",
        element("p", lead),
        head,
        *(_prompt(row) for row in gallery.prompts),
        element("h3", "More, small"),
        sheet,
    )


def _prompt(shown: PromptShown) -> Markup:
    pictures = [_judged(drawn, shown.caption) for drawn in (*shown.drawn, shown.real)]
    return element("div", element("blockquote", shown.caption), *pictures, class_="sample")


def _judged(drawn: Drawn, caption: str) -> Markup:
    return element("div", image(drawn.image, caption, width=184), verdict(drawn.score))


def verdict(score: Score) -> Markup:
    """The facts of a prompt with a mark each: a line per object, one for the scene, the tally first."""
    subjects = sorted({f.subject for f in score.facts if f.subject is not None and f.kind in ATTRIBUTES})
    judged = list(zip(score.facts, score.holds, strict=True))
    lines = [
        sorted((j for j in judged if j[0].kind in ATTRIBUTES and j[0].subject == s), key=lambda j: _place(j[0]))
        for s in subjects
    ]
    lines.append([j for j in judged if j[0].kind not in ATTRIBUTES])
    ordered = sum(f.kind == "relation" for f in score.facts) > 1
    total = element("li", f"{sum(score.holds)} of {len(score.holds)}", class_="tally")
    return element(
        "ul", total, *(element("li", join(_fact(*j, ordered) for j in line)) for line in lines), class_="verdict"
    )


def _place(fact: Fact) -> int:
    return ATTRIBUTES.index(fact.kind)


def _fact(fact: Fact, holds: bool, ordered: bool) -> Markup:
    said = in_words(fact)
    if ordered and fact.kind == "relation" and fact.subject is not None:
        said = f"{fact.subject + 1} {said} {fact.subject + 2}"
    mark = element("b", "✓" if holds else "✗")
    inside = element("span", mark, said, class_="fact" if holds else "fact wrong")
    return Markup(inside + " ")


def denoising(result: DemoResult, gallery: Gallery) -> Markup:
    """The expected clean picture at some of the steps."""
    strip = gallery.strip
    columns = f"grid-template-columns:repeat({len(strip.times)},1fr)"
    rows = [
        element(
            "div",
            element("p", caption),
            *(image(strip.images[k, i], f"{caption}, at t = {t:.3f}") for k, t in enumerate(strip.times)),
            class_="strip",
            style=columns,
        )
        for i, caption in enumerate(strip.captions)
    ]
    times = element("div", *(element("span", f"step {k}") for k in strip.steps), class_="times", style=columns)
    lead = (
        f"{result.sampling.steps} steps of {result.sampling.sampler} at guidance {_scale(result)}. Shown is what the "
        "model expects the clean picture to be, decoded: from the average of everything that fits the words to one "
        "picture. Of the steps those are shown between which it moved equally far."
    )
    return section("From noise to a picture", "Section 3.2, equation 3; appendix B", element("p", lead), *rows, times)


def _what_it_is(positive: bool) -> str:
    """Of a loss whose weights are fixed, and of one that learns them and adds their logarithm."""
    if positive:
        return ", logarithmic; its floor is the noise that no network can know"
    return " with learned weights: the logarithm of the error, about, so that it goes on below zero"


def curves(result: DemoResult, stage_one: LogLines, stage_two: LogLines) -> Markup:
    """Losses and quality over both trainings."""
    reconstruction = line_chart(
        [
            Series("a batch", points(stage_one, "reconstruction"), 0, faint=True),
            Series("running mean", running_mean(points(stage_one, "reconstruction")), 0),
        ],
        "steps",
        "reconstruction loss",
        log=True,
    )
    quality = line_chart([Series("PSNR in dB", points(stage_one, "psnr"), 1)], "steps", "PSNR")
    smoothed = points(stage_two, "loss_smoothed")
    positive = all(value > 0 for _, value in smoothed)
    loss = line_chart(
        [Series("a batch", points(stage_two, "loss"), 0, faint=True), Series("running mean", smoothed, 0)],
        "steps",
        "loss",
        log=positive,
    )
    kl = line_chart(
        [Series("bits per latent number", points(stage_one, "bits_per_dimension"), 2)], "steps", "bits per number"
    )
    charts = [
        figure(reconstruction, "Stage 1: reconstruction loss, logarithmic."),
        figure(quality, "Stage 1: PSNR of a fixed batch of held-out scenes, averaged weights."),
        figure(loss, f"Stage 2: the loss{_what_it_is(positive)}."),
    ]
    if points(stage_one, "bits_per_dimension"):
        charts.append(figure(kl, "Stage 1: what the posterior carries."))
    return section("How it learned", "", element("div", *charts, class_="beside"))


def points(lines: LogLines, name: str) -> list[tuple[float, float]]:
    """(step, value) of every log line that has the value."""
    return [(float(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), int | float)]


def running_mean(values: Sequence[tuple[float, float]], memory: float = 0.8) -> list[tuple[float, float]]:
    """An exponential mean, corrected for its start."""
    mean = weight = 0.0
    smooth = []
    for x, y in values:
        mean, weight = memory * mean + (1 - memory) * y, memory * weight + (1 - memory)
        smooth.append((x, mean / weight))
    return smooth


def scores(result: DemoResult) -> Markup:
    """The reader's score by kind of fact, beside real scenes, reconstructions and chance."""
    kinds = [kind for kind in KINDS if kind in result.generated.rates]
    compared = [
        ("generated", result.generated),
        ("real scenes", result.real),
        ("reconstructions", result.reconstructed),
        ("chance", result.chance),
    ]
    rows = [*kinds, "facts"]
    plot = dot_plot([*kinds, "all facts"], [(name, [row.rates.get(kind) for kind in rows]) for name, row in compared])
    total = sum(result.facts.values())
    lead = (
        f"{result.generated.prompts} held-out prompts state {total} facts. {percent(result.generated.rates['facts'])} "
        f"of them are true of the pictures drawn for them at guidance {_scale(result)}, and "
        f"{percent(result.generated.rates['prompts'])} of the pictures have every single fact right. The reader itself "
        f"finds {percent(result.real.rates['facts'])} on real scenes and "
        f"{percent(result.reconstructed.rates['facts'])} after the first stage alone; scenes of other prompts agree "
        f"with {percent(result.chance.rates['facts'])} by chance."
    )
    stated = ["facts stated", "", *(str(result.facts.get(kind, 0)) for kind in kinds), str(total), ""]
    body = [_score_row(row, kinds) for row in _all_rows(result)]
    head = ["", "prompts", *kinds, "all facts", "all right"]
    return section(
        "Does the picture say what the prompt says?",
        "Beyond the paper: an exact score, without a second network",
        element("p", lead),
        figure(plot, "Share of facts that hold, by kind, over all held-out prompts."),
        element("h3", "In numbers: per cent of the facts stated"),
        table(head, [*body, stated], css="scores", marked=(0,)),
    )


def _all_rows(result: DemoResult) -> list[ScoreRow]:
    return [result.generated, *result.other_generated, result.real, result.reconstructed, result.chance]


def _score_row(row: ScoreRow, kinds: Sequence[str]) -> list[str]:
    shares = [f"{100 * row.rates[kind]:.1f}" if kind in row.rates else "–" for kind in (*kinds, "facts", "prompts")]
    return [row.name, str(row.prompts), *shares]


def speed(result: DemoResult) -> Markup:
    """Rates, sizes and times of every phase."""
    sampling, stage = result.sampling, result.first_stage
    trainings = [
        _training_row("stage 1: autoencoder", result.autoencoder),
        _training_row("stage 2: diffusion", result.diffusion),
    ]
    head = ["", "configuration", "parameters", "steps", "images seen", "images / s", "time"]
    drawing = [
        ["one picture alone", f"{sampling.seconds_alone:.2f} s"],
        [f"a picture in a batch of {sampling.batch}", f"{sampling.seconds_in_batch:.3f} s"],
        ["image", f"{shape(stage.image_shape)} = {_product(stage.image_shape):,} numbers"],
        ["latent", f"{shape(stage.latent_shape)} = {_product(stage.latent_shape):,} numbers, f = {stage.factor}"],
    ]
    machine = result.machine
    on = (
        f"{machine.device}, {machine.cores} cores, {machine.threads} threads; {machine.system}, "
        f"Python {machine.python}, torch {machine.torch}."
    )
    phases = [[name, duration(seconds)] for name, seconds in result.phases.items()]
    return section(
        "Speed and size",
        "",
        table(head, trainings),
        element(
            "div",
            element(
                "div", element("h3", f"Drawing, {sampling.steps} steps of {sampling.sampler}"), table(["", ""], drawing)
            ),
            element("div", element("h3", "Where the time went"), table(["", ""], phases)),
            class_="beside",
        ),
        element("p", on, class_="note", style="margin-top:24px"),
    )


def _training_row(name: str, training: Training) -> list[str]:
    return [
        name,
        training.config,
        millions(training.parameters),
        f"{training.steps:,}",
        f"{training.images:,}",
        rate(training.images_per_second),
        duration(training.seconds),
    ]


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def commands(blocks: Sequence[tuple[str, Sequence[str]]]) -> Markup:
    """What to type to repeat this and to go on: (remark, lines) a block."""
    parts = [
        Markup(element("span", f"# {remark}", class_="remark") + "\n" + join(lines, "\n")) for remark, lines in blocks
    ]
    return section("Again, and on", "", element("pre", element("code", join(parts, "\n\n"))))


def closing(result: DemoResult) -> Markup:
    """Sources."""
    paper = element("a", "High-Resolution Image Synthesis with Latent Diffusion Models", href=PAPER)
    return element(
        "footer",
        element("p", "The method: Rombach, Blattmann, Lorenz, Esser, Ommer, ", paper, ", CVPR 2022."),
        element("p", f"Every number of this page is in report.json beside it. Made by sfumato {result.version}."),
    )


def section(title: str, source: str, *content: str) -> Markup:
    """A section with its title and, above it, where the paper treats it."""
    above = element("p", source, class_="eyebrow") if source else Markup()
    return element("section", above, element("h2", title), *content)


def _scale(result: DemoResult) -> str:
    return f"{result.sampling.guidance:g}"
