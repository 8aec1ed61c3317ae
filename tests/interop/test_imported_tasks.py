"""The tasks on imported originals: shrunken copies of the published super-resolution and semantic models."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from parity import needs_parity
from sfumato.errors import UserError
from sfumato.interop.original import Imported
from sfumato.tasks import paint, task_options, upscale

FAST = task_options(steps=1, sampler="ddim")
pytestmark = needs_parity


def test_the_super_resolution_model_enlarges_by_its_f(imported: Callable[..., Imported]) -> None:
    model = sfumato.load(imported("bsr_sr").folder)
    small = Image.fromarray(np.arange(10 * 15 * 3, dtype=np.uint8).reshape(10, 15, 3))
    (large,) = upscale(model, small, options=FAST)
    f = model.autoencoder.factor
    assert large.size == (15 * f, 10 * f)


def test_the_semantic_model_paints_ids_and_names_no_colours(imported: Callable[..., Imported]) -> None:
    model = sfumato.load(imported("semantic_synthesis256").folder)
    ids = torch.zeros(33, 40, dtype=torch.long)
    ids[20:] = 5
    (image,) = paint(model, ids, options=FAST)
    assert image.size == (40, 33)
    with pytest.raises(UserError, match=r"records no colours of classes .*: save the map as ids"):
        paint(model, image, options=FAST)
