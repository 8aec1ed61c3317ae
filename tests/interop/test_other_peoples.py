"""Checkpoints as other people pack them: half precision, prefixes, nests, averages alone, variants, links, code."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_keys
import pytest
import torch
from published_configs import shrunken
from safetensors.torch import load_file, save_file
from test_damaged import small
from torch import Tensor

import sfumato
from forks import Forks
from sfumato.conditioning.pretrained import PretrainedTextConfig, load_pretrained_text
from sfumato.conditioning.sources import fetching, model_folder
from sfumato.diffusion.schedule import (
    CosineConfig,
    LinearConfig,
    ScaledLinearConfig,
    ScheduleConfig,
    betas_of,
    zero_terminal,
)
from sfumato.errors import UserError
from sfumato.interop.buffers import schedule_buffers
from sfumato.interop.convert import describe, import_model
from sfumato.interop.placement import ema_key
from sfumato.interop.prefixes import dotted_name
from sfumato.interop.stored_schedule import BUFFERS, infer_stored, match
from sfumato.locks import exclusive

# -- C1: half precision -----------------------------------------------------------------------------------------------

SCHEDULES: tuple[Any, ...] = (
    ScaledLinearConfig(start=0.00085, end=0.012),
    ScaledLinearConfig(start=0.0015, end=0.0195),
    ScaledLinearConfig(start=0.0015, end=0.0205),
    ScaledLinearConfig(start=0.00085, end=0.012, zero_terminal_snr=True),
    LinearConfig(),
    CosineConfig(),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key", BUFFERS)
@pytest.mark.parametrize("config", SCHEDULES, ids=lambda c: f"{c.kind}-{getattr(c, 'end', '')}-{c.zero_terminal_snr}")
def test_a_stored_schedule_is_known_in_any_precision(config: ScheduleConfig, key: str, dtype: torch.dtype) -> None:
    betas = betas_of(config)
    betas = zero_terminal(betas) if getattr(config, "zero_terminal_snr", False) else betas
    values = schedule_buffers(betas)[key].to(dtype)
    for stored in (values, values.float()):  # a merging tool may have widened the file again
        found = match(key, stored.double())
        assert {"zero_terminal_snr": False, **found} == config.model_dump()


def test_buffers_that_overflowed_are_passed_over_and_unknown_ones_refused() -> None:
    buffers = {key: value.half() for key, value in schedule_buffers(betas_of(SCHEDULES[0])).items()}
    buffers["betas"][3] = torch.inf
    messages: list[str] = []
    found = infer_stored({key: tuple(v.shape) for key, v in buffers.items()}, lambda key: buffers[key], messages.append)
    assert found == {"steps": 1000, "kind": "scaled-linear", "start": 0.00085, "end": 0.012}
    assert "'betas' contains values that are not finite" in messages[0]
    assert "read from 'alphas_cumprod' in float16" in messages[1]
    with pytest.raises(UserError, match="stored in bfloat16, follow no known schedule"):
        match("betas", torch.linspace(1e-4, 0.02, 1000).flip(0).cumsum(0).div(20).bfloat16().double())


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return original_keys.state_dict(small())


def imported(folder: Path, state: Any, *, given: bool = True, weights: Any = None) -> Any:
    """A checkpoint of these contents (nested as they are), imported with the configuration of `small`."""
    torch.save(state, folder / "x.ckpt")
    (folder / "given.yaml").write_text(json.dumps(small()))
    return import_model(
        folder / "x.ckpt", folder / "out", folder / "given.yaml" if given else None, weights, overwrite=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_file_opens_with_its_buffers(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    betas = betas_of(ScaledLinearConfig(start=0.0015, end=0.0195))
    half = {
        key: value.to(dtype) for key, value in {**state, **schedule_buffers(betas)}.items() if value.is_floating_point()
    }
    done = imported(tmp_path, {"state_dict": half})
    schedule = done.config.diffusion.schedule
    assert (schedule.kind, schedule.start, schedule.end) == ("scaled-linear", 0.0015, 0.0195)


# -- C3: prefixes, nests, averages ------------------------------------------------------------------------------------


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def inner(state: dict[str, Tensor]) -> Any:
    return {
        key.replace("model.diffusion_model.", "model._orig_mod.diffusion_model.module."): v for key, v in state.items()
    }


def averages(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's weights as the original stores averages, alone."""
    network = "model.diffusion_model."
    renamed = {ema_key(k.removeprefix("model.")) if k.startswith(network) else k: v for k, v in state.items()}
    return {**renamed, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


PACKED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "module": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "the other way": prefixed("_orig_mod.module."),
    "model": prefixed("model."),
    "inside": inner,
    "averages alone": averages,
    "averages alone, wrapped": lambda state: prefixed("module.")(averages(state)),
    "ema prefix alone": prefixed("ema."),
    "model_ema prefix alone": prefixed("model_ema."),
    "ema.shadow prefix alone": prefixed("ema.shadow."),
    "nested shadow alone": lambda state: {"ema": {"decay": 0.999, "shadow": state}},
    "nested ema alone": lambda state: {"ema": state},
    "nested model_ema alone": lambda state: {"model_ema": prefixed("module.")(state), "epoch": 3},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "nested under a name of its own": lambda state: {"generator": state, "step": 3, "scheduler": {"last": 1}},
    "nested model": lambda state: {"model": prefixed("_orig_mod.")(state), "optimizer": {"state": {}}},
}


@pytest.mark.parametrize("name", PACKED)
def test_known_wrappings_are_taken_off(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    done = imported(tmp_path, PACKED[name](state))
    model = sfumato.load(tmp_path / "out")
    assert model.second is not None
    key = "input_blocks.1.0.in_layers.2.weight"
    assert torch.equal(model.second.denoiser.state_dict()[key], state[f"model.diffusion_model.{key}"])
    if not name.startswith(("nested t", "nested under")):
        assert any("prefix" in note or "averaged weights only" in note for note in done.notes), done.notes
    if "alone" in name:
        assert done.config.about["weights"] == "ema"


def test_of_live_and_averaged_weights_the_averaged_are_taken_unless_asked(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    averaged = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    key = "out.2.bias"
    for weights, expected in ((None, 1.0), ("live", 0.0)):
        done = imported(tmp_path, {"model": state, "ema": averaged}, weights=weights)
        found = load_file(done.folder / "denoiser.safetensors")[key] - state[f"model.diffusion_model.{key}"]
        assert torch.allclose(found, torch.full_like(found, expected), atol=1e-6)
    with pytest.raises(UserError, match="has averaged weights only"):
        imported(tmp_path, {"ema": state}, weights="live")


def test_averages_without_names_are_named_as_such(tmp_path: Path, state: dict[str, Tensor]) -> None:
    average = {"decay": 0.999, "num_updates": 3, "shadow_params": list(state.values()), "collected_params": None}
    with pytest.raises(UserError, match=r"averaged weights as a list without names \(shadow_params\).*state_dict"):
        imported(tmp_path, average)
    done = imported(tmp_path, {"model": state, "ema": average})
    assert any("list without names (shadow_params) and are left out" in note for note in done.notes)


def test_two_keys_of_one_meaning_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    key = "first_stage_model.quant_conv.bias"
    with pytest.raises(UserError, match=r"two keys that mean 'first_stage_model.quant_conv.bias'"):
        imported(tmp_path, {**state, f"module.{key}": state[key]})


def test_names_without_dots_get_them_back() -> None:
    for name in ("cin256", "lsun_churches256", "txt2img-1p4B"):
        for key in original_keys.state_dict(shrunken(name)):
            if key.startswith("model.diffusion_model."):
                assert dotted_name(key.removeprefix("model.").replace(".", "")) == key.removeprefix("model.")


# -- R7, K3 -----------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    key = "model.diffusion_model.out.2.bias"
    bad = {**state, key: state[key] * torch.nan}
    with pytest.raises(
        UserError, match=rf"the weight '{key}' holds {state[key].numel()} of {state[key].numel()} values"
    ):
        imported(tmp_path, bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.yaml", "x.ckpt"]


def test_two_imports_to_one_place_are_kept_apart(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with exclusive(tmp_path / "out"), pytest.raises(UserError, match="is being written by process"):
        imported(tmp_path, state)


# -- C2, S1, S2: folders ----------------------------------------------------------------------------------------------

diffusers = pytest.importorskip("diffusers")
NAME = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("theirs") / "vae"
    diffusers.AutoencoderKL(
        block_out_channels=(32,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        sample_size=16,
    ).save_pretrained(folder)
    return folder


def copied(vae: Path, folder: Path, names: dict[str, float]) -> Path:
    """The folder with its weights times a factor under each of these names instead."""
    folder.mkdir()
    (folder / "config.json").write_text((vae / "config.json").read_text())
    tensors = load_file(vae / f"{NAME}.safetensors")
    for name, factor in names.items():
        scaled = {key: value * factor for key, value in tensors.items()}
        if name.endswith(".bin"):
            torch.save(scaled, folder / name)
        else:
            save_file({key: v.half() if "16" in name else v for key, v in scaled.items()}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "taken", "variant"),
    [
        ({f"{NAME}.fp16.safetensors": 2}, 2, "the variant fp16 is used"),
        ({f"{NAME}.non_ema.safetensors": 2}, 2, "the variant non_ema .live weights, not averaged. is used"),
        ({f"{NAME}.non_ema.bin": 2}, 2, "the variant non_ema"),
        ({f"{NAME}.fp16.bin": 2, f"{NAME}.non_ema.safetensors": 4}, 2, "the variant fp16"),
        ({f"{NAME}.fp16.safetensors": 2, f"{NAME}.bin": 4}, 4, None),
        ({f"{NAME}.fp16.safetensors": 2, f"{NAME}.safetensors": 4, f"{NAME}.bin": 8}, 4, None),
    ],
)
def test_the_variant_that_is_there_is_taken(
    vae: Path, tmp_path: Path, names: dict[str, float], taken: float, variant: str | None
) -> None:
    done = import_model(copied(vae, tmp_path / "theirs", names), tmp_path / "out")
    expected = load_file(vae / f"{NAME}.safetensors")["quant_conv.weight"] * taken
    found = load_file(tmp_path / "out" / "autoencoder.safetensors")["quant_conv.weight"]
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)
    notes = "\n".join(done.notes)
    assert ("variant" in notes) == (variant is not None)
    if variant is not None:
        assert re.search(variant, notes)


@pytest.mark.parametrize("index", [f"{NAME}.safetensors.index.fp16.json", f"{NAME}.fp16.safetensors.index.json"])
def test_shards_of_a_variant_are_read(vae: Path, tmp_path: Path, index: str) -> None:
    folder = copied(vae, tmp_path / "theirs", {})
    tensors = load_file(vae / f"{NAME}.safetensors")
    table = {}
    for number, keys in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        name = f"{NAME}.fp16-{number:05d}-of-00002.safetensors"
        save_file({key: tensors[key].half() for key in keys}, folder / name)
        table |= dict.fromkeys(keys, name)
    (folder / index).write_text(json.dumps({"weight_map": table}))
    assert any("the variant fp16 is used" in note for note in import_model(folder, tmp_path / "out").notes)


def test_links_that_lead_out_and_files_of_no_use_stay_behind(vae: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    folder = copied(vae, tmp_path / "theirs", {f"{NAME}.safetensors": 1})
    (folder / "secret.txt").symlink_to(tmp_path / "secret")
    (folder / "evil.py").write_text("raise SystemExit")
    done = import_model(folder, tmp_path / "out")
    assert "left out 2 files not used here: evil.py, secret.txt" in done.notes
    assert not {"evil.py", "secret.txt"} & {path.name for path in (tmp_path / "out").rglob("*")}
    (folder / f"{NAME}.safetensors").unlink()
    (folder / f"{NAME}.safetensors").symlink_to(vae / f"{NAME}.safetensors")
    with pytest.raises(UserError, match="is a link that leads out of"):
        import_model(folder, tmp_path / "out2")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"config\.json is a link that leads out of"):
        import_model(folder, tmp_path / "out2")


def test_our_section_in_a_folder_is_read_as_any_foreign_file(vae: Path, tmp_path: Path) -> None:
    folder = copied(vae, tmp_path / "piped", {f"{NAME}.safetensors": 1.0})
    os.mkfifo(folder / "sfumato.yaml")
    assert import_model(folder, tmp_path / "out").config.autoencoder.channels == 32
    folder = copied(vae, tmp_path / "nested", {f"{NAME}.safetensors": 1.0})
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]" for n in range(9)]
    (folder / "sfumato.yaml").write_text("\n".join(levels))
    assert import_model(folder, tmp_path / "second").config.autoencoder.channels == 32


def test_a_snapshot_of_the_hub_may_link_to_its_blobs(vae: Path, tmp_path: Path) -> None:
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "snapshots").mkdir()
    folder = copied(vae, tmp_path / "hub" / "snapshots" / "1", {})
    (tmp_path / "hub" / "blobs" / "abc").write_bytes((vae / f"{NAME}.safetensors").read_bytes())
    (folder / f"{NAME}.safetensors").symlink_to("../../blobs/abc")
    assert import_model(folder, tmp_path / "out").config.autoencoder.channels == 32


def text_encoder(folder: Path) -> Path:
    """A tiny CLIP text encoder and a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers")
    from test_stable_diffusion import clip, tokenizer_folder

    assert transformers
    clip("gelu").save_pretrained(folder)
    for path in tokenizer_folder(folder.parent / f"{folder.name}-words").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("known", [True, False])
def test_code_beside_a_text_encoder_is_never_run(tmp_path: Path, known: bool, forks: Forks) -> None:
    folder = text_encoder(tmp_path / "encoder")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    if not known:
        config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    code = (
        "from sfumato.conditioning.pretrained import *\n"
        f"load_pretrained_text(PretrainedTextConfig(source={str(folder)!r}, max_tokens=8))"
    )
    process = forks.start(code)
    ended = process.wait()
    assert "[y/N]" not in process.output, "nobody is asked whether it may run"
    assert not (tmp_path / "owned").exists()
    if known:
        assert ended == 0, process.output
    else:
        assert "requires running its own code" in process.output


def test_the_hub_is_contacted_only_within_fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[bool] = []

    def download(source: str, local_files_only: bool = False, **options: Any) -> str:
        asked.append(local_files_only)
        if local_files_only:
            raise OSError("not here")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(UserError, match="only training and sampling download"):
        model_folder("someone/some-model")
    assert asked == [True]
    messages: list[str] = []
    with fetching(messages.append):
        assert model_folder("someone/some-model") == tmp_path
    assert messages == ["downloading someone/some-model from the model hub"]
    with pytest.raises(UserError, match="only training and sampling download"):
        load_pretrained_text(PretrainedTextConfig(source="someone/some-model"))


# -- S4, C5 -----------------------------------------------------------------------------------------------------------


def test_other_models_are_described_by_info_too(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.ones(4, 8)}, tmp_path / "x.safetensors")
    assert any("is a LoRA" in line for line in describe(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(("channels", "sentence"), [(8, "InstructPix2Pix"), (5, "depth-to-image"), (7, "upscaler")])
def test_u_nets_of_other_inputs_are_refused_by_name(tmp_path: Path, channels: int, sentence: str) -> None:
    from test_stable_diffusion import checkpoint

    save_file(checkpoint(1, channels), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=sentence):
        import_model(tmp_path / "x.safetensors", tmp_path / "out")


def test_a_single_autoencoder_of_diffusers_is_read_by_its_keys(vae: Path, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((vae / f"{NAME}.safetensors").read_bytes())
    alone = import_model(tmp_path / "x.safetensors", tmp_path / "alone")
    whole = import_model(vae, tmp_path / "whole")
    assert alone.config.autoencoder == whole.config.autoencoder
    found, expected = (load_file(tmp_path / name / "autoencoder.safetensors") for name in ("alone", "whole"))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert "scale factor: using Stable Diffusion's, 0.18215" in alone.notes[-1]
    save_file(
        {"down_blocks.0.resnets.0.conv1.weight": torch.ones(1), "conv_in.weight": torch.ones(1)}, tmp_path / "u.bin"
    )
    with pytest.raises(UserError, match="give its folder"):
        import_model(tmp_path / "u.bin", tmp_path / "out")
