"""The layout of diffusers: ``unet/``, ``unet_ema/``, and a complete pipeline at the end."""

import warnings
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.config import task_of, unet_of
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import PretrainedPipeline
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.atomic_files import atomic_folder, read_json, write_json
from immiscible_diffusion.utils.optional_deps import require_extra

PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "data": "sample"}
INPAINT_PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}


def save_unets(
    folder: Path, unet: Any, averaged: Any, average: dict[str, Any], *, last: bool
) -> None:
    """Write ``unet/`` and ``unet_ema/`` of a run as diffusers' training script does.

    The numbers of ``average``, the state of the average, go where diffusers' ``EMAModel`` has them.
    After the ``last`` step ``unet/`` has the averaged weights. Before it there is no
    ``model_index.json``: a folder whose ``unet/`` is not averaged does not load as a pipeline.
    """
    if not last:
        (folder / "model_index.json").unlink(missing_ok=True)
    with atomic_folder(folder / "unet") as temporary:
        (averaged if last else unet).save_pretrained(temporary)
    with atomic_folder(folder / "unet_ema") as temporary:
        averaged.save_pretrained(temporary)
        numbers = {name: value for name, value in average.items() if name != "shadow_params"}
        config = temporary / "config.json"
        write_json(config, {**read_json(config), **numbers})


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
    index = {
        k: v for k, v in pipeline.index.items() if k not in ("_name_or_path", "safety_checker")
    }
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
    with require_extra("train", "the scheduler"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
        if "flow" not in kind:
            raise ValueError(
                f"the weights of {weights} were trained on a diffusion path; a FlowMatchingPath "
                f"needs model.init scratch"
            )
        return
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
        path = read_json(weights / "recipe.json").get("path", {})
        if path.pop("kind", None) == "VPPath":
            return str(weights), scheduler_config(VPPath(**path))
        return str(weights), {"prediction_type": "flow"}
    return str(codec), dict(PretrainedPipeline.open(codec).load("scheduler").config)
