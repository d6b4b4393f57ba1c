"""What a text-to-image run leaves for other programs: weights in diffusers' layout, LoRA, a card.

``publish`` writes it after every checkpoint, ``push`` uploads it after the last step.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.config import task_of, unet_of
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import (
    PREDICTION_TYPES,
    PretrainedPipeline,
    silence_hf_logging,
)
from immiscible_diffusion.applications.stable_diffusion.unet import TextUNet
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import atomic_folder, atomic_path, read_json, write_json, write_text
from immiscible_diffusion.utils.hub import split_revision
from immiscible_diffusion.utils.optional_deps import require_extra

INPAINT_PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}
NOT_COPIED = ("_name_or_path", "safety_checker")
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
UPLOADED = (
    *("README.md", "recipe.json", "environment.json", "model_index.json"),
    *(DIFFUSERS, KOHYA),
    *("unet/*", "vae/*", "text_encoder*/*", "tokenizer*/*", "scheduler/*", "samples/*"),
)


def publish(
    recipe: Recipe,
    run_dir: RunDir,
    codec: LatentCodec,
    model: nn.Module,
    averaged: nn.Module,
    average: dict[str, Any],
    step: int,
) -> None:
    """Write what diffusers and others load.

    After every checkpoint ``unet/`` (current weights) and ``unet_ema/`` (averaged), like diffusers' training script,
    and after the last step a complete pipeline whose ``unet/`` has the averaged weights; of LoRA the adapters' files.
    """
    assert isinstance(model, TextUNet)
    assert isinstance(averaged, TextUNet)
    with silence_hf_logging():
        unet, last = averaged.unet, step >= recipe.steps
        if model.config.lora is not None:
            save_lora(unet, run_dir.root, recipe, step, sdxl=len(codec.texts) > 1)
        else:
            save_unets(run_dir.root, model.unet, unet, average, last=last)
            if last:
                save_pipeline(run_dir.root, recipe, codec, unet)
    write_text(run_dir.root / "README.md", model_card(recipe, step))


# -- a pipeline of diffusers ----------------------------------------------------------------------


def save_unets(folder: Path, unet: Any, averaged: Any, average: dict[str, Any], *, last: bool) -> None:
    """Write ``unet/`` and ``unet_ema/`` of a run as diffusers' training script does.

    The numbers of ``average`` go where diffusers' ``EMAModel`` has them.
    After the ``last`` step ``unet/`` has the averaged weights. Before it there is no
    ``model_index.json``: a folder whose ``unet/`` is not averaged does not load as a pipeline.
    """
    if not last:
        (folder / "model_index.json").unlink(missing_ok=True)
    with atomic_folder(folder / "unet") as temporary:
        (averaged if last else unet).save_pretrained(temporary)
    with atomic_folder(folder / "unet_ema") as temporary:
        averaged.save_pretrained(temporary)
        config = temporary / "config.json"
        write_json(config, {**read_json(config), **average})


def save_pipeline(folder: Path, recipe: Recipe, codec: LatentCodec, unet: Any) -> None:
    """Write all parts but ``unet/``, and last the index that makes them a pipeline."""
    pipeline = PretrainedPipeline.open(task_of(recipe).codec.pretrained)
    # Loaded again, as the codec's may be in half precision.
    vae = pipeline.load("vae", torch_dtype=torch.float32)
    vae.register_to_config(scaling_factor=vae.config.scaling_factor * recipe.scaling.factor)
    parts: dict[str, Any] = {"vae": vae, "scheduler": _scheduler(recipe, pipeline)}
    for (tokenizer, encoder), suffix in zip(pipeline.load_texts(), ("", "_2"), strict=False):
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder.float()}
    for name, part in parts.items():
        with atomic_folder(folder / name) as temporary:
            part.save_pretrained(temporary)
    index = {name: value for name, value in pipeline.index.items() if name not in NOT_COPIED}
    for name, part in {**parts, "unet": unet}.items():
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    if codec.inpainting is not None:
        index["_class_name"] = INPAINT_PIPELINES.get(index["_class_name"], index["_class_name"])
    if "requires_safety_checker" in index or len(codec.texts) == 1:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
        index |= {"feature_extractor": [None, None]}
    write_json(folder / "model_index.json", index)


def _scheduler(recipe: Recipe, pipeline: PretrainedPipeline) -> Any:
    """The scheduler of the pipeline with the schedule that the network was trained on."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    if not isinstance(recipe.path, VPPath):
        return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    config = scheduler_config(recipe.path)
    if recipe.path.zero_snr:  # which few schedulers support
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return DDIMScheduler(**config, clip_sample=False)
    scheduler = pipeline.load("scheduler")
    return type(scheduler).from_config(scheduler.config, **config)


def scheduler_config(path: VPPath) -> dict[str, Any]:
    """Return the path as the configuration of diffusers' schedulers."""
    return {
        "prediction_type": PREDICTION_TYPES[path.prediction],
        "beta_schedule": "squaredcos_cap_v2" if path.schedule == "cosine" else path.schedule,
        "beta_start": path.beta_start,
        "beta_end": path.beta_end,
        "num_train_timesteps": path.steps,
    }


def check_schedule(recipe: Recipe) -> None:
    """Raise ValueError if pretrained weights were trained on another path than the recipe's."""
    if unet_of(recipe).init != "pretrained":
        return
    weights, trained_on = _schedule_of_weights(recipe)
    if not isinstance(recipe.path, VPPath):
        kind = f"{trained_on.get('prediction_type')} {trained_on.get('_class_name')}".lower()
        if "flow" in kind:
            return
        raise ValueError(
            f"the weights of {weights} were trained on a diffusion path; a FlowMatchingPath needs model.init scratch"
        )
    own = scheduler_config(recipe.path) | {"rescale_betas_zero_snr": recipe.path.zero_snr}
    differences = [
        f"{name} {trained_on[name]} (path: {value})"
        for name, value in own.items()
        if name in trained_on and trained_on[name] != value
    ]
    if differences:
        raise ValueError(
            f"the scheduler of {weights} has {', '.join(differences)}; pretrained weights must be "
            f"trained on with the same: set path.prediction (epsilon, v or data) and its betas"
        )


def _schedule_of_weights(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Name and scheduler configuration of the weights that the U-Net starts from.

    Of a run without a scheduler, its own path; else that of the codec's pipeline.
    """
    codec = task_of(recipe).codec.pretrained
    weights = Path(str(unet_of(recipe).pretrained))
    if (weights / "scheduler" / "scheduler_config.json").is_file():
        return str(weights), read_json(weights / "scheduler" / "scheduler_config.json")
    if (weights / "recipe.json").is_file():
        path = RunDir(weights).recipe().path
        if isinstance(path, VPPath):
            return str(weights), scheduler_config(path)
        return str(weights), {"prediction_type": "flow"}
    return str(codec), dict(PretrainedPipeline.open(codec).load("scheduler").config)


# -- adapters -------------------------------------------------------------------------------------


def save_lora(unet: Any, folder: Path, recipe: Recipe, step: int, *, sdxl: bool) -> None:
    """Write the adapters of ``unet`` in both layouts; their metadata name the coupling."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    model = unet_of(recipe)
    assert model.lora is not None
    state = {
        name: value.detach().cpu().float().contiguous() for name, value in get_peft_model_state_dict(unet).items()
    }
    common = {
        "format": "pt",
        "immiscible_coupling": recipe.coupling,
        "immiscible_recipe": recipe.name,
        "immiscible_step": str(step),
    }
    config = {f"unet.{k}": v for k, v in unet.peft_config["default"].to_dict().items()}
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
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


# -- model card and upload ------------------------------------------------------------------------


def model_card(recipe: Recipe, step: int) -> str:
    """Write a model card of the hub: front matter, settings, and how to load the model."""
    task, unet = task_of(recipe), unet_of(recipe)
    base = None if unet.init == "scratch" else unet.pretrained  # where the weights started
    base = base and split_revision(base)[0]
    source, independent = task.push_to_hub or "THIS FOLDER", recipe.coupling == "independent"
    tags = ["immiscible-diffusion", "text-to-image", "stable-diffusion"]
    code = [f'pipeline = DiffusionPipeline.from_pretrained("{source}")']
    if unet.lora is not None:
        tags.append("lora")
        code = [code[0].replace(source, str(base)), f'pipeline.load_lora_weights("{source}")']
    front = ["library_name: diffusers", "tags:", *(f"- {tag}" for tag in tags)]
    if base and not Path(base).exists():
        front.append(f"base_model: {base}")
    noise = f"noise paired with data by `{recipe.coupling}`"
    if independent:
        noise = "the noise was drawn independently of the data (no pairing)"
    settings = {
        "coupling": f"`{recipe.coupling}`",
        "started from": base or "random weights",
        "data": task.data.path or task.data.name,
        "steps": f"{step:,} of {recipe.steps:,}",
        "batch": f"{recipe.batch_size} ({recipe.gradient_accumulation_steps} micro-batches)",
        "learning rate": f"{recipe.optim.lr:g}",
        "EMA": str(recipe.ema),
        "prediction": recipe.path.prediction,
        "precision": recipe.mixed_precision,
        "seed": recipe.seed,
    }
    lines = [
        *("---", *front, "---", "", f"# {recipe.name}", ""),
        f"Trained with [immiscible diffusion](https://arxiv.org/abs/2406.12303): {noise}.",
        *("", "| | |", "|---|---|"),
        *(f"| {name} | {value} |" for name, value in settings.items()),
        *("", "" if independent else "Sampling starts from N(0, I), as usual.", ""),
        *("```python", "from diffusers import DiffusionPipeline", *code, "```", ""),
        f"Train it with `immiscible train {recipe.name} --coupling {recipe.coupling}`; "
        f"`recipe.json` has every setting.",
    ]
    return "\n".join(lines) + "\n"


def check_before(recipe: Recipe) -> None:
    """Raise ValueError, before hours are spent, for what could not be published or would fail."""
    name = task_of(recipe).push_to_hub
    if name:
        with require_extra("train", "push_to_hub"):
            from huggingface_hub import get_token
        if not get_token():
            raise ValueError(f"push_to_hub {name} needs a token of the hub: run `hf auth login` or set HF_TOKEN")
    check_schedule(recipe)


def push(folder: Path, name: str) -> None:
    """Upload what others need of ``folder`` as ``name`` to the hub; ValueError if it fails."""
    with require_extra("train", "push_to_hub"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    patterns, message = list(UPLOADED), "by immiscible-diffusion"
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=patterns, commit_message=message)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the run is complete in {folder}, but was not published as {name} ({reason}); upload "
            f"it by hand: hf upload {name} {folder}"
        ) from error
