"""Fields prepared on the host are the fields: the same condition comes of both."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.conditioning.class_label import ClassConfig, ClassEmbedder
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Conditioner
from sfumato.conditioning.layout import LayoutConfig, LayoutTransformer
from sfumato.conditioning.spatial import ImageConfig, SemanticConfig, SpatialIdentity, SpatialRescaler
from sfumato.conditioning.text import TextConfig, TextTransformer
from sfumato.conditioning.tokenizer import fit_tokenizer

TEXTS = ["a red circle", "two blue squares"]
FIELDS: dict[str, Any] = {
    "text": TEXTS,
    "label": torch.tensor([1, 0]),
    "boxes": [torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.5, 0.5, 0.2, 0.2]])],
    "categories": [torch.tensor([1]), torch.tensor([0, 2])],
    "map": torch.tensor([0, 1, 255, 2]).repeat(2, 8, 2),
    "mask": torch.ones(2, 1, 2, 2),
    "unread": ["by", "nobody"],
}


def text(seed: int = 0) -> TextTransformer:
    torch.manual_seed(seed)
    config = TextConfig(dim=8, depth=1, heads=2, head_dim=4, max_tokens=12, vocabulary=300, pooled=True)
    return TextTransformer(config, fit_tokenizer(TEXTS, 300))


def layout() -> LayoutTransformer:
    torch.manual_seed(1)
    return LayoutTransformer(LayoutConfig(classes=3, objects=4, vocabulary=90, dim=8, depth=1, heads=2, head_dim=4))


def semantic() -> SpatialRescaler:
    return SpatialRescaler(SemanticConfig(classes=3, channels=2, stages=2, void=255))


CONDITIONERS: dict[str, tuple[Conditioner, set[str]]] = {
    "text": (text(), {"tokens"}),
    "layout": (layout(), {"layout_tokens"}),
    "map": (semantic(), {"map"}),
    "label": (ClassEmbedder(ClassConfig(classes=2, dim=8)), {"label"}),
    "image": (SpatialIdentity(ImageConfig(field="mask", channels=1)), {"mask"}),
    "composite": (
        Composite({"words": text(), "boxes": layout(), "map": semantic()}),
        {"tokens", "layout_tokens", "map"},
    ),
    "two texts": (Composite({"one": text(), "other": text(3)}), {"text"}),
}


@pytest.mark.parametrize("name", CONDITIONERS)
def test_prepared_fields_give_the_same_condition(name: str) -> None:
    conditioner, names = CONDITIONERS[name]
    prepared = conditioner.prepare(FIELDS)
    assert set(prepared) == names
    if name != "two texts":
        assert all(isinstance(value, Tensor) for value in prepared.values())
    expected, found = conditioner(FIELDS).tensors(), conditioner(prepared).tensors()
    assert expected.keys() == found.keys()
    for field, value in expected.items():
        torch.testing.assert_close(found[field], value, atol=0, rtol=0)
    again = conditioner.prepare({**FIELDS, **prepared})
    for field, value in expected.items():
        torch.testing.assert_close(conditioner(again).tensors()[field], value, atol=0, rtol=0)


def test_two_parts_read_one_map_each_by_its_own_classes() -> None:
    torch.manual_seed(2)
    more = SpatialRescaler(SemanticConfig(classes=4, channels=2, stages=2, void=255))
    both = Composite({"three": semantic(), "four": more})
    found, expected = both(both.prepare(FIELDS)).spatial, both(FIELDS).spatial
    assert found is not None
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_values_are_checked_on_the_host() -> None:
    with pytest.raises(ValueError, match="map id 7"):
        semantic().prepare({"map": torch.full((1, 8, 8), 7)})
    with pytest.raises(ValueError, match="token ids must be"):
        text().prepare({"tokens": torch.full((1, 3), 4000)})


def test_the_unconditional_condition_follows_the_module_s_device_and_type() -> None:
    conditioner = text()
    before = conditioner.null(2, (2, 2))
    conditioner.double()
    after = conditioner.null(2, (2, 2))
    assert after.tokens is not None
    assert after.tokens.dtype == torch.float64
    torch.testing.assert_close(after.tokens.float(), before.tokens)
    assert conditioner.to("meta").null(1, (2, 2)).tokens.device.type == "meta"  # type: ignore[union-attr]
