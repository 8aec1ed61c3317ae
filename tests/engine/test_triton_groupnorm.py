"""The kernels in Triton without a GPU, by Triton's interpreter, against float64; skipped where there is no Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CHECK = """
import torch, torch.nn.functional as F
from sfumato.engine.groupnorm import _right
from sfumato.engine.triton_groupnorm import group_norm
assert _right(group_norm, torch.device("cpu"))
x = (torch.randn(2, 96, 40, 30) + 10 * torch.randn(1, 96, 1, 1)).contiguous(memory_format=torch.channels_last)
gain, bias = torch.randn(2, 96), torch.randn(96)
with torch.no_grad():
    found = group_norm(x, 8, gain, bias, None, 1e-5, False)
expected = F.group_norm(x.double(), 8, eps=1e-5) * gain[:, :, None, None] + bias[:, None, None]
assert found.is_contiguous(memory_format=torch.channels_last)
assert (found - expected).abs().max() < 1e-4
"""


def test_the_kernels_are_group_norm_and_its_gradients() -> None:
    here = Path(__file__).parents[2]
    paths = os.pathsep.join([str(here / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", CHECK], env=environment, check=True)
