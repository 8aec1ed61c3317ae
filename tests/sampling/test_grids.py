"""Grids: the original's numbers where it has them, strict descent and the promised number of steps everywhere."""

import pytest
import torch

from parity import golden, needs_parity
from sfumato.diffusion.process import network_time
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.errors import UserError
from sfumato.sampling.grids import AYS, GridConfig, build_grid, resampled, tail
from sfumato.sampling.sampler import level
from sfumato.sampling.table import SAMPLERS, default_grid

LINEAR = build_schedule(ScaledLinearConfig())
KINDS = ["leading", "trailing", "linspace", "quadratic", "karras", "log-snr", "ays"]
SCHEDULES = [
    ScaledLinearConfig(),
    CosineConfig(),
    ScaledLinearConfig(steps=20),
    ScaledLinearConfig(zero_terminal_snr=True),
    FlowConfig(),
]


def indices(kind, steps, **options):
    return network_time(build_grid(GridConfig(kind=kind, **options), LINEAR, steps), 1000)


@needs_parity
@pytest.mark.parametrize("steps", [1, 10, 20, 50, 100, 200, 250, 500])
def test_leading_is_the_originals_uniform_grid(steps):
    found = indices("leading", steps)
    assert torch.equal(found[:-1].flip(0), golden("misc")[f"ddim_timesteps/{steps}"].double())
    assert found[-1] == 0


@needs_parity
def test_quadratic_is_the_originals_but_visits_nothing_twice():
    found, original = indices("quadratic", 50)[:-1].flip(0), golden("misc")["ddim_timesteps/quad50"].double()
    assert torch.equal(found[4:], original[4:])
    assert original[:4].tolist() == [1, 1, 2, 3]
    assert found[:4].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", SCHEDULES, ids=repr)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_every_grid_falls_strictly_and_has_the_steps_asked_for(kind, config, shift):
    schedule = build_schedule(config)
    for steps in [1, 2, 3, 9, 19, 20, 30, 60, 110, 300, 501, 999, 1000]:
        if steps > schedule.steps:
            continue
        grid = build_grid(GridConfig(kind=kind, shift=shift), schedule, steps)
        assert grid.shape == (steps + 1,)
        assert grid.dtype == torch.float64
        assert (grid.diff() < 0).all()
        assert grid[0] <= 1
        assert grid[-1] in (0, 1 / schedule.steps)


def test_steps_where_the_original_crashes_or_miscounts_are_evenly_spread():
    for steps in [3, 9, 30, 36, 64, 105, 300, 400, 700]:
        found = indices("leading", steps)[:-1].flip(0)
        gaps = found.diff()
        assert found[0] == 1
        assert found[-1] <= 999
        assert gaps.max() - gaps.min() <= 1


def test_all_steps_visit_every_index():
    for kind in ["leading", "trailing", "linspace"]:
        assert torch.equal(indices(kind, 1000), torch.arange(999, -2, -1).double())


def test_trailing_and_linspace_begin_in_the_noisiest_step():
    assert indices("trailing", 4).tolist() == [999, 749, 499, 249, -1]
    assert indices("linspace", 4).tolist() == [999, 666, 333, 0, -1]
    assert indices("linspace", 1).tolist() == [999, -1]
    assert indices("trailing", 4, end="first-index").tolist() == [999, 749, 499, 249, 0]


def test_noise_level_grids_are_uniform_in_what_they_say():
    grid = build_grid(GridConfig(kind="log-snr"), LINEAR, 12)
    gaps = LINEAR.log_snr(grid[:-1]).diff()
    torch.testing.assert_close(gaps, gaps[0].expand(11), rtol=1e-9, atol=0)
    assert grid[0] == 1
    assert grid[-2].item() == pytest.approx(0.001)
    ratios = torch.tensor([level(LINEAR, t).noise_ratio for t in build_grid(GridConfig(kind="karras"), LINEAR, 12)])
    roots = ratios[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[0].expand(11), rtol=1e-4, atol=0)


def test_where_the_noisiest_step_is_pure_noise_it_is_still_visited_first():
    for config in [FlowConfig(), ScaledLinearConfig(zero_terminal_snr=True)]:
        grid = build_grid(GridConfig(kind="log-snr"), build_schedule(config), 10)
        assert grid[0] == 1
        assert grid[1].item() == pytest.approx(0.999)


def test_shift_moves_flow_times_towards_noise():
    flow = build_schedule(FlowConfig())
    plain, shifted = (build_grid(GridConfig(kind="trailing", shift=s), flow, 4) for s in (1.0, 3.0))
    torch.testing.assert_close(plain, torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))


def test_explicit_times():
    times = (0.9, 0.5, 0.2, 0.0)
    assert build_grid(GridConfig(kind="times", times=times), LINEAR, 3).tolist() == list(times)
    with pytest.raises(UserError, match="4 steps need 5"):
        build_grid(GridConfig(kind="times", times=times), LINEAR, 4)
    for wrong in [(0.5, 0.5), (0.2, 0.5), (1.5, 0.0), (0.5, -0.1)]:
        with pytest.raises(UserError, match="fall strictly"):
            build_grid(GridConfig(kind="times", times=wrong), LINEAR, 1)


def test_ays_is_the_published_list_on_the_schedule_it_was_found_for():
    schedulers = pytest.importorskip("diffusers.schedulers")
    published = schedulers.AysSchedules["StableDiffusionSigmas"]
    assert list(AYS[:-1]) == published[:-1]
    stable_diffusion = build_schedule(ScaledLinearConfig(start=0.00085, end=0.012))
    grid = build_grid(GridConfig(kind="ays"), stable_diffusion, 10)
    ratios = torch.tensor([level(stable_diffusion, t).noise_ratio for t in grid[:-1]])
    torch.testing.assert_close(ratios, torch.tensor(published[:-1]), rtol=0.01, atol=0)
    indices = network_time(grid[:-1], 1000)
    wanted = torch.tensor(schedulers.AysSchedules["StableDiffusionTimesteps"], dtype=torch.float64)
    assert (indices - wanted).abs().max() < 12  # theirs were rounded from other tables
    twice = build_grid(GridConfig(kind="ays"), stable_diffusion, 20)
    torch.testing.assert_close(twice[:-1:2], grid[:-1], rtol=1e-6, atol=1e-9)


def test_a_list_is_stretched_in_lambda():
    times = (1.0, 0.7, 0.2, 0.0)
    assert resampled(times, LINEAR, 3) == times
    longer = torch.tensor(resampled(times, LINEAR, 5), dtype=torch.float64)
    assert (longer[0], longer[2], longer[4], longer[5]) == (1.0, pytest.approx(0.7), pytest.approx(0.2), 0.0)
    middle = (LINEAR.log_snr(1.0) + LINEAR.log_snr(0.7)) / 2
    torch.testing.assert_close(LINEAR.log_snr(longer[1]), middle)
    for steps in [1, 2, 4, 9, 40]:
        for schedule in [LINEAR, build_schedule(FlowConfig())]:
            grid = torch.tensor(resampled(times, schedule, steps))
            assert len(grid) == steps + 1
            assert (grid.diff() < 0).all()
            assert (grid[0], grid[-1]) == (1, 0)
    with pytest.raises(UserError, match="fall strictly"):
        resampled((0.2, 0.7), LINEAR, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_steps_are_refused(kind):
    with pytest.raises(UserError, match="steps is 0"):
        build_grid(GridConfig(kind=kind), LINEAR, 0)


def test_too_many_steps_are_refused_where_the_table_ends():
    with pytest.raises(UserError, match="steps is 1001, but the leading grid has at most the model's 1000"):
        build_grid(GridConfig(kind="leading"), LINEAR, 1001)
    assert len(build_grid(GridConfig(kind="log-snr"), LINEAR, 1500)) == 1501
    with pytest.raises(UserError, match="steps is 10001: give at most 10000"):
        build_grid(GridConfig(kind="log-snr"), LINEAR, 10001)
    with pytest.raises(UserError, match="already visits index 0"):
        build_grid(GridConfig(kind="linspace", end="first-index"), LINEAR, 10)


def test_tail_keeps_a_share_of_the_steps():
    grid = build_grid(GridConfig(kind="trailing"), LINEAR, 10)
    assert torch.equal(tail(grid, 0.4), grid[6:])
    assert torch.equal(tail(grid, 1.0), grid)
    assert torch.equal(tail(grid, 0.01), grid[9:])
    for wrong in [0.0, 1.2, -1.0]:
        with pytest.raises(UserError, match="strength"):
            tail(grid, wrong)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_default_grids(kind):
    config = SAMPLERS[kind].config()
    assert default_grid(config, LINEAR).kind == SAMPLERS[kind].grid
    for pure_noise in [FlowConfig(), ScaledLinearConfig(zero_terminal_snr=True)]:
        schedule = build_schedule(pure_noise)
        grid = build_grid(default_grid(config, schedule), schedule, 10)
        assert (grid[0] == 1) == (kind != "plms")
