"""The one attention call, and the layers built on it, against the formula."""

import pytest
import torch

from sfumato.nn.attention import attend
from sfumato.nn.transformer import BasicTransformerBlock, CrossAttention, FeedForward

B, H, T, S, D = 2, 3, 5, 7, 4


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_the_formula(masked: bool) -> None:
    q, k, v = gaussian(B, H, T, D), gaussian(B, H, S, D, seed=1), gaussian(B, H, S, D, seed=2)
    mask = torch.tensor([[True] * 3 + [False] * 4, [False] + [True] * 6]) if masked else None
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / D**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    torch.testing.assert_close(attend(q, k, v, mask), torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v))


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_is_the_same_function(masked: bool) -> None:
    q, k, v = (gaussian(B, H, n, D, seed=i).bfloat16().requires_grad_() for i, n in enumerate((T, S, S)))
    mask = torch.tensor([[True] * 3 + [False] * 4, [False] + [True] * 6]) if masked else None
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    for inputs in ((q, k, v), exact):
        attend(*inputs, mask).square().sum().backward()
    torch.testing.assert_close(attend(q, k, v, mask).double(), attend(*exact, mask), atol=3e-2, rtol=0)
    for x, y in zip((q, k, v), exact, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-1, rtol=0)


def test_cross_attention_has_heads_side_by_side() -> None:
    layer = CrossAttention(dim=6, heads=2, head_dim=4, context_dim=9).double()
    x, context = gaussian(B, T, 6), gaussian(B, S, 9, seed=1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        q, k, v = (y @ to.weight[part].T for y, to in ((x, layer.to_q), (context, layer.to_k), (context, layer.to_v)))
        heads.append((q @ k.transpose(1, 2) / 2).softmax(-1) @ v)
    expected = torch.cat(heads, 2) @ layer.to_out[0].weight.T + layer.to_out[0].bias
    torch.testing.assert_close(layer(x, context), expected)


def test_feed_forward_gates_with_the_exact_gelu() -> None:
    layer = FeedForward(6).double()
    x = gaussian(B, T, 6)
    value, gate = (x @ layer.net[0].proj.weight.T + layer.net[0].proj.bias).split(24, -1)
    gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    torch.testing.assert_close(layer(x), (value * gelu) @ layer.net[2].weight.T + layer.net[2].bias)


def test_masked_context_is_not_seen() -> None:
    block = BasicTransformerBlock(dim=8, heads=2, head_dim=4, context_dim=6).double()
    x, context = gaussian(B, T, 8), gaussian(B, S, 6, seed=1)
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[0, 4:] = False
    changed = context.clone()
    changed[0, 4:] += 3
    torch.testing.assert_close(block(x, changed, mask), block(x, context, mask))
    torch.testing.assert_close(block(x, context, mask)[:1], block(x[:1], context[:1, :4]))
    assert not torch.allclose(block(x, changed), block(x, context))
