"""The training step reads the same in the trainer, the example, the README and the design page."""

import re

import pytest

from helpers import ROOT

STEP = [
    "t = path.sample_time(len(batch.data), generator=batch.rng.time)",
    "cond = task.drop_conditions(batch.cond, batch.rng)",
    "losses = loss_fn(model, path, batch.data, batch.noise, t, cond, batch.mask, progress=step / steps)",
    "accelerator.backward(losses.mean())",
    "optimizer.step()",
    "ema.update(model)",
]
PLACES = ["src/immiscible_diffusion/training/trainer.py", "examples/own_trainer.py", "docs/design.md", "README.md"]


def squeezed(text: str) -> str:
    """``text`` without white space and line breaks inside brackets."""
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("place", PLACES)
def test_the_lines_of_the_step_stand_in_order(place):
    text = squeezed((ROOT / place).read_text(encoding="utf-8"))
    position = text.index(squeezed(STEP[0]))
    for line in STEP[1:]:
        position = text.index(squeezed(line), position)


@pytest.mark.parametrize("place", PLACES)
def test_the_loop_is_over_a_paired_loader(place):
    text = squeezed((ROOT / place).read_text(encoding="utf-8")).replace("self.", "")
    assert "PairedLoader(loader,coupling,task.encode," in text
