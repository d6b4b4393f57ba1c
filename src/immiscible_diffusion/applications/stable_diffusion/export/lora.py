"""LoRA adapters in the layouts of diffusers and of kohya's sd-scripts."""

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
KOHYA_PARTS = {"lora_A": "lora_down", "lora_B": "lora_up"}
# SDXL: diffusers' names of the blocks with attention, and Stability's names, which kohya uses:
# block number 3 a + b + offset for the a-th block and its b-th attention.
SDXL_BLOCKS = (
    (re.compile(r"down_blocks_(\d+)_attentions_(\d+)_"), "input_blocks_{}_1_", 1),
    (re.compile(r"up_blocks_(\d+)_attentions_(\d+)_"), "output_blocks_{}_1_", 0),
)
SDXL_MIDDLE = ("mid_block_attentions_0_", "middle_block_1_")


def save_lora(unet: Any, folder: Path, recipe: Recipe, step: int, *, sdxl: bool) -> None:
    """Write the adapters of ``unet`` in both layouts; their metadata name the coupling."""
    with require_extra("sd", "LoRA"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file
    model = unet_of(recipe)
    assert model.lora is not None
    state = {
        name: value.detach().cpu().float().contiguous()
        for name, value in get_peft_model_state_dict(unet).items()
    }
    common = {
        "format": "pt",
        "immiscible_coupling": recipe.coupling,
        "immiscible_recipe": recipe.name,
        "immiscible_step": str(step),
    }
    config = unet.peft_config["default"].to_dict()
    config = {f"unet.{k}": sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    of_diffusers = {"lora_adapter_metadata": json.dumps(config, default=str)}
    of_kohya = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(model.lora.rank),
        "ss_network_alpha": f"{model.lora.scale:g}",
        "ss_steps": str(step),
        "ss_learning_rate": f"{recipe.optim.lr:g}",
        "ss_sd_model_name": str(model.pretrained),
        "ss_training_comment": f"noise paired by immiscible-diffusion: {recipe.coupling}",
    }
    with atomic_path(folder / DIFFUSERS) as temporary:
        prefixed = {f"unet.{name}": value for name, value in state.items()}
        save_file(prefixed, str(temporary), common | of_diffusers)
    with atomic_path(folder / KOHYA) as temporary:
        tensors = to_kohya(state, model.lora.scale, sdxl=sdxl)
        save_file(tensors, str(temporary), common | of_kohya)


def to_kohya(state: dict[str, Tensor], alpha: float, *, sdxl: bool = False) -> dict[str, Tensor]:
    """Rename peft's ``<module>.lora_A.weight`` and ``<module>.lora_B.weight`` as kohya does.

    Returns:
        ``lora_unet_<module>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        module, part, _ = name.rsplit(".", 2)
        module = module.replace(".", "_")
        key = f"lora_unet_{_stability_name(module) if sdxl else module}"
        tensors[f"{key}.{KOHYA_PARTS[part]}.weight"] = value
        tensors[f"{key}.alpha"] = value.new_tensor(alpha)
    return tensors


def _stability_name(module: str) -> str:
    for pattern, template, offset in SDXL_BLOCKS:
        if match := pattern.match(module):
            number = 3 * int(match[1]) + int(match[2]) + offset
            return template.format(number) + module[match.end() :]
    return module.replace(*SDXL_MIDDLE)
