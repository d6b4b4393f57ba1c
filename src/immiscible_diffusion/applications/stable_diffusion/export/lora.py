"""Adapters in the layouts of diffusers and of kohya's sd-scripts."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.config import unet_of
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

DIFFUSERS = "pytorch_lora_weights.safetensors"
KOHYA = "kohya_lora.safetensors"
BLOCKS = (  # of SDXL: diffusers' names of blocks with attention, and Stability's, which kohya uses
    (re.compile(r"down_blocks_(\d+)_attentions_(\d+)_"), "input_blocks_{}_1_", 1),
    (re.compile(r"up_blocks_(\d+)_attentions_(\d+)_"), "output_blocks_{}_1_", 0),
)
MIDDLE = ("mid_block_attentions_0_", "middle_block_1_")


def save_adapters(unet: Any, folder: Path, recipe: Recipe, step: int, sdxl: bool) -> None:
    """Write both layouts; their metadata name the coupling.

    Args:
        unet: with adapters.
        folder: of the run.
        recipe: what they were trained by.
        step: of training.
        sdxl: kohya names the blocks of SDXL otherwise.
    """
    lora = unet_of(recipe).lora
    assert lora is not None
    state = adapter_state(unet)
    told = {
        "format": "pt",
        "immiscible_coupling": recipe.coupling,
        "immiscible_recipe": recipe.name,
        "immiscible_step": str(step),
    }
    config = unet.peft_config["default"].to_dict()
    named = {f"unet.{k}": sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    ours = {f"unet.{name}": value for name, value in state.items()}
    _save(
        ours, folder / DIFFUSERS, {**told, "lora_adapter_metadata": json.dumps(named, default=str)}
    )
    kohya = to_kohya(state, lora.scale, sdxl=sdxl)
    _save(kohya, folder / KOHYA, {**told, **_of_kohya(recipe, lora.rank, lora.scale, step)})


def adapter_state(unet: Any) -> dict[str, Tensor]:
    """The adapters' weights by peft's names, ``....to_q.lora_A.weight``."""
    with require_extra("sd", "LoRA"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import get_peft_model_state_dict
    state: dict[str, Tensor] = get_peft_model_state_dict(unet)
    return {name: value.detach().cpu().float().contiguous() for name, value in state.items()}


def to_kohya(state: dict[str, Tensor], alpha: float, *, sdxl: bool = False) -> dict[str, Tensor]:
    """``lora_unet_<module>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        module, part = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        key = "lora_unet_" + _of_sdxl(module.replace(".", "_"), sdxl)
        found[f"{key}.lora_{'down' if part == 'A' else 'up'}.weight"] = value
        found[f"{key}.alpha"] = value.new_tensor(alpha)
    return found


def _of_sdxl(module: str, sdxl: bool) -> str:
    if not sdxl:
        return module
    module = module.replace(*MIDDLE)
    for pattern, theirs, offset in BLOCKS:
        match = pattern.match(module)
        if match:
            number = 3 * int(match[1]) + int(match[2]) + offset
            return theirs.format(number) + module[match.end() :]
    return module


def _of_kohya(recipe: Recipe, rank: int, alpha: float, step: int) -> dict[str, str]:
    """What kohya's scripts and interfaces read."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_steps": str(step),
        "ss_learning_rate": f"{recipe.optim.lr:g}",
        "ss_sd_model_name": str(unet_of(recipe).pretrained),
        "ss_training_comment": f"noise paired by immiscible-diffusion: {recipe.coupling}",
    }


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    with require_extra("train", "saving adapters"):
        from safetensors.torch import save_file
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), metadata)
