"""The diffusion transformer: its equations written down again, its condition, and every way a denoiser is used."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from denoiser.contract import (
    FULL,
    GIVEN,
    PROMPT,
    TIMES,
    B,
    C,
    X,
    check_each_sample_stands_alone,
    check_fused_and_packed,
    check_gradients,
    check_is_used,
    check_recomputing_is_estimated,
    check_samples_saves_and_opens,
    filled,
    full_condition,
    gaussian,
)
from sfumato import flops
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.config import load_config
from sfumato.denoiser.dit import DiT, DiTBlock, DiTConfig, positions
from sfumato.denoiser.flow_map import step_inputs
from sfumato.engine.fused_transformer import FusedAttention
from sfumato.engine.training import for_training, plain
from sfumato.errors import UserError
from sfumato.interop.convert import export_model
from sfumato.pipeline import pipeline
from sfumato.pipeline.request import SampleRequest
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.sharding import units
from tiny import model

LATER = ("time_frequencies: open", "time_frequencies: closed", "feed_forward_eps: 0.00001")
KIND = "diffusion.denoiser={kind: dit, patch: 2, width: 32, depth: 2, heads: 2}"


def build(spec: ConditionSpec = FULL, **changes: Any) -> DiT:
    options = {"kind": "dit", "patch": 2, "width": 32, "depth": 2, "heads": 2}
    network = DiT(DiTConfig.model_validate({**options, **changes}), C, spec)
    filled(network)
    return network.eval()


# ---- the paper's equations, with nothing of the package


def grid_positions(h: int, w: int, width: int) -> Tensor:
    """A row for each patch: sines and cosines of its column, then of its row."""
    rows = []
    for y in range(h):
        for x in range(w):
            axes = []
            for place in (x, y):
                angles = [place / 10000 ** (i / (width / 4)) for i in range(width // 4)]
                axes += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(axes)
    return torch.tensor(rows)


def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()


def dit(
    state: Mapping[str, Tensor],
    x: Tensor,
    t: Tensor,
    vector: Tensor,
    patch: int,
    heads: int,
    intervals: int = 128,
    eps: float = 1e-6,
) -> Tensor:
    """The published network on weights under their published names; `vector` (B, width) is the class's row."""

    def linear(name: str, of: Tensor) -> Tensor:
        return of @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def silu(of: Tensor) -> Tensor:
        return of * torch.sigmoid(of)

    n, channels, H, W = x.shape
    p, kernel = patch, state["x_embedder.proj.weight"]
    patches = x.reshape(n, channels, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * p * p)
    tokens = patches @ kernel.flatten(1).T + state["x_embedder.proj.bias"]
    tokens = tokens + grid_positions(H // p, W // p, kernel.shape[0])
    angles = t[:, None] * torch.tensor([10000 ** (-i / intervals) for i in range(128)])
    embedding = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    c = silu(linear("t_embedder.mlp.2", silu(embedding)) + vector)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for i in range(depth):
        shift, scale, gate, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", c)[:, None].chunk(6, -1)
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(tokens) * (1 + scale) + shift).chunk(3, -1)
        parts = []
        for a, b, d in zip(*(m.chunk(heads, -1) for m in (q, k, v)), strict=True):
            weights = (a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).exp()
            parts.append(weights / weights.sum(-1, keepdim=True) @ d)
        tokens = tokens + gate * linear(f"blocks.{i}.attn.proj", torch.cat(parts, -1))
        h = linear(f"blocks.{i}.mlp.fc1", norm(tokens, eps) * (1 + scale2) + shift2)
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        tokens = tokens + gate2 * linear(f"blocks.{i}.mlp.fc2", h)
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    out = linear("final_layer.linear", norm(tokens) * (1 + scale) + shift)
    out = out.reshape(n, H // p, W // p, p, p, -1)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(n, -1, H, W)


def published(network: nn.Module) -> dict[str, Tensor]:
    """Its weights under the published names."""
    return {key.replace("time_embed.", "t_embedder.mlp."): value for key, value in network.state_dict().items()}


# ---- tests


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_it_computes_the_papers_equations(patch: int) -> None:
    network = build(ConditionSpec(vector_dim=32), patch=patch, vector_projection="none")
    vector, t = gaussian(B, 32, seed=7), torch.tensor([0.0, 37.0, 999.0])
    expected = dit(published(network), X, t, vector, patch, 2)
    torch.testing.assert_close(network(X, t, Condition(vector=vector)), expected, atol=1e-5, rtol=1e-5)


def test_time_can_be_the_clean_share_as_in_sit() -> None:
    network = build(ConditionSpec(vector_dim=32), vector_projection="none", time="clean-share")
    vector, t = gaussian(B, 32, seed=7), torch.tensor([0.25, 0.5, 1.0])
    expected = dit(published(network), X, 1 - t, vector, 2, 2)
    torch.testing.assert_close(network(X, 1000 * t - 1, Condition(vector=vector)), expected, atol=1e-5, rtol=1e-5)


def test_frequencies_of_time_and_the_second_norm_can_be_those_of_diffusers() -> None:
    spec, t = ConditionSpec(vector_dim=32), torch.tensor([0.0, 37.0, 999.0])
    network = build(spec, vector_projection="none", time_frequencies="closed", feed_forward_eps=1e-2)
    vector = gaussian(B, 32, seed=7)
    expected = dit(published(network), X, t, vector, 2, 2, intervals=127, eps=1e-2)
    torch.testing.assert_close(network(X, t, Condition(vector=vector)), expected, atol=1e-5, rtol=1e-5)


def test_settings_that_came_later_change_the_digest_only_where_they_are_set() -> None:
    digests = {model(KIND.replace("heads: 2", f"heads: 2, {more}")).digest for more in LATER}
    assert len(digests) == 3
    assert model(KIND).digest in digests


def test_positions_continue_or_are_interpolated() -> None:
    small, large = positions(4, 6, 32, None), positions(8, 12, 32, None).unflatten(0, (8, 12))
    torch.testing.assert_close(small, grid_positions(4, 6, 32), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(large[:4, :6].flatten(0, 1), small)  # a larger latent continues them
    scaled = positions(8, 12, 32, 6).unflatten(0, (8, 12))  # twelve columns over six places, eight rows over four
    torch.testing.assert_close(scaled[::2, ::2].flatten(0, 1), small, atol=1e-5, rtol=1e-5)


def test_it_begins_as_zero_and_its_blocks_as_the_identity() -> None:
    network = DiT(DiTConfig(width=32, depth=2, heads=2), C, FULL)
    assert (network(X, TIMES, full_condition()) == 0).all()
    block, tokens = network.blocks[0], gaussian(2, 6, 32)
    assert isinstance(block, DiTBlock)
    inputs = network._inputs(TIMES[:2], Condition(**{k: v[:2] for k, v in full_condition().tensors().items()}))
    torch.testing.assert_close(block(tokens, inputs), tokens)
    weight = block.attn.qkv.weight
    assert weight.abs().max() <= math.sqrt(6 / (32 + 96))
    assert 0.8 < weight.std() / math.sqrt(2 / (32 + 96)) < 1.2


def test_each_sample_stands_alone_and_padding_is_not_attended() -> None:
    network, condition = build(), full_condition()
    check_each_sample_stands_alone(network)
    out = network(X, TIMES, condition)
    tensors = condition.tensors()
    tokens = tensors["tokens"].clone()
    tokens[0, 3:] += 1
    padded = network(X, TIMES, Condition(**{**tensors, "tokens": tokens}))
    torch.testing.assert_close(padded, out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GIVEN)
def test_everything_given_is_used(name: str) -> None:
    check_is_used(build(), name)


def test_a_student_begins_as_its_teacher_and_uses_end_and_scale() -> None:
    teacher = build()
    student = DiT(DiTConfig(patch=2, width=32, depth=2, heads=2, flow_map=True), C, FULL).eval()
    missing = student.load_state_dict(teacher.state_dict(), strict=False).missing_keys
    assert missing
    assert all(key.startswith("flow_map.") for key in missing)
    condition, expected = full_condition(), teacher(X, TIMES, full_condition())
    torch.testing.assert_close(student(X, step_inputs(TIMES, TIMES - 1, 3.0), condition), expected)
    filled(student)
    out = student(X, step_inputs(TIMES, TIMES - 100, 3.0), condition)
    for other in (step_inputs(TIMES, TIMES - 200, 3.0), step_inputs(TIMES, TIMES - 100, 4.0)):
        assert (student(X, other, condition) - out).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_fused_networks_compute_the_same(dtype: torch.dtype) -> None:
    fused = for_training(build())
    assert sum(isinstance(part, FusedAttention) for part in fused.modules()) == 2
    check_fused_and_packed(build(), fused, dtype)
    assert not any(isinstance(part, FusedAttention) for part in plain(fused).modules())


def test_fused_and_recomputed_networks_have_the_same_gradients() -> None:
    recomputed = build()
    recomputed.checkpointing = True
    for other in (recomputed, for_training(build())):
        check_gradients(build(), other, atol=1e-5, rtol=1e-4)


def test_estimates_account_for_it() -> None:
    check_recomputing_is_estimated(KIND)
    # 36 tokens of width 32, 12 · width² weights a block, each multiplied and added; attention; patches in and out
    T, D = 36, 32
    blocks = 2 * (2 * T * 12 * D * D + 2 * 2 * T * T * D + 2 * 6 * D * D)
    rest = 2 * T * (2 * 3 * 4 * D) + 2 * (256 * D + D * D) + 2 * 2 * D * D
    counted = flops.denoise(DiTConfig(width=D, depth=2, heads=2), 3, ConditionSpec(), (12, 12))
    assert counted == blocks + rest
    assert [type(unit) for unit in units(build())] == [DiTBlock, DiTBlock]


def test_a_model_samples_saves_opens_and_exports(tmp_path: Path) -> None:
    opened = check_samples_saves_and_opens(KIND, DiT, tmp_path / "model")
    wide = SampleRequest(prompt=PROMPT, steps=2, size=(16, 40), seed=5)  # in windows
    assert pipeline.sample(opened, wide).images.shape[2:] == (16, 40)
    for format, why in (("original", "kind dit cannot"), ("diffusers", "DiT with conditioner.kind: text cannot")):
        with pytest.raises(UserError, match=f"{why} be exported"):
            export_model(tmp_path / "model", tmp_path / "exported", format)
    assert not (tmp_path / "exported").exists()


def test_a_run_names_it() -> None:
    setting = "denoiser={kind: dit, width: 192, depth: 8, heads: 3}"
    asked = load_config("zoo:toy/small-text", [setting], DiffusionRun)
    assert isinstance(asked.denoiser, DiTConfig)
    assert asked.denoiser.factor == 2
    times = "denoiser={kind: dit, time: clean-share}"
    load_config("zoo:toy/small-text", [times, "schedule={kind: flow}"], DiffusionRun)
    with pytest.raises(UserError, match=r"is 500: set schedule\.steps to 1000"):
        load_config("zoo:toy/small-text", [times, "schedule={kind: flow, steps: 500}"], DiffusionRun)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads 3 does not divide the width of 32"),
        ({"width": 30}, "multiple of 4"),
        ({"patch": 0}, "greater than or equal to 1"),
        ({"depth": 1000}, "256"),
        ({"time": "clean"}, "clean-share"),
        ({"time_frequencies": "half"}, "closed"),
        ({"feed_forward_eps": 0}, "feed_forward_eps"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**changes)
    with pytest.raises(ValueError, match="width = 32 entries, not 5"):
        build(vector_projection="none")
    with pytest.raises(ValueError, match=r"8x11 must be a multiple of 2 in H and W \(the patch\)"):
        build(ConditionSpec())(F.pad(X, (0, -1)), TIMES, Condition())
