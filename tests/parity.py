"""Where the golden tensors of the original models are found, and their weights rebuilt by rule."""

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PARITY = Path(os.environ.get("SFUMATO_PARITY", Path(__file__).parents[2] / "shared" / "parity"))

needs_parity = pytest.mark.skipif(not (PARITY / "golden").is_dir(), reason="no golden tensors beside the checkout")


@lru_cache(maxsize=2)
def golden(name: str) -> dict[str, Tensor]:
    """The recorded tensors of one configuration, by name."""
    return torch.load(PARITY / "golden" / f"{name}.pt", weights_only=True)["tensors"]


@lru_cache(maxsize=2)
def scaled_weights(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The original-layout state dict of a shrunken configuration and its original YAML as a dict."""
    spec = importlib.util.spec_from_file_location("make_ckpt", PARITY / "make_ckpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.state_dict(name, PARITY)


def full_size(name: str) -> dict[str, Any]:
    """The facts of a published model at full size: configuration and key list."""
    return json.loads((PARITY / "full-size" / f"{name}.json").read_text())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
