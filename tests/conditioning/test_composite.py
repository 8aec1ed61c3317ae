"""Parts of a composite conditioner: dropped one by one, given one by one."""

import pytest
import torch
from torch import Tensor

from sfumato.conditioning.class_label import ClassConfig, ClassEmbedder
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Condition
from sfumato.conditioning.spatial import ImageConfig, SpatialIdentity

B, SIZE = 3, (4, 5)


def hybrid() -> tuple[Composite, dict[str, Tensor]]:
    torch.manual_seed(0)
    parts = {
        "small": SpatialIdentity(ImageConfig(field="low_resolution", channels=2)),
        "mask": SpatialIdentity(ImageConfig(field="mask", channels=1)),
        "label": ClassEmbedder(ClassConfig(classes=4, dim=6)),
    }
    fields = {
        "low_resolution": torch.rand(B, 2, *SIZE) + 1,
        "mask": torch.ones(B, 1, *SIZE),
        "label": torch.tensor([1, 3, 0]),
    }
    return Composite(parts), fields


def same(one: Condition, other: Condition) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_parts_are_dropped_by_themselves() -> None:
    conditioner, fields = hybrid()
    keep = {
        "small": torch.tensor([True, False, True]),
        "mask": torch.tensor([True, True, False]),
        "label": torch.tensor([False, True, True]),
    }
    full, null, found = conditioner(fields), conditioner.null(B, SIZE), conditioner.partly(fields, keep, SIZE)
    assert found.spatial is not None
    assert found.tokens is not None
    for i in range(B):
        for rows, name in ((slice(0, 2), "small"), (slice(2, 3), "mask")):
            expected = full if keep[name][i] else null
            assert torch.equal(found.spatial[i, rows], expected.spatial[i, rows])  # type: ignore[index]
        expected = full if keep["label"][i] else null
        assert torch.equal(found.tokens[i], expected.tokens[i])  # type: ignore[index]
    kept = {name: torch.ones(B, dtype=torch.bool) for name in keep}
    assert same(conditioner.partly(fields, kept, SIZE), full)


def test_parts_are_given_one_by_one() -> None:
    conditioner, fields = hybrid()
    none, label, both = conditioner.one_by_one(fields, B, SIZE, ["label", "small"])
    kept = {name: torch.tensor([name == "mask"] * B) for name in ("small", "mask", "label")}
    assert same(none, conditioner.partly(fields, kept, SIZE))
    assert same(label, conditioner.partly(fields, kept | {"label": torch.ones(B, dtype=torch.bool)}, SIZE))
    assert same(both, conditioner(fields))
    assert same(conditioner.one_by_one(fields, B, SIZE, [])[0], conditioner(fields))
    with pytest.raises(ValueError, match=r"'text' is not one of the conditioner's parts small, mask, label"):
        conditioner.one_by_one(fields, B, SIZE, ["text"])
