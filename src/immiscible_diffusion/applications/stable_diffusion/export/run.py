"""Everything that is published of a run, after every checkpoint and after the last step."""

from typing import Any

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.export.lora import save_adapters
from immiscible_diffusion.applications.stable_diffusion.export.model_card import model_card
from immiscible_diffusion.applications.stable_diffusion.export.pipeline import (
    save_pipeline,
    save_unets,
)
from immiscible_diffusion.applications.stable_diffusion.silence import quiet
from immiscible_diffusion.applications.stable_diffusion.unet import TextUNet
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import write_text


def publish(recipe: Recipe, run: RunDir, codec: Codec, bare: Any, average: Any, step: int) -> None:
    """Write what diffusers and others load; nothing of a network that is not told by text.

    After every checkpoint ``unet/`` (the weights as they are) and ``unet_ema/`` (averaged), as
    diffusers' training script has them, and after the last step a whole pipeline whose ``unet/``
    are the averaged weights; of adapters, their files.
    """
    if not isinstance(bare, TextUNet) or not isinstance(codec, LatentCodec):
        return
    with quiet():
        _publish(recipe, run, codec, bare, average, step)


def _publish(
    recipe: Recipe, run: RunDir, codec: LatentCodec, bare: TextUNet, average: Any, step: int
) -> None:
    last = step >= recipe.steps
    averaged = average.current().unet
    if recipe.model.lora is not None:  # type: ignore[union-attr]
        save_adapters(averaged, run.root, recipe, step, len(codec.texts) > 1)
    else:
        save_unets(run.root, bare.unet, averaged, average.state_dict(), last=last)
        if last:
            save_pipeline(run.root, recipe, codec, averaged)
    write_text(run.root / "README.md", model_card(recipe, step))
