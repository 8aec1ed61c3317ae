"""How the options of a request are typed: their names, and what turns a text into a value. Imports nothing heavy."""

import re
from dataclasses import MISSING, replace
from typing import Any

from sfumato.cli.flags import Flag, Form, flags_of, like
from sfumato.errors import UserError
from sfumato.pipeline.options import Range, check_number, options_of
from sfumato.pipeline.request import DEFAULT_MEMORY, SIDE, Projection, SampleRequest
from sfumato.pipeline.task_options import DEFAULTS
from sfumato.pipeline.task_options import SAMPLING as TASK_SAMPLING

MEBIBYTE = 1 << 20
SAMPLES = 10_000_000
"""Of an evaluation, at most."""
ONE_SCALE = "neither a number such as 3 nor scales of parts such as text=3,mask=1.5"


def size_of(flag: str, text: str) -> tuple[int, int]:
    """(H, W) of "64x96", or of "64" for a square."""
    from sfumato.pipeline.memory import check_memory

    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip().lower())
    digits = [side for side in found.groups() if side] if found is not None else []
    if not digits or any(len(side) > 1000 or int(side) == 0 for side in digits):
        short = text if len(text) < 60 else f"{text[:57]}..."
        raise UserError(
            f"{flag} {short!r} is not a size: give height x width such as 64x96, or one number for a square"
        )
    size = (int(digits[0]), int(digits[-1]))
    check_number(flag, size, SIDE)
    check_memory(size, 1)
    return size


def interval_of(flag: str, text: str) -> tuple[float, float]:
    """(low, high) of "0.2,0.8"."""
    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise UserError(f"{flag} {text!r} is not LO,HI with 0 <= LO <= HI <= 1, such as 0.2,0.8")
    return low, high


def numbers_of(flag: str, text: str) -> list[float]:
    """The numbers of a list with commas."""
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} {text!r} is not a number, or numbers with commas between them") from None


def seeds_of(flag: str, text: str) -> list[int]:
    """The whole numbers of a list with commas."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"{flag} {text!r} is not whole numbers with commas between them, such as 3,7") from None


def steps_of(flag: str, text: str) -> list[int]:
    """The numbers of steps of a list with commas, each once."""
    try:
        return list(dict.fromkeys(int(steps) for steps in text.split(",")))
    except ValueError:
        raise UserError(f"{flag} {text!r} is not numbers of steps with commas between them, such as 1,2,4,8") from None


def jumps_of(flag: str, text: str) -> tuple[int, int]:
    """(length, repeats) of "5,3"."""
    found = [part.strip() for part in text.split(",")]
    if len(found) != 2 or not all(part.isdecimal() and int(part) > 0 for part in found):
        raise UserError(f"{flag} {text!r} is not LENGTH,REPEATS, two numbers from 1 on, such as 5,3")
    return int(found[0]), int(found[1])


def scale_of(flag: str, text: str) -> float | dict[str, float]:
    """A guidance scale, or scales by the name of a part."""
    names = [part.partition("=")[0].strip() for part in text.split(",")]
    numbers = [part.rpartition("=")[2] for part in text.split(",")]
    try:
        scales = [float(number) for number in numbers]
    except ValueError:
        scales = []
    if "=" not in text and len(scales) == 1:
        return scales[0]
    if not scales or not all(names) or text.count("=") < len(scales) or len(set(names)) < len(names):
        raise UserError(f"{flag} {text!r} is {ONE_SCALE}")
    return dict(zip(names, scales, strict=True))


def scales_of(flag: str, text: str) -> float | list[float] | dict[str, float]:
    """A guidance scale, scales with commas between them, or scales by the name of a part."""
    if "=" in text:
        return scale_of(flag, text)
    scales = numbers_of(flag, text)
    return scales[0] if len(scales) == 1 else scales


def projection_of(flag: str, text: str) -> Projection:
    """The settings of adaptive projected guidance: "on", or NAME=VALUE with commas between."""
    values: dict[str, float] = {}
    ranges = {one.name: one.range for one in options_of(Projection)}
    for part in [] if text == "on" else text.split(","):
        name, _, value = part.partition("=")
        if name not in ranges:
            from sfumato.config import nearest

            raise UserError(
                f"{flag} {part!r} is not on, or one of {', '.join(ranges)} with =VALUE{nearest(name, ranges)}"
            )
        if name in values:
            raise UserError(f"{flag} {text!r} gives {name} twice: keep one of them")
        values[name] = numbers_of(flag, value)[0]
        bounds = ranges[name]
        if bounds is not None:
            check_number(f"{flag} {text!r}: {name}", values[name], bounds)
    return Projection(**values)


def window_of(flag: str, text: str) -> int | None:
    """None for auto, else pixels."""
    if text.strip().lower() == "auto":
        return None
    if not text.strip().isdecimal():
        raise UserError(f"{flag} {text!r} is not a number of pixels: give one such as 256, 0 for none, or auto")
    return int(text)


def bytes_of(flag: str, mebibytes: int) -> int:
    """Bytes."""
    return mebibytes * MEBIBYTE


SIZE = Form(metavar="HxW", type=str, parse=size_of, hint="Such as 64x96, or one number for a square.")
ONE_TEXT = Form(type=str)
ONE_LABEL = Form(type=str, help="The class, by number or name, of a class-conditional model.")
MEMORY = Form(
    metavar="MIB",
    parse=bytes_of,
    help="MiB for feature maps while encoding and decoding; larger images are computed in bands with the same result.",
    typed_default=DEFAULT_MEMORY // MEBIBYTE,
    range=Range(1, 10_000_000, whole=True),
)
FORMS: dict[str, Form] = {
    "prompt": Form(metavar="[PROMPT]...", type=list[str], argument=True),
    "label": Form(type=list[str], hint="May be given several times."),
    "count": Form(names=("-n", "--count"), type=int),
    "seeds": Form(metavar="A[,B...]", type=str, parse=seeds_of),
    "size": SIZE,
    "jumps": Form(metavar="LENGTH,REPEATS", type=str, parse=jumps_of),
    "guidance": Form(
        metavar="S[,S...]",
        type=str,
        parse=scales_of,
        hint="As in 3, in 1,4 for two images, or in text=3,mask=1.5 for models trained with train.part_dropout.",
    ),
    "negative": ONE_TEXT,
    "interval": Form(metavar="LO,HI", type=str, parse=interval_of, typed_default="0,1"),
    "projection": Form(
        names=("--apg",), metavar="SETTINGS", type=str, parse=projection_of, hint="on, or limit=7.5,momentum=-0.5."
    ),
    "sampler": Form(metavar="NAME[:KEY=VALUE,...]", type=str, hint="`sfumato samplers` lists them."),
    "grid": Form(
        metavar="KIND[:KEY=VALUE,...]",
        type=str,
        hint="leading, trailing, linspace, quadratic, karras, log-snr, ays.",
    ),
    "steps": Form(help="Sampling steps, unless --times lists them [default: 20, a student's 4]."),
    "times": Form(metavar="LIST", type=str, parse=numbers_of, hint="As in 999,850,736."),
    "memory": MEMORY,
    "window": Form(
        metavar="PIXELS",
        type=str,
        parse=window_of,
        typed_default="0",
        help="Side of the overlapping windows of large images; 0: none; auto: the training size, where the image has "
        "more than four times its area.",
    ),
    "reuse": Form(metavar="N"),
}
OF_ONE_IMAGE = {
    "prompt": Form(metavar="[PROMPT]", type=str, argument=True, help="A prompt, for a model that takes text."),
    "label": ONE_LABEL,
    "negative": Form(type=str, help="A negative prompt, which guidance moves away from."),
    "steps": Form(help="Sampling steps."),
    "guidance": Form(metavar="SCALE", type=str, parse=scale_of, hint="As in 3, or in text=3,mask=1.5."),
}
"""Forms where every image has the same prompt, label and scale."""
PYTHON_ONLY = ("condition", "fields", "noise", "initial", "known", "keep", "callback", "on_record")
"""Tensors, and functions: no text stands for them."""
OF_A_PATH = ("autoguide", "classifier", "image_guidance")
"""Typed as files that are opened with the model."""
OF_A_TASK = ("strength", "jumps")
"""Options of the tasks that keep a part of an image, or begin from one."""
SAMPLING = tuple(one.name for one in options_of(SampleRequest) if one.name not in PYTHON_ONLY + OF_A_PATH + OF_A_TASK)
"""The options of `sfumato sample` that are parsed before a model is opened."""


def request_flags(*names: str, forms: dict[str, Form] | None = None, **defaults: Any) -> list[Flag]:
    """The flags of these options of a request; `defaults`, as typed, where a command has other ones."""
    return flags_of(SampleRequest, names, FORMS | (forms or {}), defaults)


def request_flag(name: str, default: Any = MISSING, **changes: Any) -> Any:
    """A dataclass field that is declared at the request, with its form changed where something is given."""
    form = replace(FORMS.get(name, Form()), **changes)
    return like(SampleRequest, name, default, **{each: getattr(form, each) for each in Form.__dataclass_fields__})


def task_flags(*words: str, **defaults: Any) -> list[Flag]:
    """The options that the commands of the paper's tasks share, after their `words`: prompt, label, negative."""
    return request_flags(*words, *TASK_SAMPLING, forms=OF_ONE_IMAGE, **{**DEFAULTS, "window": "auto", **defaults})
