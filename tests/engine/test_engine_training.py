"""Whole networks with fused blocks against the same networks without: outputs, gradients, names, and the way back."""

import copy

import pytest
import torch
from engine_cases import CASES, Run, distance, unet
from torch import Tensor, nn

from sfumato.denoiser.blocks import ResBlock
from sfumato.engine import native
from sfumato.engine.training import FUSED, PLAIN, for_training, plain


def backward(network: nn.Module, run: Run, bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = run(network).float()
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    gradients = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.double()
    return y.detach().double(), gradients


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("kernels", [True, False], ids=["native", "torch"])
def test_fused_equals_plain(case: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_NATIVE", "1" if kernels else "0")
    network, run = CASES[case]()
    slow, slow_gradients = backward(copy.deepcopy(network), run, bf16=False)
    fast, fast_gradients = backward(for_training(network), run, bf16=False)
    assert distance(fast, slow) < 1e-5
    largest = max(expected.norm().item() for expected in slow_gradients.values())
    for name, expected in slow_gradients.items():  # some are sums that cancel: nothing but rounding
        difference = (fast_gradients[name] - expected).norm().item()
        assert difference < 1e-5 * expected.norm().item() + 1e-6 * largest, name


@pytest.mark.parametrize("case", list(CASES))
def test_fused_in_bf16_is_no_further_from_float32_than_plain(case: str) -> None:
    network, run = CASES[case]()
    exact, exact_gradients = backward(copy.deepcopy(network), run, bf16=False)
    slow, slow_gradients = backward(copy.deepcopy(network), run, bf16=True)
    fast, fast_gradients = backward(for_training(network), run, bf16=True)
    assert distance(fast, exact) < 3e-2
    assert distance(fast, exact) < 1.3 * distance(slow, exact)
    together = [
        torch.cat([g[n].flatten() for n in exact_gradients]) for g in (fast_gradients, slow_gradients, exact_gradients)
    ]
    assert distance(together[0], together[2]) < 1.3 * distance(together[1], together[2])


def test_names_parameters_and_modules_stay() -> None:
    network, _ = unet(True)
    parameters, keys = list(network.parameters()), list(network.state_dict())
    modules = list(network.modules())
    values = {name: value.clone() for name, value in network.state_dict().items()}
    before = [type(m) for m in modules]
    for_training(for_training(network))
    assert [type(m) for m in modules] != before
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, network.modules(), strict=True))
    assert list(network.state_dict()) == keys
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in values.items())
    assert copy.deepcopy(network).state_dict().keys() == values.keys()
    plain(network)
    assert [type(m) for m in modules] == before


def test_every_plain_class_has_its_way_back() -> None:
    assert all(issubclass(fused, original) for original, fused in FUSED.items())
    assert all(issubclass(fused, original) for fused, original in PLAIN.items())


def test_a_subclass_with_its_own_behaviour_is_left_alone() -> None:
    class Special(ResBlock):
        pass

    block = Special(32, 32, 8, scale_shift=True)
    for_training(nn.ModuleList([block]))
    assert type(block) is Special
    assert type(block.out_layers[1]) is nn.SiLU


@pytest.mark.skipif(native.library() is None, reason=native.describe())
def test_the_kernels_are_reached() -> None:
    """Falling back silently would keep every equality above."""
    network, run = unet(True)
    names = set()
    y = run(for_training(network))
    todo = [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in names:
            names.add(node)
            todo += [parent for parent, _ in node.next_functions]
    kinds = [type(node).__name__ for node in names]
    norms = sum(isinstance(m, nn.GroupNorm) for m in network.modules())
    assert kinds.count("_GroupNormBackward") == norms
    assert "SiluBackward0" in kinds  # the time embedding's
    assert kinds.count("SiluBackward0") == 1 + sum(isinstance(m, ResBlock) for m in network.modules())
    assert "ScaledDotProductFlashAttentionForCpuBackward0" not in kinds
