"""The original first stages, shrunk, with their weights rebuilt by rule."""

import importlib.util
from typing import Any

from torch import Tensor, nn

from parity import PARITY, scaled_weights
from sfumato.autoencoder.model import Autoencoder, AutoencoderConfig, KLConfig, VQConfig

NAMES = ("kl-f8", "kl-f32", "vq-f4", "vq-f8")


def config_of(params: dict[str, Any]) -> AutoencoderConfig:
    """Our configuration of an original one (its `params`)."""
    dd = params["ddconfig"]
    levels = [i for i in range(len(dd["ch_mult"])) if dd["resolution"] // 2**i in dd["attn_resolutions"]]
    return AutoencoderConfig(
        image_channels=dd["in_channels"],
        channels=dd["ch"],
        channel_multipliers=tuple(dd["ch_mult"]),
        blocks_per_level=dd["num_res_blocks"],
        attention_levels=tuple(levels),
        latent_channels=dd["z_channels"],
        embed_channels=params["embed_dim"],
        dropout=dd["dropout"],
        bottleneck=VQConfig(codes=params["n_embed"]) if "n_embed" in params else KLConfig(),
    )


def autoencoder(name: str) -> Autoencoder:
    """The shrunken autoencoder in eval mode."""
    weights, config = scaled_weights(name)
    model = Autoencoder(config_of(config["model"]["params"]))
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("loss.")})
    return model.eval()


def fill(module: nn.Module, prefix: str) -> nn.Module:
    """Gives a module the weights the rule makes of its keys under a prefix; statistics and constants stay."""
    state = module.state_dict()
    for key, value in state.items():
        if not any(part in key for part in ("running_", "num_batches_tracked", "scaling_layer")):
            state[key] = by_rule(prefix + key, value)
    module.load_state_dict(state)
    return module


def by_rule(key: str, like: Tensor) -> Tensor:
    """The weight of one key."""
    spec = importlib.util.spec_from_file_location("make_ckpt", PARITY / "make_ckpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.weight(key, like.shape)
