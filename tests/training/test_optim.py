"""The learning rate over training: warm-up, then what the recipe's decay says."""

import dataclasses
import math

import pytest
import torch

from immiscible_diffusion.training.ema import EMA, EMAConfig
from immiscible_diffusion.training.optim import OptimizerConfig, lr_factor, make_optimizer
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer

STEPS = 1000


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_warm_up_is_the_same_whatever_follows(decay):
    settings = OptimizerConfig(warmup_steps=100, lr_schedule=decay)
    rates = [lr_factor(settings, step, STEPS) for step in range(100)]
    assert rates == pytest.approx([(step + 1) / 100 for step in range(100)])


def test_decay_follows_its_formula_down_to_nearly_nothing():
    for step in range(100, STEPS):
        left = (STEPS - step) / (STEPS - 100)
        settings = OptimizerConfig(warmup_steps=100)
        rates = [
            lr_factor(dataclasses.replace(settings, lr_schedule=decay), step, STEPS)
            for decay in ("constant", "linear", "cosine")
        ]
        assert rates == pytest.approx([1, left, math.sin(math.pi * left / 2) ** 2])
    assert 0 < rates[2] < rates[1] < 0.002


@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("constant_with_warmup", {}, {}),
        ("cosine_with_restarts", {"lr_num_cycles": 3}, {"num_cycles": 3}),
        ("polynomial", {"lr_power": 2.0}, {"power": 2.0}),
    ],
)
def test_diffusers_schedules_are_diffusers(name, ours, options):
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=STEPS, **options)
    settings = OptimizerConfig(warmup_steps=0, lr_schedule=name, **ours)
    for step in range(STEPS):
        assert lr_factor(settings, step, STEPS) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    settings = OptimizerConfig(warmup_steps=100, lr_schedule="cosine")
    rates = [lr_factor(settings, step, 10) for step in range(10)]
    assert rates == pytest.approx([(step + 1) / 100 for step in range(10)])


def test_the_optimizer_takes_the_rates():
    settings = OptimizerConfig(lr=0.1, warmup_steps=5, lr_schedule="linear")
    optimizer, schedule = make_optimizer(settings, torch.nn.Linear(2, 1), 20)
    for step in range(20):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * lr_factor(settings, step, 20))
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0


def test_decay_needs_the_number_of_steps():
    with pytest.raises(ValueError, match="needs the number of steps"):
        make_optimizer(OptimizerConfig(lr_schedule="cosine"), torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match="lr_schedule must be one of constant, constant_with_warmup, linear, cosine"):
        OptimizerConfig(lr_schedule="exponential")


def test_a_run_that_stops_and_goes_on_has_the_same_rates(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, optim=OptimizerConfig(warmup_steps=2, lr_schedule="cosine"), log_every=1)
    for folder, stops in (("whole", [8]), ("parts", [3, 8])):
        for until in stops:
            run = RunDir.open(tmp_path / folder, recipe)
            Trainer(recipe, run, device="cpu").train(until=until, quiet=True)
    whole, parts = (
        [record["lr"] for record in RunDir(tmp_path / name).records("train")] for name in ("whole", "parts")
    )
    assert whole == parts
    assert whole[-1] == 0


def test_the_average_ramps_up_by_a_power():
    """Diffusion Policy's: decay 1 - (1 + n)^-0.75 at update n from 0, at most ``decay``."""
    model = torch.nn.Linear(1, 1, bias=False)
    settings = EMAConfig(decay=0.6, power=0.75)
    average = EMA(settings, model)
    expected = None
    for update in range(8):
        with torch.no_grad():
            model.weight.fill_(float(update**2))
        decay = min(0.6, 1 - (1 + update) ** -0.75)
        expected = update**2 if update == 0 else decay * expected + (1 - decay) * update**2
        average.update(model)
        assert float(average.model.weight) == pytest.approx(expected, rel=1e-6)
    assert str(settings) == "0.6, ramped up by a power of 0.75"
    with pytest.raises(ValueError, match="are two ramps"):
        EMAConfig(warmup=True, power=0.75)
