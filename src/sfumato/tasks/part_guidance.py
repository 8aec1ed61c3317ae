"""A guidance scale for each part of a composite conditioner: which parts a model allows it for."""

import math
from collections.abc import Mapping

from sfumato.conditioning.table import CompositeConfig
from sfumato.config import nearest
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.tasks.steering import Words, second_stage


def check_parts(model: LatentDiffusion, scales: Mapping[str, float], words: Words) -> None:
    """Raises UserError for parts that the model lacks or never went without, and for scales that are not finite."""
    config = second_stage(model).config
    told = ", ".join(f"{name}={scale:g}" for name, scale in scales.items())
    if not isinstance(config.conditioner, CompositeConfig):
        raise UserError(
            f"guidance {told} is for a model with parts, and this one's condition has none: give one number"
        )
    if not scales:
        raise UserError("guidance names no parts: give a scale for one at least, or one number")
    dropped = [name for name, rate in config.part_dropout.items() if rate > 0]
    for name, scale in scales.items():
        known = list(config.conditioner.parts)
        if name not in known:
            raise UserError(
                f"guidance {told}: {name!r} is not one of the parts {', '.join(known)}{nearest(name, known)}"
            )
        if name not in dropped:
            raise UserError(
                f"guidance {told} cannot work: this model was trained without dropping {name!r} alone "
                f"(train.part_dropout has {', '.join(dropped) or 'no part'}); leave it out, or give one number"
            )
        if not math.isfinite(scale):
            raise UserError(f"guidance {told}: give finite numbers, 1 is off")
    if words.negative is not None:
        raise UserError(
            f"guidance {told} leads away from missing parts, not from a negative prompt: give one of the two"
        )
