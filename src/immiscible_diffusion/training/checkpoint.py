"""The state of a training run: everything that a step changes; randomness is keyed, not saved."""

from typing import TYPE_CHECKING, Any

from immiscible_diffusion.models.trainable import load_trainable_state, trainable_state

if TYPE_CHECKING:
    from immiscible_diffusion.training.trainer import Trainer


def state_dict(trainer: "Trainer") -> dict[str, Any]:
    """Return the state to resume from; of a model trained in part, that part."""
    scaler = trainer.accelerator.scaler
    return {
        "step": trainer.step,
        "scaling": trainer.recipe.scaling.factor,
        "model": trainable_state(trainer.run.model),
        "optimizer": trainer.optimizer.state_dict(),
        "lr_schedule": trainer.lr_schedule.state_dict(),
        "ema": trainer.ema.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }


def load_checkpoint(trainer: "Trainer") -> None:
    """Go back to the run's checkpoint, or stay at step 0 where there is none.

    Raises:
        ValueError: the checkpoint cannot be read or is of another recipe; names its file.
    """
    state = trainer.run_dir.load_checkpoint()
    if state is None:
        return
    factor = trainer.recipe.scaling.factor
    try:
        if state["scaling"] != factor:
            raise ValueError(f"scaling.factor was {state['scaling']}, the recipe has {factor}")
        load_trainable_state(trainer.run.model, state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.lr_schedule.load_state_dict(state["lr_schedule"])
        trainer.ema.load_state_dict(state["ema"], trainer.device)
        if state["scaler"] is not None:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])
        trainer.step = state["step"]
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{trainer.run_dir.checkpoint} is not a checkpoint of this recipe ({error}); "
            f"choose another --out, or remove it to start from step 0"
        ) from error
