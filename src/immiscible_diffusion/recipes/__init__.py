"""The recipes by name; each is a function that returns a frozen Recipe."""

import difflib
from collections.abc import Callable

from immiscible_diffusion.recipes.consistency import (
    celeba_consistency,
    cifar10_consistency,
    digits_consistency,
    tiny_imagenet_consistency,
)
from immiscible_diffusion.recipes.diffusion import cifar10_ddim, digits_ddim
from immiscible_diffusion.recipes.flow_matching import (
    cifar10_flow,
    cifar10_otcfm,
    digits_flow,
    fashion_flow,
)
from immiscible_diffusion.recipes.pusht import pusht_policy, pusht_policy_small
from immiscible_diffusion.recipes.stable_diffusion import (
    coco_sd,
    imagenet_sd_finetune,
    imagenet_sd_scratch,
    sd_inpaint,
    sd_lora,
    sd_outpaint,
    sdxl_lora,
)
from immiscible_diffusion.training.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits-flow": digits_flow,
    "fashion-flow": fashion_flow,
    "cifar10-flow": cifar10_flow,
    "cifar10-otcfm": cifar10_otcfm,
    "digits-ddim": digits_ddim,
    "cifar10-ddim": cifar10_ddim,
    "digits-consistency": digits_consistency,
    "cifar10-consistency": cifar10_consistency,
    "celeba-consistency": celeba_consistency,
    "tiny-imagenet-consistency": tiny_imagenet_consistency,
    "pusht-policy-small": pusht_policy_small,
    "pusht-policy": pusht_policy,
    "imagenet-sd-scratch": imagenet_sd_scratch,
    "imagenet-sd-finetune": imagenet_sd_finetune,
    "sd-inpaint": sd_inpaint,
    "sd-outpaint": sd_outpaint,
    "coco-sd": coco_sd,
    "sd-lora": sd_lora,
    "sdxl-lora": sdxl_lora,
}


def recipe_from_name(name: str) -> Recipe:
    """The recipe called ``name``; ValueError lists the names there are."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"unknown recipe '{name}'; known: {', '.join(RECIPES)}{hint}")
    return RECIPES[name]()
