"""How many threads a fit computes with."""

from dataclasses import replace

import pytest
import torch

from fit.synthetic import EMOJI, SERVER, machine
from sfumato.errors import UserError
from sfumato.fit.facts import Pace
from sfumato.fit.lines import plan_lines
from sfumato.fit.plan import FitPlan, make_plan
from sfumato.fit.threads import VARIABLE, fix_threads, one_is_faster, with_threads


class Timed:
    """Paces of the denoiser by the number of threads in use."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.threads = seconds, max(seconds)

    def use(self, threads: int) -> None:
        self.threads = threads

    def first(self, plan: FitPlan) -> Pace:
        raise AssertionError

    def second(self, plan: FitPlan) -> Pace:
        return Pace(self.seconds[self.threads], 1e9)


def plan_of(seconds: float, fixed: bool = False) -> FitPlan:
    """A plan for two threads whose denoiser takes so long for an image."""
    plan = make_plan(EMOJI, machine(SERVER), 3600)
    paces = {plan.second.key: Pace(seconds, 1e9)}
    return replace(plan, machine=replace(plan.machine, second=paces, threads=2, threads_fixed=fixed))


@pytest.mark.parametrize(("two", "fixed", "faster"), [(0.05, False, False), (1.0, False, True), (1.0, True, False)])
def test_one_thread_is_chosen_where_it_is_faster(two: float, fixed: bool, faster: bool) -> None:
    timed = Timed({1: 0.07, 2: two})
    assert one_is_faster(plan_of(two, fixed), timed, timed.use) is faster
    assert timed.threads == (1 if faster else 2)


def test_threads_that_are_set_stay_and_the_plan_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    fix_threads(1, 2)
    plan = make_plan(EMOJI, with_threads(machine(SERVER)), 3600)
    assert plan_lines(plan)[0].startswith("machine      a machine, 2 cores, 1 thread (set), ")
    measured = replace(plan, machine=replace(plan.machine, threads_fixed=False))
    assert "1 thread (measured to be faster than 2 now)" in plan_lines(measured)[0]
    every = replace(plan, machine=replace(plan.machine, threads=2))
    assert plan_lines(every)[0].startswith("machine      a machine, 2 cores, float32")
    with pytest.raises(UserError, match="--threads is 3, but this process may use 2 cores: give 2 or fewer"):
        fix_threads(3, 2)
