"""Training on from a trained model: its weights are the first ones, its tokenizer and scale stay."""

from pathlib import Path

import pytest
import torch

import sfumato
from command_line import TEXT, Command, Runs
from runs import Hooks, Images, first_run
from sfumato.autoencoder.model import Autoencoder, VQConfig, same_latents
from sfumato.checkpoint import load_into, load_tensors, newest
from sfumato.conditioning.layout import LayoutConfig, LayoutTransformer
from sfumato.config import apply_overrides, parse, read_source
from sfumato.data.dataset import Example
from sfumato.errors import UserError
from sfumato.training.autoencoder import build_stage1, train_autoencoder
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.codebook import CodeCounts, report_dead_codes
from sfumato.training.data import RunData, open_data
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.encode import cached_latents
from sfumato.training.export import save_autoencoder
from sfumato.training.log import read_lines
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model
from sfumato.training.workers import Workers


class OneColour(Images):
    """The same grey everywhere."""

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        return Example(torch.full_like(example.image, 7), example.fields)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_stage_1_begins_with_the_model_s_autoencoder(runs: Runs) -> None:
    raw = read_source(str(runs.first))
    sampled, begun = (
        build_stage1(parse(apply_overrides(raw, more), AutoencoderRun, "first"), Workers("cpu")).autoencoder
        for more in ([], [f"start={runs.autoencoder}"])
    )
    trained = sfumato.load(runs.autoencoder).autoencoder
    assert same(begun, trained)
    assert not same(sampled, trained)


def second(runs: Runs, tmp: Path, *overrides: str) -> sfumato.LatentDiffusion:
    """Stage 2 as a run begins it, on other captions than the model's."""
    raw = read_source(str(runs.second))
    text = [] if any(each.startswith("conditioner=") for each in overrides) else [TEXT]
    config = parse(apply_overrides(raw, [*text, "data.length=6", "data.size=32", *overrides]), DiffusionRun, "second")
    data = open_data(config.data, config.held_out, tmp, tmp / "cache", print, None, config.conditions)
    first = sfumato.load(runs.autoencoder)
    return build_model(config, first, cached_latents(first, data.training, tmp / "cache", precision="float32"))


def test_stage_2_begins_with_the_model_s_weights_tokenizer_and_scale(runs: Runs, tmp_path: Path) -> None:
    trained, fresh, begun = (
        sfumato.load(runs.text),
        second(runs, tmp_path),
        second(runs, tmp_path, f"start={runs.text}"),
    )
    assert trained.second is not None
    assert begun.second is not None
    assert fresh.second is not None
    assert same(begun.second.denoiser, trained.second.denoiser)
    assert not same(fresh.second.denoiser, trained.second.denoiser)
    assert begun.second.conditioner is not None
    assert trained.second.conditioner is not None
    assert same(begun.second.conditioner, trained.second.conditioner)
    assert torch.equal(begun.scaling.scale, trained.scaling.scale)
    assert not torch.equal(fresh.scaling.scale, trained.scaling.scale)
    sampled = [model.sample_tensor(["a red circle"], steps=2, seeds=[3]) for model in (begun, trained)]
    torch.testing.assert_close(*sampled, atol=0, rtol=0)


MISTAKES = {
    "another width": ("denoiser.channels=64", "the configuration asks for"),
    "another prediction": (
        "objective.prediction=x0",
        "was trained with objective.prediction .*configuration has x0",
    ),
    "no conditioner": (
        "conditioner={kind: none}",
        "was trained with conditioner.kind text, .* has none",
    ),
    "another schedule": ("schedule.end=0.03", "was trained with schedule "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_named(name: str, runs: Runs, tmp_path: Path) -> None:
    override, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        second(runs, tmp_path, f"start={runs.text}", override)


def test_an_autoencoder_is_no_start_of_stage_2(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an autoencoder, but stage 2 needs a whole model"):
        second(runs, tmp_path, f"start={runs.autoencoder}")


def test_the_commands_go_on_from_a_model(runs: Runs, tmp_path: Path, command: Command) -> None:
    still = ("train.optimiser.learning_rate=1e-12", "train.steps=1")
    out = tmp_path / "first"
    done = command("train", "autoencoder", runs.first, "--out", out, "--start", runs.autoencoder, *still)
    assert done.code == 0, done.err
    state = newest(out / "states", print)
    assert state is not None
    assert f"start: {runs.autoencoder}" in (out / "config.yaml").read_text()
    trained = sfumato.load(runs.autoencoder).autoencoder.state_dict()
    moved = {name: value for name, value in load_tensors(state)[0].items() if name.startswith("module.autoencoder.")}
    assert len(moved) == len(trained)
    for name, value in moved.items():
        torch.testing.assert_close(value, trained[name.removeprefix("module.autoencoder.")], atol=1e-9, rtol=0)
    out = tmp_path / "second"
    options = ("--autoencoder", runs.autoencoder, "--out", out, "--start", runs.text)
    done = command("train", "diffusion", runs.second, *options, TEXT, *still)
    assert done.code == 0, done.err
    assert sfumato.load(out).second is not None
    done = command("train", "autoencoder", runs.first, "--out", tmp_path / "no", "--start", tmp_path / "nothing")
    assert done.code == 2
    assert "does not exist" in done.err


# ---- the decoder alone


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_decoder_learns_while_the_latents_stay(bottleneck: str, tmp_path: Path) -> None:
    small = (
        f"model.bottleneck={{kind: {bottleneck}}}",
        "loss.adversarial={weight: 0.5, start: 2, channels: 8, layers: 1}",
    )
    if bottleneck == "vq":
        small = ("model.bottleneck={kind: vq, codes: 8, revive_every: 2}", *small[1:])
    images, hooks = Images(), Hooks()
    config = first_run(*small)
    whole = RunFolder(tmp_path / "whole")
    whole.claim(config)
    data = RunData(images, None)
    state = train_autoencoder(config, images, whole, hooks.preview, lambda *_: None)
    trained = state.modules["ema"]
    assert isinstance(trained, Autoencoder)
    save_autoencoder(trained, config, data, whole, state)
    config = first_run(*small, f"start={whole.path}", "train.part=decoder")
    folder = RunFolder(tmp_path / "decoder")
    folder.claim(config)
    state = train_autoencoder(config, images, folder, hooks.preview, lambda *_: None)
    for name in ("autoencoder", "ema"):
        refined = state.modules[name]
        assert isinstance(refined, Autoencoder)
        assert same_latents(refined, trained)
        assert not torch.equal(refined.decoder.conv_out.weight, trained.decoder.conv_out.weight)
        assert not torch.equal(refined.post_quant_conv.weight, trained.post_quant_conv.weight)
    used = [line["codes_used"] for line in read_lines(folder.path / "log.jsonl") if "codes_used" in line]
    assert bool(used) == (bottleneck == "vq")
    assert all(share > 0 for share in used), "codes are counted though they stay"
    torch.nn.init.zeros_(trained.quant_conv.weight)
    assert not same_latents(trained, refined)


def test_a_dead_codebook_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messages: list[str] = []
    counts = CodeCounts(256)
    for step, one in ((1, 0), (300, 1), (301, 0), (302, 0)):  # young, in use, dead, dead still
        counts.add((torch.arange(256) * one).view(1, 16, 16), Workers())
        report_dead_codes(VQConfig(codes=256), counts, step, 0.5, messages.append)
        counts.used_in_epoch()
    assert len(messages) == 1
    assert "256 latents used 1 of 256 codes" in messages[0]
    config = first_run("model.bottleneck={kind: vq, codes: 8192}", "train.steps=10", "train.log_every=1")
    folder = RunFolder(tmp_path)
    folder.claim(config)
    train_autoencoder(config, OneColour(), folder, Hooks().preview, lambda *_: None)
    assert capsys.readouterr().err.count("nearly dead") == 1


def test_a_decoder_alone_wants_an_autoencoder_to_begin_with() -> None:
    with pytest.raises(UserError, match=r"train.part is decoder, but start is not set"):
        first_run("train.part=decoder")


def test_a_model_gets_the_decoder_that_was_trained_on(runs: Runs, tmp_path: Path, command: Command) -> None:
    given = ("--out", tmp_path / "decoder", "--start", runs.text, "train.part=decoder", "train.steps=1")
    done = command("train", "autoencoder", runs.first, *given)
    assert done.code == 0, done.err
    done = command("replace-decoder", runs.text, tmp_path / "decoder", "--out", tmp_path / "model")
    assert done.code == 0, done.err
    before, after, decoder = (sfumato.load(place) for place in (runs.text, tmp_path / "model", tmp_path / "decoder"))
    assert same(after.autoencoder, decoder.autoencoder)
    assert not same(after.autoencoder, before.autoencoder)
    assert before.second is not None
    assert after.second is not None
    assert same(after.second.denoiser, before.second.denoiser)
    assert torch.equal(after.scaling.scale, before.scaling.scale)
    assert after.config.about["autoencoder"] == decoder.config.about["autoencoder"]
    assert after.config.about["diffusion"] == before.config.about["diffusion"]
    x0 = torch.randn(1, *after.latent_shape)
    expected = decoder.autoencoder.decode(before.scaling.to_raw(x0)).detach()
    torch.testing.assert_close(after.decode(x0), expected, atol=1e-5, rtol=1e-4)


def test_imported_autoencoders_have_the_latents_of_their_configuration(runs: Runs) -> None:
    """An import states the channels of the latent, where a configuration leaves them to the default."""
    plain = sfumato.load(runs.autoencoder).autoencoder
    stated = Autoencoder(plain.config.model_copy(update={"embed_channels": plain.config.latent_channels}))
    stated.load_state_dict(plain.state_dict())
    assert plain.config.embed_channels is None
    assert same_latents(plain, stated)


def test_only_a_decoder_of_the_same_latents_is_given(runs: Runs, tmp_path: Path, command: Command) -> None:
    done = command("train", "autoencoder", runs.first, "--out", tmp_path / "other", "train.steps=1", "train.seed=5")
    assert done.code == 0, done.err
    done = command("replace-decoder", runs.text, tmp_path / "other", "--out", tmp_path / "model")
    assert done.code == 2
    assert "makes other latents than the autoencoder of" in done.err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    done = command("replace-decoder", runs.text, runs.text, "--out", tmp_path / "taken")
    assert done.code == 2
    assert "is in use, it holds 'letter.txt'" in done.err
    assert (tmp_path / "taken" / "letter.txt").exists()
    first = tmp_path / "other" / "model"
    done = command("replace-decoder", runs.text, runs.text, "--out", first)
    assert done.code == 2
    assert (first / "autoencoder.safetensors").exists()


# ---- a layout's grid


def test_a_layout_goes_on_with_a_finer_grid() -> None:
    common = {"classes": 3, "objects": 2, "dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "crop_tokens": False}
    coarse, fine = (LayoutTransformer(LayoutConfig(vocabulary=v, **common)) for v in (10**2 + 1, 19**2 + 5))  # type: ignore[arg-type]
    load_into(fine, fine.weights_of(coarse), "coarse")
    on_both = {"boxes": [torch.tensor([[1 / 9, 2 / 9, 3 / 9, 5 / 9]])], "categories": [torch.tensor([2])]}
    for one, other in zip(coarse(on_both).tensors().values(), fine(on_both).tensors().values(), strict=True):
        torch.testing.assert_close(one, other)
    table, finer = coarse.transformer.token_emb.weight, fine.transformer.token_emb.weight
    between = finer[3 * 19 + 8]  # row 1.5, column 4 of the coarse grid
    torch.testing.assert_close(between, (table[14] + table[24]) / 2)


def test_the_conditioner_of_a_layout_run_begins_on_another_grid(tmp_path: Path) -> None:
    raw = apply_overrides(read_source("zoo:toy/layout"), ["denoiser.channels=32", "data.length=4"])
    first = sfumato.model.pixel_space((64, 64))
    made = []
    for more in (["conditioner.vocabulary=1000"], [f"start={tmp_path / 'model'}", "conditioner.vocabulary=4500"]):
        config = parse(apply_overrides(raw, more), DiffusionRun, "layout")
        data = open_data(config.data, config.held_out, tmp_path, tmp_path, print, lambda _: print, config.conditions)
        latents = cached_latents(first, data.training, tmp_path / "cache", precision="float32")
        made.append(build_model(config, first, latents, latents.fields, data.conditioning_metadata))
        made[0].save(tmp_path / "model")
    coarse, fine = (one.second.conditioner for one in made if one.second is not None)
    assert isinstance(coarse, LayoutTransformer)
    assert isinstance(fine, LayoutTransformer)
    assert fine.config.grid == 67
    assert torch.equal(fine.transformer.token_emb.weight[-1], coarse.transformer.token_emb.weight[-1])
    assert torch.equal(fine.transformer.pos_emb.emb.weight, coarse.transformer.pos_emb.emb.weight)
