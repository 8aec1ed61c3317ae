"""The transformer over codes: the past decides alone, a memory changes nothing, and it learns a rule."""

import pytest
import torch
import torch.nn.functional as F

from sfumato.baselines.network import CodeTransformer, CodeTransformerConfig
from sfumato.baselines.sampling import Choice, choose, sample_codes
from sfumato.conditioning.condition import Condition, ConditionSpec
from sfumato.errors import UserError

K, SIZE, B = 7, (2, 3), 4
CONFIG = CodeTransformerConfig(dim=32, depth=2, head_dim=8)
SPEC = ConditionSpec(token_dim=5, vector_dim=6)


def network(spec: ConditionSpec = SPEC) -> CodeTransformer:
    torch.manual_seed(0)
    return CodeTransformer(CONFIG, K, SIZE, spec).eval()


def condition(seed: int = 0) -> Condition:
    g = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [True, True, False]])
    return Condition(torch.randn(B, 6, generator=g), torch.randn(B, 3, 5, generator=g), mask)


def codes() -> torch.Tensor:
    return torch.randint(K, (B, 6), generator=torch.Generator().manual_seed(1))


def test_a_code_hears_of_those_before_it_and_of_no_padding() -> None:
    net, given, written = network(), condition(), codes()
    with torch.no_grad():
        logits = net(given, written)
        for i in range(6):
            other = written.clone()
            other[:, i] = (other[:, i] + 1) % K
            changed = (net(given, other) - logits).abs().amax((0, 2)) > 1e-6
            assert changed.tolist() == [j > i for j in range(6)]
        assert given.tokens is not None
        assert given.mask is not None
        noise = torch.where(given.mask[..., None], given.tokens, given.tokens + 9)
        torch.testing.assert_close(net(Condition(given.vector, noise, given.mask), written), logits)
        assert (net(condition(5), written) - logits).abs().max() > 1e-3, "the condition is heard"


@pytest.mark.parametrize("spec", [SPEC, ConditionSpec()])
def test_with_a_memory_as_without(spec: ConditionSpec) -> None:
    net, written = network(spec), codes()
    given = condition() if spec.token_dim else Condition()
    with torch.no_grad():
        whole = net(given, written)
        logits, cache = net.begin(given, B)
        torch.testing.assert_close(logits, whole[:, 0])
        for i in range(1, 6):
            logits, cache = net.step(written[:, i - 1], i, cache)
            torch.testing.assert_close(logits, whole[:, i])


def test_choices() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log().expand(400, 4)
    uniform = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def shares(**options: float) -> list[float]:
        sampled = choose(logits, uniform, Choice(**options))  # type: ignore[arg-type]
        return (torch.bincount(sampled, minlength=4) / 400).tolist()

    assert shares() == pytest.approx([0.1, 0.5, 0.3, 0.1], abs=0.06)
    assert shares(temperature=0) == [0, 1, 0, 0]
    assert shares(top_k=2) == pytest.approx([0, 0.625, 0.375, 0], abs=0.06)
    assert shares(top_p=0.45) == [0, 1, 0, 0]
    assert shares(top_p=0.7) == pytest.approx([0, 0.625, 0.375, 0], abs=0.06)
    assert shares(temperature=0.5)[1] == pytest.approx(0.25 / 0.36, abs=0.06)
    edge = choose(logits[:2], torch.tensor([0.0, 1 - 1e-17], dtype=torch.float64), Choice())
    assert edge.tolist() in ([1, 0], [1, 3])
    with pytest.raises(UserError, match="top-p 0"):
        Choice(top_p=0)


def test_a_seed_gives_the_same_image_in_any_batch() -> None:
    net, given = network(), condition()
    together = sample_codes(net, given, condition(3), [5, 6, 7, 8], guidance=2.0)
    part = {name: value[1:2] for name, value in given.tensors().items()}
    null = {name: value[1:2] for name, value in condition(3).tensors().items()}
    assert torch.equal(sample_codes(net, Condition(**part), Condition(**null), [6], guidance=2.0), together[1:2])
    assert not torch.equal(sample_codes(net, given, condition(3), [5, 6, 7, 8]), together)


def test_it_learns_to_count() -> None:
    """Each code is the one before plus a step that the condition names: nothing is left to chance but the first."""
    torch.manual_seed(0)
    net = CodeTransformer(CONFIG, K, SIZE, ConditionSpec(vector_dim=3))
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    g = torch.Generator().manual_seed(2)
    for _ in range(120):
        step, first = torch.randint(3, (32,), generator=g), torch.randint(K, (32,), generator=g)
        written = (first[:, None] + torch.arange(6) * (step[:, None] + 1)) % K
        logits = net(Condition(vector=F.one_hot(step, 3).float()), written)
        loss = F.cross_entropy(logits[:, 1:].flatten(0, 1), written[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    step = torch.tensor([0, 1, 2])
    sampled = sample_codes(net.eval(), Condition(vector=F.one_hot(step, 3).float()), None, [0, 1, 2]).flatten(1)
    assert torch.equal((sampled[:, 1:] - sampled[:, :-1]) % K, (step[:, None] + 1).expand(3, 5))


def test_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="head_dim 5 does not divide"):
        CodeTransformer(CodeTransformerConfig(dim=32, head_dim=5), K, SIZE, SPEC)
    with pytest.raises(UserError, match="not maps"):
        CodeTransformer(CONFIG, K, SIZE, ConditionSpec(spatial_channels=3))
