import pytest

from immiscible_diffusion.experiments.pilot.division import (
    ENOUGH_STEPS,
    FEWEST_STEPS,
    MOST_SEEDS,
    MOST_STEPS,
    SHARE,
    Timing,
    divide,
    minutes_for,
)


@pytest.mark.parametrize("minutes", [0.5, 1, 3, 10, 60, 600])
@pytest.mark.parametrize("step", [0.001, 0.02, 0.2, 3.0])
@pytest.mark.parametrize("judging", [0.01, 1.0, 20.0])
def test_the_plan_fits_into_the_minutes(minutes, step, judging):
    timing = Timing(step, judging, 0.5)
    division = divide(minutes, timing)
    if division is None:
        assert minutes_for(timing, 3) > minutes - 1
        return
    assert division.seconds <= 60 * minutes * SHARE + 1e-6
    assert 3 <= division.seeds <= MOST_SEEDS
    assert FEWEST_STEPS <= division.steps <= MOST_STEPS
    assert division.at[-1] == division.steps
    if division.seeds > 5:
        assert division.steps >= ENOUGH_STEPS


def test_more_minutes_never_mean_fewer_seeds():
    timing = Timing(0.05, 0.5, 0.5)
    plans = [divide(minutes, timing) for minutes in (1, 2, 3, 5, 10, 30, 100)]
    seeds = [0 if plan is None else plan.seeds for plan in plans]
    assert seeds == sorted(seeds)
    assert seeds[-1] == MOST_SEEDS


def test_the_minutes_it_asks_for_would_do():
    timing = Timing(2.0, 10.0, 1.0)
    assert divide(5, timing) is None
    needed = minutes_for(timing, 5)
    assert divide(needed, timing).seeds >= 5


def test_what_is_asked_for_is_done():
    timing = Timing(0.05, 0.5, 0.5)
    assert divide(10, timing, seeds=4).seeds == 4
    assert divide(10, timing, steps=300).steps == 300
    plan = divide(0.01, timing, seeds=3, steps=8)
    assert (plan.seeds, plan.steps) == (3, 8)
    assert divide(0.1, timing, steps=4000) is None


def test_a_curve_is_left_out_where_judging_costs_much():
    assert len(divide(10, Timing(0.05, 0.1, 0)).at) == 3
    assert len(divide(30, Timing(0.05, 60.0, 0)).at) == 1
