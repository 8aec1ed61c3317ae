"""Names in checkpoints are an interface: the networks' are the originals', those of a run's state are ours."""

import itertools
import re
from pathlib import Path

import pytest
from torch import nn

from runs import first_run, saved, second_run, train_first, train_second
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, VQConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.text import TextConfig, TextTransformer
from sfumato.denoiser.unet import UNet, UNetConfig

AFFINE = "{weight,bias}"
RESNET = f"{{norm1,conv1,norm2,conv2}}.{AFFINE}"
ATTENTION = f"{{norm,q,k,v,proj_out}}.{AFFINE}"
RESBLOCK = f"{{in_layers.0,in_layers.2,emb_layers.1,out_layers.0,out_layers.3}}.{AFFINE}"
TRANSFORMER = (
    f"{{norm,proj_in,proj_out}}.{AFFINE}",
    "transformer_blocks.0.{attn1,attn2}.{to_q,to_k,to_v}.weight",
    f"transformer_blocks.0.{{attn1.to_out.0,attn2.to_out.0,ff.net.0.proj,ff.net.2,norm1,norm2,norm3}}.{AFFINE}",
)

KL = (
    f"{{encoder,decoder}}.{{conv_in,norm_out,conv_out}}.{AFFINE}",
    f"{{encoder,decoder}}.mid.{{block_1,block_2}}.{RESNET}",
    f"{{encoder,decoder}}.mid.attn_1.{ATTENTION}",
    f"encoder.down.{{0,1}}.block.0.{RESNET}",
    f"encoder.down.1.block.0.nin_shortcut.{AFFINE}",
    f"encoder.down.1.attn.0.{ATTENTION}",
    f"encoder.down.0.downsample.conv.{AFFINE}",
    f"decoder.up.{{0,1}}.block.{{0,1}}.{RESNET}",
    f"decoder.up.0.block.0.nin_shortcut.{AFFINE}",
    f"decoder.up.1.attn.{{0,1}}.{ATTENTION}",
    f"decoder.up.1.upsample.conv.{AFFINE}",
    f"{{quant_conv,post_quant_conv}}.{AFFINE}",
)
UNET = (
    f"time_embed.{{0,2}}.{AFFINE}",
    f"input_blocks.0.0.{AFFINE}",
    f"input_blocks.{{1,3}}.0.{RESBLOCK}",
    f"input_blocks.2.0.op.{AFFINE}",
    f"middle_block.{{0,2}}.{RESBLOCK}",
    f"output_blocks.{{0,1,2,3}}.0.{RESBLOCK}",
    f"{{input_blocks.3,output_blocks.0,output_blocks.1,output_blocks.2,output_blocks.3}}.0.skip_connection.{AFFINE}",
    f"output_blocks.1.2.conv.{AFFINE}",
    *(f"{{input_blocks.3,middle_block,output_blocks.0,output_blocks.1}}.1.{keys}" for keys in TRANSFORMER),
    f"out.{{0,2}}.{AFFINE}",
)
TEXT = (
    "transformer.{token_emb,pos_emb.emb}.weight",
    f"transformer.attn_layers.layers.{{0,1}}.0.{AFFINE}",
    "transformer.attn_layers.layers.0.1.{to_q,to_k,to_v}.weight",
    f"transformer.attn_layers.layers.0.1.to_out.{AFFINE}",
    f"transformer.attn_layers.layers.1.1.net.{{0.0,2}}.{AFFINE}",
    f"transformer.norm.{AFFINE}",
)
LEVELS = {"channels": 8, "channel_multipliers": (1, 2), "blocks_per_level": 1, "attention_levels": (1,)}


def names(patterns: tuple[str, ...]) -> list[str]:
    """All names that the patterns spell, {a,b} standing for either."""
    out = []
    for pattern in patterns:
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        out += ["".join(choice) for choice in itertools.product(*parts)]
    return sorted(out)


def unet() -> nn.Module:
    config = UNetConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, attention_factors=(2,))
    return UNet(config, 4, ConditionSpec(token_dim=8))


def text() -> nn.Module:
    return TextTransformer(
        TextConfig(
            dim=8, depth=1, heads=2, head_dim=4, tokenizer="none", vocabulary=9, max_tokens=5, empty_tokens=(1, 2)
        )
    )


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Autoencoder(AutoencoderConfig(**LEVELS)), KL),
        (
            lambda: Autoencoder(AutoencoderConfig(**LEVELS, bottleneck=VQConfig(codes=4))),
            (*KL, "quantize.embedding.weight"),
        ),
        (unet, UNET),
        (text, TEXT),
    ],
    ids=["kl", "vq", "unet", "text"],
)
def test_the_networks_keys_are_the_originals(build, expected: tuple[str, ...]) -> None:
    assert sorted(build().state_dict()) == names(expected)


COUNTERS = {"step", "skipped", "skipped_in_a_row", "images", "notes"}
FIRST_PREFIXES = (
    "module.{autoencoder,ema,log_variance,counts,discriminator}",
    "optimiser.{autoencoder,discriminator}",
)


def prefixes(tensors: dict) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in tensors}


def test_a_runs_state_keeps_its_names(tmp_path: Path) -> None:
    """Runs on people's disks go on with later versions."""
    gan = "loss.adversarial={weight: 0.5, start: 0, channels: 8, layers: 1, lecam: 0.1}"
    first = first_run(gan, "loss.output_variance=true", "train.steps=1", "model.bottleneck={kind: vq, codes: 8}")
    train_first(tmp_path / "first", first)
    tensors, numbers = saved(tmp_path / "first")
    assert prefixes(tensors) == set(names(FIRST_PREFIXES))
    assert {name for name in tensors if name.startswith(("module.counts", "module.log_variance"))} == {
        "module.counts.epoch",
        "module.counts.recent",
        "module.log_variance.0",
    }
    assert (
        tensors["module.ema.encoder.conv_in.weight"].shape == tensors["module.autoencoder.encoder.conv_in.weight"].shape
    )
    assert {name.split(".", 3)[3] for name in tensors if name.startswith("optimiser.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert set(numbers) == COUNTERS
    assert set(numbers["notes"]) == {"logits", "source"}

    train_second(tmp_path / "second", second_run("train.steps=1"), tmp_path / "cache")
    tensors, numbers = saved(tmp_path / "second")
    assert prefixes(tensors) == {"module.networks", "module.ema", "optimiser.networks"}
    assert {"module.networks.denoiser.out.2.weight", "module.ema.conditioner.transformer.token_emb.weight"} <= set(
        tensors
    )
    assert set(numbers) == COUNTERS
    assert set(numbers["notes"]) == {"loss", "source"}
    assert sorted(path.name for path in (tmp_path / "second").iterdir() if path.name != "tensorboard") == [
        "config.yaml",
        "log.jsonl",
        "previews",
        "states",
    ]
    assert [path.name for path in (tmp_path / "second" / "states").iterdir()] == ["step-00000001.safetensors"]
