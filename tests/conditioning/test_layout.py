"""Layout tokens and their transformer."""

import itertools

import pytest
import torch

from parity import golden, needs_parity
from sfumato.conditioning.layout import LayoutConfig, LayoutTransformer, layout_tokens, mirror

BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 0.5, 0.5]])


def small(**changes: object) -> LayoutConfig:
    options = {"classes": 6, "objects": 4, "vocabulary": 110, "dim": 16, "depth": 1, "heads": 2, "head_dim": 4}
    return LayoutConfig.model_validate({**options, **changes})


def test_tokens_by_hand() -> None:
    config = small()  # a grid of 10 × 10, padding 109
    tokens = layout_tokens(config, BOXES, torch.tensor([3, 5]), torch.tensor([0, 2]))
    # 0.5 · 9 = 4.5 and 0.25 · 9 = 2.25, 0.75 · 9 = 6.75; halves round to even
    assert tokens.tolist() == [3, 0, 99, 17, 24, 79] + [109] * 6 + [0, 99]
    cropped = layout_tokens(small(crop_tokens=False), BOXES, torch.tensor([3, 5]), crop=(0.5, 0.0, 0.5, 0.5))
    assert cropped.tolist() == [3, 0, 99, 5, 40, 99] + [109] * 6


def test_objects_outside_the_crop_and_beyond_the_limit_are_left_out() -> None:
    tokens = layout_tokens(small(), BOXES, torch.tensor([3, 5]), crop=(0.0, 0.0, 0.4, 1.0))
    assert tokens[:6].tolist() == [3, 0, 99, 109, 109, 109]
    many = layout_tokens(small(objects=2), BOXES[[0, 0, 1]], torch.tensor([1, 2, 3]))
    assert many[:6:3].tolist() == [1, 2]
    assert len(many) == 8


@needs_parity
def test_recorded_layout_tokens() -> None:
    tensors = golden("misc")
    order = tensors["layout/order"]
    boxes = tensors["layout/boxes"][order]
    categories = torch.arange(5)[order] * 7
    crop = torch.tensor([0.05, 0.1, 0.8, 0.8], dtype=torch.float64)
    modifiers = {0: torch.zeros(5, dtype=torch.long), 1: torch.tensor([1, 2, 5, 0, 1])[order]}
    for box, crops, flip, extra in itertools.product(("bbox", "center"), (0, 1), (0, 1), (0, 1)):
        config = LayoutConfig(classes=317, box="corners" if box == "bbox" else "center", crop_tokens=bool(crops))
        seen = (mirror(boxes), mirror(crop)) if flip else (boxes, crop)
        tokens = layout_tokens(config, seen[0], categories, modifiers[extra], seen[1].tolist())
        expected = tensors[f"layout/{box}/crop{crops}/flip{flip}/extra{extra}"]
        assert torch.equal(tokens, expected), (box, crops, flip, extra)


def test_transformer_masks_missing_objects() -> None:
    model = LayoutTransformer(small()).eval()
    fields = {
        "boxes": [BOXES, BOXES[:1], BOXES[:0]],
        "categories": [torch.tensor([3, 5]), torch.tensor([1]), torch.tensor([])],
    }
    fields["categories"][2] = fields["categories"][2].long()
    condition = model(fields)
    assert condition.tokens.shape == (3, 14, 16)
    assert condition.mask.sum(1).tolist() == [8, 5, 3]  # the first position always counts
    with torch.no_grad():
        model.transformer.token_emb.weight[109] += 5
    changed = model(fields).tokens
    torch.testing.assert_close(changed[0, :6], condition.tokens[0, :6])
    null = model.null(2, (4, 6))
    torch.testing.assert_close(null.tokens[1], changed[2])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"category 6 is out of range, categories are 0 \.\. 5"):
        layout_tokens(small(), BOXES, torch.tensor([6, 0]))
    with pytest.raises(ValueError, match="2 boxes, 1 categories"):
        layout_tokens(small(), BOXES, torch.tensor([0]))
    with pytest.raises(ValueError, match="100 is a square"):
        small(vocabulary=100)
