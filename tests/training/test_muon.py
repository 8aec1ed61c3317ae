"""Muon: singular values near one, whose weights it moves, and how far."""

import copy
import threading
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sfumato.training.muon import RMS, ROUNDS, Muon, is_hidden, orthogonal
from sfumato.training.optim import OptimiserConfig, build_optimiser, moments
from sfumato.training.shares import Sharing, owners

LAYERS = {
    "hidden matrix": (nn.Linear(16, 64), True),
    "hidden kernel": (nn.Conv2d(16, 32, 3), True),
    "from an image": (nn.Conv2d(3, 32, 3), False),
    "to a latent": (nn.Conv2d(32, 8, 3), False),
    "table of tokens": (nn.Embedding(64, 32), False),
    "norm": (nn.GroupNorm(4, 16), False),
    "one kernel a channel": (nn.Conv2d(32, 32, 3, groups=32), False),
}


@pytest.mark.parametrize("shape", [(2, 32, 288), (1, 96, 24), (3, 40, 40)])
def test_the_update_keeps_the_singular_vectors_and_evens_the_values_out(shape: tuple[int, int, int]) -> None:
    g = torch.Generator().manual_seed(0)
    matrices = torch.randn(*shape, generator=g)
    U, S, Vt = torch.linalg.svd(matrices, full_matrices=False)
    uneven = U @ torch.diag_embed(torch.logspace(0, -1.5, S.shape[-1]).expand_as(S)) @ Vt
    made = orthogonal(uneven)
    values = U.mT @ made @ Vt.mT  # diagonal where the singular vectors are kept
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3
    assert diagonal.min() > 0.5
    assert diagonal.max() < 1.25


@pytest.mark.parametrize("shape", [(24, 100), (24, 30), (30, 24)])
def test_either_way_gives_what_the_published_iteration_gives(shape: tuple[int, int]) -> None:
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = x / x.norm()
    for _ in range(ROUNDS):
        A = expected @ expected.mT
        expected = 3.4445 * expected + (-4.7750 * A + 2.0315 * A @ A) @ expected
    torch.testing.assert_close(orthogonal(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 128, 1152), (1, 512, 128), (3, 160, 160)])
def test_bfloat16_gives_nearly_what_float32_gives(shape: tuple[int, int, int]) -> None:
    """Also for momenta whose singular values span two powers of ten."""
    U, S, Vt = torch.linalg.svd(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    uneven = U @ torch.diag_embed(torch.logspace(0, -2, S.shape[-1]).expand_as(S)) @ Vt
    exact, rounded = orthogonal(uneven), orthogonal(uneven, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.linalg.matrix_norm(rounded, ord=2).max() < 1.35
    assert torch.cosine_similarity(exact.flatten(1), rounded.flatten(1)).min() > 0.99


@pytest.mark.parametrize(
    ("precision", "size", "rounded"),
    [
        ("float32", 128, False),
        ("bfloat16", 128, True),
        ("bfloat16", 64, False),
    ],
)
def test_the_precision_that_is_asked_for_is_computed_in(precision: str, size: int, rounded: bool) -> None:
    layer = nn.Linear(size, size, bias=False)
    config = OptimiserConfig.model_validate({"method": "muon", "learning_rate": 1.0, "precision": precision})
    optimiser = build_optimiser(config, layer)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(size, size, generator=torch.Generator().manual_seed(3))
    optimiser.step()
    update = (layer.weight.detach() - before * (1 - config.weight_decay)) / (-RMS * size**0.5)
    exact = orthogonal(layer.weight.grad[None])[0]
    assert bool((update - exact).abs().max() > 1e-4) is rounded
    torch.testing.assert_close(update, exact, rtol=0, atol=0.02)
    assert optimiser.state[layer.weight]["momentum"].dtype == torch.float32


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonal(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_processes_share_the_work_out_and_move_alike(precision: str) -> None:
    """Two processes, here threads, compute about half of the matrices each and end with the same weights as one."""
    config = OptimiserConfig.model_validate({"method": "muon", "learning_rate": 0.1, "precision": precision})
    alone = nn.Sequential(*(nn.Linear(128, size, bias=False) for size in (128, 128, 256, 32)), nn.Conv2d(16, 32, 3))
    barrier, board = threading.Barrier(2), {}

    def gather(rank: int, tensor: Tensor) -> list[Tensor]:
        board[rank] = tensor
        barrier.wait(300)
        return [board[0], board[1]]

    networks = [copy.deepcopy(alone) for _ in range(2)]
    computed: list[int] = []

    def train(rank: int, network: nn.Module, sharing: Sharing | None) -> None:
        optimiser = build_optimiser(config, network, sharing=sharing)
        for layer in network:
            layer.weight.grad = torch.full_like(layer.weight, 0.5).triu_()
        optimiser.step()
        computed.append(rank)

    train(0, alone, None)
    threads = [
        threading.Thread(target=train, args=(rank, network, Sharing(rank, 2, partial(gather, rank))))
        for rank, network in enumerate(networks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed) == [0, 0, 1]
    assert board[0].numel() < 0.75 * sum(p.numel() for p in alone.parameters()) * (4 if precision == "float32" else 2)
    for one, first, second in zip(alone.parameters(), *(each.parameters() for each in networks), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, one, rtol=0, atol=0 if precision == "float32" else 2e-3)


def test_the_costliest_work_is_dealt_first() -> None:
    assert owners([5, 3, 3, 1], 2) == [0, 1, 1, 0]
    assert owners([1, 1], 3) == [0, 1]


@pytest.mark.parametrize("name", LAYERS)
def test_whose_weights_are_hidden(name: str) -> None:
    layer, hidden = LAYERS[name]
    assert is_hidden(layer) is hidden


def test_every_parameter_is_moved_once_and_by_its_own_rule() -> None:
    network = nn.ModuleDict({"in": nn.Conv2d(3, 16, 3), "mid": nn.Conv2d(16, 32, 3), "norm": nn.GroupNorm(4, 32)})
    optimiser = build_optimiser(OptimiserConfig(method="muon", learning_rate=0.01, weight_decay=0.0), network)
    assert isinstance(optimiser, Muon)
    moved = [p for group in optimiser.param_groups for p in group["params"]]
    assert len(moved) == len(set(moved)) == len(list(network.parameters()))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    optimiser.step()
    change = {name: p.detach() - before[name] for name, p in network.named_parameters()}
    kernel = change["mid.weight"]
    assert float(kernel.square().mean().sqrt()) == pytest.approx(0.01 * RMS, rel=0.2)
    values = torch.linalg.svdvals(kernel.flatten(1))
    assert values.min() > 0.5 * values.max()
    torch.testing.assert_close(change["in.weight"].abs(), torch.full_like(change["in.weight"], 0.01), rtol=1e-3, atol=0)


def test_others_move_as_torch_moves_them() -> None:
    ours, theirs = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    theirs.load_state_dict(ours.state_dict())
    mine = build_optimiser(OptimiserConfig(method="muon", learning_rate=0.02, weight_decay=0.1), ours)
    reference = build_optimiser(OptimiserConfig(learning_rate=0.02, weight_decay=0.1), theirs)
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        reference.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_what_the_optimiser_keeps_is_what_is_counted(method: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.GroupNorm(4, 32))
    config = OptimiserConfig.model_validate({"method": method})
    optimiser = build_optimiser(config, network)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimiser.step()
    kept = [slot for slots in optimiser.state.values() for name, slot in slots.items() if name != "step"]
    assert sum(slot.numel() for slot in kept) == moments(config, network)
