"""How a run notices another program, on a machine whose times are given."""

from collections.abc import Callable

import pytest

from sfumato.training.threads import BUSY, PATIENCE, TRIED, ThreadChoice


class Machine:
    """Step times for one and two threads; how often a second of steps is interrupted."""

    def __init__(self, one: float, two: float, rate: float) -> None:
        self.one, self.two, self.rate = one, two, rate
        self.threads, self.count = 2, 0.0

    def use(self, threads: int) -> None:
        self.threads = threads

    def steps(self, choice: ThreadChoice, seconds: float) -> list[str]:
        said, passed = [], 0.0
        while passed < seconds:
            step = self.one if self.threads == 1 else self.two
            passed += step
            self.count += self.rate * step
            if (line := choice.after_step(step)) is not None:
                said.append(line)
        return said

    def choice(self) -> ThreadChoice:
        return ThreadChoice(2, self.use, lambda: int(self.count))


def test_an_idle_machine_keeps_all_threads() -> None:
    machine = Machine(one=0.14, two=0.095, rate=BUSY / 4)
    assert machine.steps(machine.choice(), 600) == []
    assert machine.threads == 2


def test_a_busy_core_is_noticed_within_seconds_and_all_threads_come_back() -> None:
    machine = Machine(one=0.14, two=4.7, rate=5 * BUSY)
    choice = machine.choice()
    said = machine.steps(choice, 4.7 + (TRIED + 2) * 0.14)
    assert machine.threads == 1
    assert ["one thread instead of 2, 4.7 -> 0.14 s a step" in line for line in said] == [True]
    machine.rate, machine.two = 0, 0.095
    said = machine.steps(choice, PATIENCE + 10)
    assert machine.threads == 2
    assert ["2 threads again" in line for line in said] == [True]


def test_a_run_that_begins_with_one_thread_tries_the_others_after_a_while() -> None:
    machine = Machine(one=0.14, two=0.095, rate=0)
    choice = ThreadChoice(2, machine.use, lambda: int(machine.count), start=1)
    assert machine.threads == 1
    assert machine.steps(choice, PATIENCE - 5) == []
    assert machine.threads == 1
    assert ["2 threads again" in line for line in machine.steps(choice, 15)] == [True]
    assert machine.threads == 2


@pytest.mark.parametrize("make", [lambda: Machine(one=0.9, two=0.5, rate=5 * BUSY)])
def test_one_thread_is_not_kept_where_it_is_slower(make: Callable[[], Machine]) -> None:
    """Many programs, or a network large enough; it is tried ever more rarely."""
    machine = make()
    choice, trials = machine.choice(), []
    for _ in range(40):
        before = machine.threads
        assert machine.steps(choice, 30) == []
        trials.append(machine.threads != before)
    assert machine.threads == 2
    assert sum(trials) < 5


def test_a_trial_of_all_threads_ends_with_the_first_slow_step() -> None:
    """The other program rests while it is counted and is back in the trial."""
    machine = Machine(one=0.14, two=4.7, rate=5 * BUSY)
    choice = machine.choice()
    machine.steps(choice, 12)
    machine.rate = 0
    seconds = [0.0, 0.0]
    passed = 0.0
    while passed < 2 * PATIENCE:
        step = machine.one if machine.threads == 1 else machine.two
        seconds[machine.threads - 1] += step
        passed += step
        choice.after_step(step)
    assert machine.threads == 1
    assert seconds[1] <= 2 * 4.7
