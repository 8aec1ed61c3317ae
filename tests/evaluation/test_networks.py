"""Networks whose weights users bring: structure and keys of the published files, hashes, wrong files."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sfumato.errors import UserError
from sfumato.evaluation import inception
from sfumato.evaluation.inception import FIDInception, load_inception
from sfumato.evaluation.pretrained import ClipScore, _moments, load_dinov2
from sfumato.evaluation.table import load_network


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published one, with other numbers and without counters of batches."""
    g = torch.Generator().manual_seed(0)
    state = {key: value for key, value in FIDInception().state_dict().items() if "num_batches" not in key}
    for key, value in state.items():
        if key.endswith("weight") and value.dim() == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=g)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def test_the_inception_has_the_published_structure() -> None:
    with torch.device("meta"):
        network = FIDInception()
    # the usual 27,161,264 of an Inception v3, without its auxiliary head, with 1008 classes for 1000
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 3_326_696 + 8 * 2049
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Conv2d_4a_3x3.bn.running_var"] == (192,)
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6a.branch3x3dbl_3.conv.weight"] == (96, 96, 3, 3)
    assert shapes["Mixed_6c.branch7x7dbl_5.conv.weight"] == (192, 160, 1, 7)
    assert shapes["Mixed_7a.branch7x7x3_4.conv.weight"] == (192, 192, 3, 3)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["fc.weight"] == (1008, 2048)
    assert len([key for key in shapes if key.endswith("conv.weight")]) == 94


def test_the_inception_pools_2048_features_and_a_map_of_2023(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "SHA256_START", "")
    network = load_inception(weights)
    assert (network.name, network.dim, network.size, network.filter) == ("inception", 2048, (299, 299), "tensorflow")
    pixels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = network(pixels)
    assert found.spatial is not None
    assert found.logits is not None
    assert (found.pooled.shape, found.spatial.shape, found.logits.shape) == ((1, 2048), (1, 7 * 17 * 17), (1, 1008))
    assert found.pooled.min() >= 0
    assert found.pooled.std() > 0
    state = torch.load(weights, weights_only=True)
    torch.testing.assert_close(found.logits, F.linear(found.pooled, state["fc.weight"]), rtol=1e-4, atol=1e-4)


def test_averages_leave_the_padding_out() -> None:
    assert inception.average(torch.ones(1, 1, 4, 4)).unique().tolist() == [1.0]


def test_another_file_than_the_published_one_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not pt_inception-2015-12-05-6726825d\.pth: its sha256 is"):
        load_inception(weights)
    with pytest.raises(UserError, match="do not exist: download https"):
        load_inception(tmp_path / "absent.pth")
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"must have the shape \[32, 3, 3, 3\], it has of shape \[8, 3, 3, 3\]"):
        load_inception(tmp_path / "other.pth", inception.file_sha256(tmp_path / "other.pth"))


def test_names_lead_to_networks() -> None:
    with pytest.raises(UserError, match="'resnet' is not one of efficientnet-lite0, inception, dinov2, clip"):
        load_network("resnet")
    with pytest.raises(UserError, match="--weights inception=FILE"):
        load_network("inception")


# ---- transformers


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**small, image_size=28, patch_size=14, mlp_ratio=2))
    text = {**small, "intermediate_size": 32, "vocab_size": 99, "max_position_embeddings": 8}
    vision = {**small, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    for name, model in (("dinov2-tiny", dino), ("clip-tiny", clip)):
        model.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(
            '{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}'
        )
    return {"dinov2": root / "dinov2-tiny", "clip": root / "clip-tiny"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "image_mean and image_std"),
        ('{"image_mean": [0.4, 0.5], "image_std": [1, 1, 1]}', "three numbers each"),
        ('{"image_mean": [0.4, 0.5, 0.6], "image_std": [0, 1, 1]}', "three numbers each"),
        ('{"image_mean": [0.4, 0.5, "a"], "image_std": [1, 1, 1]}', "three numbers each"),
        ('{"image_mean": [0.4, 0.5, 1e999], "image_std": [1, 1, 1]}', "too large"),
        ("[" * 100_000, "nested deeper"),
        (None, "not a regular file"),
    ],
)
def test_what_the_preprocessing_must_say(text: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    os.mkfifo(file) if text is None else file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        _moments(tmp_path)


def test_dinov2_gives_the_class_token(folders: dict[str, Path]) -> None:
    import transformers

    network = load_dinov2(str(folders["dinov2"]))
    assert (network.name, network.dim, len(network.sha256)) == ("dinov2:dinov2-tiny", 16, 64)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = transformers.Dinov2Model.from_pretrained(folders["dinov2"])
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.no_grad():
        expected = model(pixel_values=((x + 1) / 2 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(network(x).pooled, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="have the sha256"):
        load_dinov2(str(folders["dinov2"]), sha256="00")
    with pytest.raises(UserError, match="a model of the kind clip, not dinov2"):
        load_dinov2(str(folders["clip"]))


def test_clip_scores_by_the_cosine(folders: dict[str, Path]) -> None:
    network = load_network("clip", str(folders["clip"]))
    assert (network.name, network.dim, network.size) == ("clip:clip-tiny", 12, (32, 32))
    found = network(torch.rand(3, 3, 40, 24, generator=torch.Generator().manual_seed(0)))

    class Words(dict):  # type: ignore[type-arg]
        def to(self, device: torch.device) -> "Words":
            return self

    def tokenizer(texts: list[str], **options: object) -> Words:
        assert options["max_length"] == 8
        ids = torch.tensor([[ord(c) % 90 + 1 for c in (text + "    ")[:4]] for text in texts])
        return Words(input_ids=ids, attention_mask=torch.ones_like(ids))

    score = ClipScore(network, tokenizer)
    texts = ["red", "blue", "green"]
    values = score(found.pooled, texts)
    with torch.no_grad():
        words = network.network.model.get_text_features(**tokenizer(texts, max_length=8))  # type: ignore
    words = words if isinstance(words, torch.Tensor) else words.pooler_output
    cosine = (F.normalize(found.pooled) * F.normalize(words)).sum(dim=1)
    torch.testing.assert_close(values.float(), 100 * cosine.clamp_min(0), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="3 images and 1 texts"):
        score(found.pooled, ["red"])
