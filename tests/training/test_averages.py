"""Power-function averages: their profiles, their snapshots, and other widths made from them after the training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sfumato
from command_line import Command, Runs
from sfumato.checkpoint import load_tensors
from sfumato.cli.guides import weaker_of
from sfumato.errors import UserError
from sfumato.training.averages import ema, snapshots
from sfumato.training.averages.ema import PowerAverages, exponent_of_width, power_decay_at
from sfumato.training.averages.posthoc import Profile, combine, inner_product, weighed_sum
from sfumato.training.averages.snapshots import found_in, nearest, save_snapshot, snapshots_of, to_keep

STEPS = 640


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.721)])
def test_exponents_are_those_of_the_paper_and_have_the_width(width: float, gamma: float) -> None:
    found = exponent_of_width(width)
    assert found == pytest.approx(gamma, abs=0.005)
    assert (found + 1) ** 0.5 / ((found + 2) * (found + 3) ** 0.5) == pytest.approx(width)


def test_an_average_is_the_sum_under_its_profile() -> None:
    values = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    average = torch.full((5,), 99.0, dtype=torch.float64)  # what it begins with does not matter
    for n, value in enumerate(values, start=1):
        average = torch.lerp(average, value, 1 - power_decay_at(n, 0.1))
    power = exponent_of_width(0.1) + 1
    edges = torch.arange(31, dtype=torch.float64) ** power
    expected = ((edges[1:] - edges[:-1])[:, None] * values).sum(0) / 30**power
    torch.testing.assert_close(average, expected)


@pytest.mark.parametrize(("a", "b"), [(Profile(70, 0.05), Profile(100, 0.1)), (Profile(100, 0.2), Profile(40, 0.08))])
def test_inner_products_are_the_integrals(a: Profile, b: Profile) -> None:
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 2000

    def density(p: Profile) -> Tensor:
        g = exponent_of_width(p.width)
        return torch.where(tau <= p.end, (g + 1) * (tau / p.end) ** g / p.end, 0)

    assert inner_product(a, b) == pytest.approx(float((density(a) * density(b)).sum() / 2000), rel=1e-4)
    assert inner_product(b, a) == inner_product(a, b)


def test_a_profile_that_is_there_is_taken_and_the_shares_add_up_to_one() -> None:
    profiles = [Profile(end, width) for end in (25, 50, 100) for width in (0.05, 0.1)]
    same = combine(profiles, Profile(100, 0.1))
    torch.testing.assert_close(torch.tensor(same.shares), torch.tensor([0.0, 0, 0, 0, 0, 1]), atol=1e-3, rtol=0)
    assert same.miss < 1e-3
    other = combine(profiles, Profile(100, 0.07))
    assert sum(other.shares) == pytest.approx(1, abs=1e-9)
    assert 1e-4 < other.miss < 0.1
    assert combine(profiles[:2], Profile(100, 0.02)).miss > 0.5


def test_a_width_made_afterwards_is_the_one_tracked(tmp_path: Path) -> None:
    """A small network that really learns, with Adam on noisy batches; snapshots are files in half precision."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    teacher = nn.Linear(8, 3).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    config = PowerAverages()
    tracked = ema.power_averages_of(network, config)
    wanted = {width: ema.average_of(network) for width in (0.04, 0.075, 0.15)}
    for step in range(1, STEPS + 1):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        (network(x) - torch.tanh(teacher(x))).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        ema.update_powers(tracked, network, config, step)
        for width, shadow in wanted.items():
            ema.update(shadow, network, power_decay_at(step, width))
        if step % 20 == 0:
            for width, shadow in zip(config.widths, tracked, strict=True):
                save_snapshot(tmp_path, step, width, dict(shadow.named_parameters()), step)
    found = found_in(tmp_path)
    assert len(found) == 2 * STEPS // 20
    tensors = load_tensors(found[-1].path)[0]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    for width, shadow in wanted.items():
        mixed = combine([Profile(s.step, s.width) for s in found], Profile(STEPS, width))
        made = weighed_sum(found, mixed.shares)
        truth = dict(shadow.named_parameters())
        distance = sum(float((made[name] - truth[name]).square().sum()) for name in truth) ** 0.5
        length = sum(float(value.square().sum()) for value in truth.values()) ** 0.5
        assert distance / length < 1e-3, f"width {width}: {distance / length:.2e}"
        last = {name: tensor.float() for name, tensor in tensors.items()}
        unmixed = sum(float((last[name] - truth[name]).square().sum()) for name in truth) ** 0.5 / length
        assert distance / length < 0.2 * unmixed, "the newest snapshot alone is much farther away"


def test_values_beyond_half_precision_stay_whole(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 1, 0.05, {"large": torch.tensor([1e6, 1.0]), "small": torch.tensor([0.1])}, 1)
    tensors, numbers = load_tensors(found_in(tmp_path)[0].path)
    assert tensors["large"].tolist() == [1e6, 1.0]
    assert tensors["small"].dtype == torch.float16
    assert numbers == {"step": 1, "width": 0.05, "updates": 1}


def test_older_snapshots_are_thinned_out_evenly() -> None:
    there: set[int] = set()
    for step in [*range(10, 1000, 10), 995]:
        there = {*there, step} & to_keep(step, 10, 8)
        assert 4 <= len(there) <= 8 or step < 40
        assert there == to_keep(step, 10, 8), "nothing that is wanted later was thrown away before"
    assert there == {160, 320, 480, 640, 800, 960, 995}


@pytest.mark.parametrize(("widths", "message"), [((0.3,), "0.3 is outside"), ((0.1, 0.1), "once")])
def test_impossible_widths_are_refused(widths: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerAverages(widths=widths)


def test_the_weaker_version_is_an_early_one_of_the_narrow_width() -> None:
    found = [snapshots.Snapshot(step, width, Path()) for step in (100, 200, 300, 400) for width in (0.05, 0.1)]
    assert nearest(found, None, None) == found[0]
    assert nearest(found, 290, 0.2) == found[5]


def test_a_run_s_average_is_a_model(command: Command, runs: Runs, tmp_path: Path) -> None:
    assert [s.step for s in snapshots_of(runs.plain)] == [1, 1, 2, 2, 3, 3, 4, 4]
    done = command("ema", runs.plain, "--width", 0.1, "--out", tmp_path / "model")
    assert (done.code, done.err) == (0, "")
    made = sfumato.load(tmp_path / "model")
    assert made.config.about["diffusion"]["average"] == {"width": 0.1, "step": 4}
    tracked = sfumato.load_snapshot(runs.plain, step=4, width=0.1)
    assert made.second is not None
    assert tracked.second is not None
    for name, parameter in made.second.denoiser.named_parameters():
        torch.testing.assert_close(parameter, tracked.second.denoiser.get_parameter(name), atol=2e-4, rtol=1e-3)
    early = sfumato.load_snapshot(snapshots_of(runs.plain)[0].path)
    assert early.digest != tracked.digest
    weaker = weaker_of(runs.plain, torch.device("cpu"))
    assert weaker is not None
    assert weaker.digest == sfumato.load_snapshot(runs.plain).digest
    guide = ("-n", 1, "--steps", 1, "--autoguide", runs.plain, "--out", tmp_path / "led")
    assert command("sample", runs.plain, *guide).err == ""
    assert early.sample_tensor(count=1, steps=1).shape == tracked.sample_tensor(count=1, steps=1).shape


def test_what_no_snapshot_gives_is_refused(command: Command, runs: Runs, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "model")
    assert "holds no snapshots" in command("ema", runs.text, "--width", 0.1, *out).err
    assert "outside 0.01 to 0.28" in command("ema", runs.plain, "--width", 0.5, *out).err
    assert (
        "no snapshot of step 9: choose one of 1, 2, 3, 4"
        in command("ema", runs.plain, "--width", 0.1, "--step", 9, *out).err
    )
    assert "too far from those" in command("ema", runs.plain, "--width", 0.02, *out).err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    refused = command("ema", runs.plain, "--width", 0.1, "--out", tmp_path / "used")
    assert (refused.code, "is in use, it holds 'mine.txt'" in refused.err) == (2, True)
    with pytest.raises(UserError, match="is not a snapshot"):
        sfumato.load_snapshot(runs.plain / "config.yaml")
