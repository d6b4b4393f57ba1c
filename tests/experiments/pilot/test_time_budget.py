import signal
import time

import pytest

from immiscible_diffusion.experiments.pilot.time_budget import (
    ENOUGH_STEPS,
    MAX_SEEDS,
    MAX_STEPS,
    MIN_STEPS,
    SHARE,
    Timing,
    divide,
    minutes_for,
    stop_after,
)
from immiscible_diffusion.utils.signals import InterruptGuard


@pytest.mark.parametrize("minutes", [0.5, 1, 3, 10, 60, 600])
@pytest.mark.parametrize("step", [0.001, 0.02, 0.2, 3.0])
@pytest.mark.parametrize("evaluation", [0.01, 1.0, 20.0])
def test_the_plan_fits_into_the_minutes(minutes, step, evaluation):
    timing = Timing(step, evaluation, 0.5)
    division = divide(minutes, timing)
    if division is None:
        assert minutes_for(timing, 3) > minutes - 1
        return
    assert division.seconds <= 60 * minutes * SHARE + 1e-6
    assert 3 <= division.seeds <= MAX_SEEDS
    assert MIN_STEPS <= division.steps <= MAX_STEPS
    assert division.eval_steps[-1] == division.steps
    if division.seeds > 5:
        assert division.steps >= ENOUGH_STEPS


def test_more_minutes_never_mean_fewer_seeds():
    timing = Timing(0.05, 0.5, 0.5)
    plans = [divide(minutes, timing) for minutes in (1, 2, 3, 5, 10, 30, 100)]
    seeds = [0 if plan is None else plan.seeds for plan in plans]
    assert seeds == sorted(seeds)
    assert seeds[-1] == MAX_SEEDS


def test_the_minutes_it_asks_for_would_do():
    timing = Timing(2.0, 10.0, 1.0)
    assert divide(5, timing) is None
    assert divide(minutes_for(timing, 5), timing).seeds >= 5


def test_what_is_asked_for_is_done():
    timing = Timing(0.05, 0.5, 0.5)
    assert divide(10, timing, seeds=4).seeds == 4
    assert divide(10, timing, steps=300).steps == 300
    plan = divide(0.01, timing, seeds=3, steps=8)
    assert (plan.seeds, plan.steps) == (3, 8)
    assert divide(0.1, timing, steps=4000) is None


def test_a_curve_is_left_out_where_evaluation_costs_much():
    assert len(divide(10, Timing(0.05, 0.1, 0)).eval_steps) == 3
    assert len(divide(30, Timing(0.05, 60.0, 0)).eval_steps) == 1


def test_time_is_up_like_a_signal_in_whatever_training_runs_then():
    with stop_after(60) as over, InterruptGuard() as guard:
        time.sleep(0.05)
        assert not over.is_set()
        assert guard.received is None
    with stop_after(0) as over:
        time.sleep(0.05)  # nobody listens: nothing happens
        with InterruptGuard() as guard:
            for _ in range(40):
                time.sleep(0.05)
                if guard.received:
                    break
        assert over.is_set()
        assert guard.received == signal.SIGTERM
