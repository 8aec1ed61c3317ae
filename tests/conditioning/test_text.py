"""The text transformer and its tokenizer."""

import copy
import subprocess
import sys

import pytest
import torch

from parity import full_size, golden, needs_parity, relative_error, scaled_weights
from sfumato.conditioning import tokenizer
from sfumato.conditioning.condition import select, stack
from sfumato.conditioning.encoder import sinusoids
from sfumato.conditioning.text import TextConfig, TextTransformer
from sfumato.conditioning.tokenizer import Texts, fit_tokenizer
from sfumato.errors import UserError

CAPTIONS = ["a red square above a blue circle", "a small green triangle", "two blue squares", "a red triangle"] * 3
PREFIX = "cond_stage_model."


def small(**changes: object) -> TextTransformer:
    options = {"dim": 24, "depth": 2, "heads": 3, "head_dim": 5, "max_tokens": 11, **changes}
    return TextTransformer(TextConfig.model_validate(options), fit_tokenizer(CAPTIONS, 512)).eval()


def test_tokenizer_splits_unseen_words_and_loses_nothing() -> None:
    texts = Texts(fit_tokenizer(CAPTIONS, 512), 40)
    for text in ("a red square", "an ultramarine dodecahedron", "пёс 狗 🐕"):
        ids = texts([text])[0]
        assert texts.tokenizer.decode(ids[ids != 0].tolist()).strip() == text
    seen, unseen = texts(["triangle", "dodecahedron"])
    assert (seen != 0).sum() == 3  # [CLS] word [SEP]
    assert (unseen != 0).sum() > 4
    assert torch.equal(texts(["A Red  SQUARE "[:5]]), texts(["a red"]))


def test_tokenizer_is_the_same_in_any_order_and_process() -> None:
    first = fit_tokenizer(CAPTIONS, 400)
    assert first == fit_tokenizer(reversed(CAPTIONS), 400)
    code = f"from sfumato.conditioning.tokenizer import fit_tokenizer; print(fit_tokenizer({CAPTIONS!r}, 400), end='')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == first


def test_long_texts_are_cut_with_their_end_token() -> None:
    texts = Texts(fit_tokenizer(CAPTIONS, 512), 6)
    ids = texts(["a red square above a blue circle", "a"])
    assert ids.shape == (2, 6)
    end = texts.tokenizer.token_to_id("[SEP]")
    assert ids[0, -1] == end
    assert ids[1].tolist()[2:] == [end, 0, 0, 0]


def test_kept_tokens_are_those_of_a_fresh_text_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer, "KEPT_CHARACTERS", 500)
    texts, fresh = (Texts(fit_tokenizer(CAPTIONS, 512), 9) for _ in range(2))
    long = [f"{number} a red square" + " and a circle" * 5 for number in range(20)]
    for text in long:
        fresh._known.clear()
        assert torch.equal(texts([long[0], text, text]), fresh([long[0], text, text]))
        assert sum(map(len, texts._known)) <= 500
    assert texts([]).shape == (0, 9)


def test_padding_changes_nothing() -> None:
    model = small()
    ids = model.tokenise(["a red square", "a small green triangle"])
    condition = model({"tokens": ids})
    assert condition.mask is not None
    assert torch.equal(condition.mask, ids != 0)
    with torch.no_grad():  # what stands at padded positions must not reach the real ones
        model.transformer.token_emb.weight[0] += 10
        changed = model({"tokens": ids})
    real = condition.mask
    torch.testing.assert_close(changed.tokens[real], condition.tokens[real])
    assert not torch.allclose(changed.tokens[~real], condition.tokens[~real])
    attended = small(mask_padding=False)
    assert attended({"tokens": ids}).mask is None


def test_pooled_adds_the_mean_of_the_real_tokens() -> None:
    model = small(pooled=True)
    assert model.spec.vector_dim == 24
    condition = model({"text": ["a red square", "two"]})
    assert condition.mask is not None
    for row in range(2):
        mean = condition.tokens[row][condition.mask[row]].mean(0)
        torch.testing.assert_close(condition.vector[row], mean)
    assert model.null(3, (4, 6)).vector.shape == (3, 24)
    assert small().spec.vector_dim is None
    assert small()({"text": ["two"]}).vector is None


def test_null_is_the_empty_text_and_learns() -> None:
    model = small()
    condition = model({"text": ["a red square", "two", "a"]})
    null = model.null(3, (4, 6))
    torch.testing.assert_close(null.tokens, model({"text": ["", "", ""]}).tokens)
    assert null.mask.sum(1).tolist() == [2, 2, 2]
    mixed = select(torch.tensor([False, True, False]), condition, null)
    assert torch.equal(mixed.mask[0], null.mask[0])
    assert stack([condition, null]).tokens.shape == (6, 11, 24)
    mixed.tokens[0].sum().backward()
    assert model.transformer.token_emb.weight.grad[model.texts.tokenizer.token_to_id("[CLS]")].abs().sum() > 0


def test_a_stored_tokenizer_rebuilds_the_same_model() -> None:
    model = small()
    again = TextTransformer(model.config, model.tokenizer_json)
    again.load_state_dict(model.state_dict())
    fields = {"text": ["a blue triangle", "something else"]}
    assert torch.equal(again(fields).tokens, model(fields).tokens)
    assert torch.equal(copy.deepcopy(model)(fields).tokens, model(fields).tokens)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="fit one on the captions"):
        TextTransformer(TextConfig())
    with pytest.raises(UserError, match="no captions"):
        fit_tokenizer(["", " "])
    with pytest.raises(UserError, match="set vocabulary: "):
        TextTransformer(TextConfig(tokenizer="some.json", vocabulary=100), fit_tokenizer(CAPTIONS, 300))
    with pytest.raises(UserError, match="tokenizer: none"):
        TextTransformer(TextConfig(tokenizer="none", depth=1, dim=8))({"text": ["a"]})
    with pytest.raises(ValueError, match=r"token ids must be 0 \.\. "):
        small()({"tokens": torch.full((1, 4), 10**6)})


def _originals(facts: dict, **changes: object) -> TextConfig:
    p = facts["model"]["params"]["cond_stage_config"]["params"]
    options = {"dim": p["n_embed"], "depth": p["n_layer"], "vocabulary": 30522, "tokenizer": "none", **changes}
    return TextConfig.model_validate({"mask_padding": False, "logits": True, **options})


@needs_parity
def test_recorded_text_tokens() -> None:
    weights, config = scaled_weights("text2img256")
    tensors = golden("text2img256")
    model = TextTransformer(_originals(config)).eval()
    model.load_state_dict({k[len(PREFIX) :]: v for k, v in weights.items() if k.startswith(PREFIX)})
    with torch.no_grad():
        assert relative_error(model({"tokens": tensors["in/tokens"]}).tokens, tensors["cond/c"]) < 1e-5
        assert relative_error(model({"tokens": tensors["in/uc_tokens"]}).tokens, tensors["cond/uc"]) < 1e-5


@needs_parity
def test_keys_of_the_published_text_model() -> None:
    facts = full_size("text2img256")
    with torch.device("meta"):
        model = TextTransformer(_originals({"model": facts["hparams"]}))
    expected = {k[len(PREFIX) :]: tuple(s) for k, s in facts["state_dict"].items() if k.startswith(PREFIX)}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == expected


def test_sinusoids_have_variance_one_and_depend_on_the_distance_alone() -> None:
    table = sinusoids(20, 64)
    products = table @ table.T / 64
    for distance in (0, 1, 7):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-4)
    assert products[0, 0] == pytest.approx(1, abs=1e-4)
    assert products[0, 1:].max() < 0.95
    assert sinusoids(5, 7).shape == (5, 7)


def test_the_tables_start_as_configured_under_the_same_keys() -> None:
    ours, originals = small(dim=64), small(dim=64, initial="original")
    for model, tokens, positions in ((ours, 1.0, 1.0), (originals, 0.02, 0.02)):
        transformer = model.transformer
        assert float(transformer.token_emb.weight.detach().std()) == pytest.approx(tokens, rel=0.1)
        assert float(transformer.pos_emb.emb.weight.detach().square().mean().sqrt()) == pytest.approx(
            positions, rel=0.1
        )
        assert transformer.pos_emb.emb.weight.requires_grad
    torch.testing.assert_close(ours.transformer.pos_emb.emb.weight, sinusoids(11, 64))
    ours.load_state_dict(originals.state_dict())
    assert torch.equal(ours.transformer.pos_emb.emb.weight, originals.transformer.pos_emb.emb.weight)


def test_word_order_reaches_the_tokens_before_training() -> None:
    """Captions that differ only in word order stay distinguishable: the tokens of both differ clearly."""
    texts = ["a red square above a blue circle", "a blue circle above a red square"]
    torch.manual_seed(0)
    model = TextTransformer(
        TextConfig(dim=64, depth=2, heads=2, head_dim=32, max_tokens=16), fit_tokenizer(CAPTIONS, 512)
    )
    first, second = model({"text": texts}).tokens
    assert torch.cosine_similarity(first[1:8], second[1:8]).min() < 0.8
