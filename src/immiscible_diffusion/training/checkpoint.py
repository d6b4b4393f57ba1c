"""What a checkpoint holds of a trainer, and how it is taken up."""

import os
import signal
from pathlib import Path
from typing import Any

from immiscible_diffusion.models.trainable import (
    load_trainable_state,
    trainable_names,
    trainable_state,
)
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard


def trainer_state(trainer: Any) -> dict[str, Any]:
    """Everything that a step changes; of a model trained in part, that part."""
    scaler = trainer.accelerator.scaler
    return {
        "step": trainer.step,
        "scaling": trainer.recipe.scaling.factor,
        "model": trainable_state(trainer.bare, trainable_names(trainer.bare)),
        "optimizer": trainer.optim.state_dict(),
        "warmup": trainer.warmup.state_dict(),
        "average": trainer.average.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }


def taken_up(trainer: Any, state: dict[str, Any]) -> None:
    """Take up what ``trainer_state`` gave; ValueError if it was of data scaled otherwise."""
    factor = state.get("scaling", 1.0)
    if factor != trainer.recipe.scaling.factor:
        raise ValueError(
            f"it was trained with scaling.factor {factor}, the recipe has "
            f"{trainer.recipe.scaling.factor}"
        )
    load_trainable_state(trainer.bare, state["model"], trainable_names(trainer.bare))
    trainer.optim.load_state_dict(state["optimizer"])
    trainer.warmup.load_state_dict(state["warmup"])
    trainer.average.load_state_dict(state["average"], trainer.device)
    if state["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.step = state["step"]


def loaded(trainer: Any, state: dict[str, Any]) -> None:
    """The same of the run's checkpoint; ValueError names its file if it does not fit."""
    try:
        trainer.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{trainer.run.checkpoint} is not a checkpoint of this recipe ({error}); "
            f"choose another --out, or remove it to start from step 0"
        ) from error


def stopped_at(guard: InterruptGuard, step: int, steps: int, folder: Path) -> Interrupted:
    """What to raise on a signal: says where it stopped and how to go on."""
    return Interrupted(
        guard.received or signal.SIGTERM,
        f"stopped at step {step} of {steps}; the checkpoint is in {folder}{os.sep}; the same "
        f"command goes on from there",
    )
