"""Class labels as tokens and as vectors."""

import pytest
import torch

from parity import full_size, golden, needs_parity, scaled_weights
from sfumato.conditioning.class_label import ClassConfig, ClassEmbedder
from sfumato.conditioning.condition import select, stack


def test_token_and_vector_hold_the_label_s_row() -> None:
    token = ClassEmbedder(ClassConfig(classes=5, dim=7))
    vector = ClassEmbedder(ClassConfig(classes=5, dim=7, output="vector"))
    label = torch.tensor([4, 0, 4])
    assert torch.equal(token({"label": label}).tokens, token.embedding.weight[label][:, None])
    assert torch.equal(vector({"label": [4, 0, 4]}).vector, vector.embedding.weight[label])
    assert (token.spec.token_dim, token.spec.vector_dim) == (7, None)
    assert (vector.spec.token_dim, vector.spec.vector_dim) == (None, 7)


def test_null_is_one_more_learned_row() -> None:
    embedder = ClassEmbedder(ClassConfig(classes=5, dim=7))
    condition = embedder({"label": torch.tensor([1, 2, 3])})
    null = embedder.null(3, (4, 6))
    assert torch.equal(null.tokens, embedder.embedding.weight[5].expand(3, 1, 7))
    mixed = select(torch.tensor([True, False, True]), condition, null)
    mixed.tokens.sum().backward()
    assert embedder.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1, 3, 5]
    assert stack([condition, null]).tokens.shape == (6, 1, 7)


def test_mistakes_are_named() -> None:
    embedder = ClassEmbedder(ClassConfig(classes=5, dim=7, null="none"))
    with pytest.raises(ValueError, match=r"label 5 is out of range, labels are 0 \.\. 4"):
        embedder({"label": torch.tensor([0, 5])})
    with pytest.raises(ValueError, match="label -1"):
        embedder({"label": torch.tensor([-1])})
    with pytest.raises(ValueError, match="null: learned"):
        embedder.null(2, (4, 4))


@needs_parity
def test_recorded_class_tokens() -> None:
    weights, _ = scaled_weights("cin256")
    tensors = golden("cin256")
    table = weights["cond_stage_model.embedding.weight"]
    embedder = ClassEmbedder(ClassConfig(classes=len(table), dim=table.shape[1], null="none"))
    embedder.load_state_dict({"embedding.weight": table})
    assert torch.equal(embedder({"label": tensors["in/class_label"]}).tokens, tensors["cond/c"])
    assert full_size("cin256")["state_dict"]["cond_stage_model.embedding.weight"] == [1000, 512]
