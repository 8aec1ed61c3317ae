"""Semantic maps and images as spatial conditions."""

import pytest
import torch
import torch.nn.functional as F

from parity import full_size, golden, needs_parity, relative_error, scaled_weights
from sfumato.conditioning.condition import select, stack
from sfumato.conditioning.spatial import ImageConfig, SemanticConfig, SpatialIdentity, SpatialRescaler


def rescaler(**changes: object) -> SpatialRescaler:
    return SpatialRescaler(SemanticConfig.model_validate({"classes": 5, "channels": 4, **changes}))


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0))


def test_ids_equal_halvings_of_the_one_hot_map() -> None:
    model = rescaler()
    given = ids(2, 24, 36)
    one_hot = F.one_hot(given, 5).permute(0, 3, 1, 2).float()
    expected = model.channel_mapper(F.avg_pool2d(F.avg_pool2d(one_hot, 2), 2))  # bilinear halving = mean of 2×2
    for fields in ({"map": given}, {"map": given[:, None].to(torch.uint8)}, {"map": one_hot}):
        spatial = model(fields).spatial
        assert spatial.shape == (2, 4, 6, 9)
        torch.testing.assert_close(spatial, expected)


def test_void_is_no_class() -> None:
    model = rescaler(void=255, stages=0)
    given = ids(1, 4, 6)
    given[0, 1, 2] = 255
    spatial = model({"map": given}).spatial
    assert spatial[0, :, 1, 2].abs().sum() == 0
    assert torch.equal(spatial[0, :, 0, 0], model.channel_mapper.weight[:, given[0, 0, 0], 0, 0])


def test_null_is_zeros_of_the_latent_s_size() -> None:
    model = rescaler()
    condition = model({"map": ids(3, 16, 24)})
    null = model.null(3, (4, 6))
    assert null.spatial.abs().sum() == 0
    mixed = select(torch.tensor([True, False, True]), condition, null)
    assert mixed.spatial[1].abs().sum() == 0
    assert stack([condition, null]).spatial.shape == (6, 4, 4, 6)
    mixed.spatial.sum().backward()
    assert model.channel_mapper.weight.grad.abs().sum() > 0


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"map id 7 is out of range, ids are 0 \.\. 4"):
        rescaler()({"map": torch.full((1, 8, 8), 7)})
    with pytest.raises(ValueError, match="map id 5"):
        rescaler()({"map": torch.full((1, 8, 8), 5)})
    with pytest.raises(ValueError, match=r"\(B, 5, H, W\)"):
        rescaler()({"map": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(ValueError, match="8x10 must be a multiple of 4"):
        rescaler()({"map": ids(1, 8, 10)})
    with pytest.raises(ValueError, match="masked_image must have the shape"):
        SpatialIdentity(ImageConfig(field="masked_image"))({"masked_image": torch.zeros(1, 4, 8, 8)})


def test_image_goes_through() -> None:
    model = SpatialIdentity(ImageConfig(field="masked_image", channels=2))
    image = torch.randn(3, 2, 4, 6)
    assert model.reads == ("masked_image",)
    assert torch.equal(model({"masked_image": image}).spatial, image)
    assert torch.equal(model.null(3, (4, 6)).spatial, torch.zeros(3, 2, 4, 6))
    assert not model.state_dict()


@needs_parity
def test_recorded_semantic_condition() -> None:
    weights, _ = scaled_weights("semantic_synthesis256")
    tensors = golden("semantic_synthesis256")
    model = SpatialRescaler(SemanticConfig())
    key = "cond_stage_model.channel_mapper.weight"
    assert full_size("semantic_synthesis256")["state_dict"][key] == list(model.channel_mapper.weight.shape)
    model.load_state_dict({"channel_mapper.weight": weights[key]})
    with torch.no_grad():
        spatial = model({"map": tensors["in/segmentation_labels"]}).spatial
    assert relative_error(spatial, tensors["cond/c"]) < 1e-5
