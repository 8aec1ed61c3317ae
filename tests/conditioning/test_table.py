"""Choosing, building and merging conditioners."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from sfumato.conditioning.condition import Condition, merge, select, stack
from sfumato.conditioning.table import ConditionerConfig, build_conditioner, stored_tokenizer, text_config
from sfumato.conditioning.tokenizer import fit_tokenizer

ADAPTER: TypeAdapter[ConditionerConfig] = TypeAdapter(ConditionerConfig)
TEXT = {"kind": "text", "dim": 16, "depth": 1, "heads": 2, "head_dim": 4, "max_tokens": 6}


def test_none_is_no_conditioner() -> None:
    assert build_conditioner(ADAPTER.validate_python({"kind": "none"})) is None
    assert stored_tokenizer(None) is None


def test_hybrid_of_all_kinds() -> None:
    parts = {
        "caption": TEXT,
        "class": {"kind": "class", "classes": 3, "dim": 16},
        "style": {"kind": "class", "classes": 3, "dim": 5, "output": "vector"},
        "map": {"kind": "semantic", "classes": 4, "channels": 2, "stages": 1},
        "low": {"kind": "image", "field": "low", "channels": 3},
    }
    config = ADAPTER.validate_python({"kind": "composite", "parts": parts})
    assert text_config(config).dim == 16
    tokenizer = fit_tokenizer(["a red square"], 300)
    model = build_conditioner(config, tokenizer)
    assert model.spec.token_dim == 16
    assert model.spec.vector_dim == 5
    assert model.spec.spatial_channels == 5
    assert model.reads == ("text", "label", "map", "low")
    assert stored_tokenizer(model) == tokenizer
    fields = {
        "text": ["a red square", "blue"],
        "label": torch.tensor([0, 2]),
        "map": torch.zeros(2, 8, 12, dtype=torch.long),
        "low": torch.ones(2, 3, 4, 6),
    }
    condition = model(fields)
    shapes = {name: tuple(value.shape) for name, value in condition.tensors().items()}
    assert shapes == {"vector": (2, 5), "tokens": (2, 7, 16), "mask": (2, 7), "spatial": (2, 5, 4, 6)}
    assert condition.mask[:, 6].all()  # the class token
    null = model.null(2, (4, 6))
    assert {name: tuple(value.shape) for name, value in null.tensors().items()} == shapes
    torch.testing.assert_close(condition.spatial[:, 2:], fields["low"])
    assert {key.split(".")[1] for key in model.state_dict()} == {"caption", "class", "style", "map"}


def test_mistakes_are_named() -> None:
    with pytest.raises(ValidationError, match="one tokenizer"):
        ADAPTER.validate_python({"kind": "composite", "parts": {"a": TEXT, "b": TEXT}})
    widths = {"a": {"kind": "class", "classes": 3, "dim": 5}, "b": {"kind": "class", "classes": 3, "dim": 6}}
    with pytest.raises(ValueError, match="one width, not a 5, b 6"):
        build_conditioner(ADAPTER.validate_python({"kind": "composite", "parts": widths}))
    with pytest.raises(ValidationError, match="no_such"):
        ADAPTER.validate_python({"kind": "no_such"})


def test_select_merge_and_stack() -> None:
    B, M, D = 3, 5, 7
    mask = torch.tensor([[True] * 2 + [False] * 3] * B)
    a = Condition(tokens=torch.ones(B, M, D), mask=mask, spatial=torch.ones(B, 2, 4, 6))
    b = Condition(tokens=torch.zeros(B, M, D), mask=~mask, spatial=torch.zeros(B, 2, 4, 6))
    keep = torch.tensor([True, False, True])
    picked = select(keep, a, b)
    assert picked.tokens[:, 0, 0].tolist() == [1, 0, 1]
    assert picked.spatial[:, 1, 2, 3].tolist() == [1, 0, 1]
    assert picked.mask[:, 0].tolist() == [True, False, True]
    merged = merge([a, Condition(tokens=torch.zeros(B, 1, D))])
    assert merged.mask.tolist() == [[True] * 2 + [False] * 3 + [True]] * B
    assert stack([a, b]).spatial.shape == (2 * B, 2, 4, 6)
    with pytest.raises(ValueError, match="field mask is in only one"):
        select(keep, a, Condition(tokens=b.tokens, spatial=b.spatial))
    with pytest.raises(ValueError, match="different fields"):
        stack([a, Condition(tokens=b.tokens)])
