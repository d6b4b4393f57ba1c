"""What a text-to-image run leaves for other programs: weights in diffusers' layout, LoRA, a card.

``publish`` writes it after every checkpoint, ``push`` uploads it after the last step.
"""

from torch import nn

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.export.lora import save_lora
from immiscible_diffusion.applications.stable_diffusion.export.model_card import (
    check_before,
    model_card,
    push,
)
from immiscible_diffusion.applications.stable_diffusion.export.pipeline import (
    save_pipeline,
    save_unets,
)
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging
from immiscible_diffusion.applications.stable_diffusion.unet import TextUNet
from immiscible_diffusion.training.ema import EMA
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import write_text

__all__ = ["check_before", "model_card", "publish", "push"]


def publish(
    recipe: Recipe, run_dir: RunDir, codec: LatentCodec, model: nn.Module, ema: EMA, step: int
) -> None:
    """Write what diffusers and others load.

    After every checkpoint ``unet/`` (current weights) and ``unet_ema/`` (averaged), like diffusers'
    training script, and after the last step a complete pipeline whose ``unet/`` has the averaged
    weights; of LoRA the adapters' files.
    """
    assert isinstance(model, TextUNet)
    with silence_hf_logging():
        averaged, last = ema.model.unet, step >= recipe.steps
        if model.config.lora is not None:
            save_lora(averaged, run_dir.root, recipe, step, sdxl=len(codec.texts) > 1)
        else:
            save_unets(run_dir.root, model.unet, averaged, ema.state_dict(), last=last)
            if last:
                save_pipeline(run_dir.root, recipe, codec, averaged)
    write_text(run_dir.root / "README.md", model_card(recipe, step))
