"""Everything that is published of a run, after every checkpoint and after the last step."""

from torch import nn

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.export.lora import save_adapters
from immiscible_diffusion.applications.stable_diffusion.export.model_card import model_card
from immiscible_diffusion.applications.stable_diffusion.export.pipeline import (
    save_pipeline,
    save_unets,
)
from immiscible_diffusion.applications.stable_diffusion.silence import quiet
from immiscible_diffusion.applications.stable_diffusion.unet import TextUNet
from immiscible_diffusion.training.ema import EMA
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import write_text


def publish(
    recipe: Recipe,
    run_dir: RunDir,
    codec: LatentCodec,
    model: nn.Module,
    ema: EMA,
    step: int,
) -> None:
    """Write what diffusers and others load.

    After every checkpoint ``unet/`` (the weights as they are) and ``unet_ema/`` (averaged), as
    diffusers' training script has them, and after the last step a whole pipeline whose ``unet/``
    are the averaged weights; of adapters, their files.
    """
    assert isinstance(model, TextUNet)
    with quiet():
        last, averaged = step >= recipe.steps, ema.model.unet
        if model.config.lora is not None:
            save_adapters(averaged, run_dir.root, recipe, step, len(codec.texts) > 1)
        else:
            save_unets(run_dir.root, model.unet, averaged, ema.state_dict(), last=last)
            if last:
                save_pipeline(run_dir.root, recipe, codec, averaged)
        write_text(run_dir.root / "README.md", model_card(recipe, step))
