"""The layout of diffusers: ``unet/``, ``unet_ema/``, and a whole pipeline at the end."""

import warnings
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.config import task_of, unet_of
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import (
    check_given,
    load_part,
    read_index,
    text_parts,
)
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.atomic_files import atomic_folder, read_json, write_json
from immiscible_diffusion.utils.optional_deps import require_extra

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "data": "sample"}
PAINTS = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}


def save_unets(
    folder: Path, unet: Any, averaged: Any, average: dict[str, Any], *, last: bool
) -> None:
    """``unet/`` and ``unet_ema/`` as diffusers' training script leaves them.

    Until the last step there is no ``model_index.json``: a folder whose ``unet/`` is not the
    averaged one does not load as a pipeline.

    Args:
        folder: of the run.
        unet: with the weights as they are.
        averaged: with the averaged weights.
        average: state of the average; its numbers go where diffusers' ``EMAModel`` has them.
        last: whether ``unet/`` shall be the averaged weights.
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
    """All parts but ``unet/``, and the index that makes them a pipeline, which comes last."""
    pretrained = check_given(task_of(recipe).codec.pretrained, "codec.pretrained")
    index = read_index(pretrained)
    # Loaded anew, as they were: those of the codec may be in half precision.
    vae = load_part(pretrained, index, "vae", torch_dtype=torch.float32)
    vae.register_to_config(scaling_factor=vae.config.scaling_factor * recipe.scaling.factor)
    parts: dict[str, Any] = {"vae": vae, "scheduler": scheduler_of(recipe)}
    for text, suffix in zip(text_parts(pretrained, index), ("", "_2"), strict=False):
        encoder = text.encoder.float()
        parts |= {f"tokenizer{suffix}": text.tokenizer, f"text_encoder{suffix}": encoder}
    for name, part in parts.items():
        with atomic_folder(folder / name) as temporary:
            part.save_pretrained(temporary)
    index = {name: value for name, value in index.items() if name not in ("safety_checker",)}
    index |= {name: _named(part) for name, part in {**parts, "unet": unet}.items()}
    if codec.painting is not None:
        index["_class_name"] = PAINTS.get(index["_class_name"], index["_class_name"])
    if "requires_safety_checker" in index or len(codec.texts) == 1:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
        index |= {"feature_extractor": [None, None]}
    index.pop("_name_or_path", None)
    write_json(folder / "model_index.json", index)


def _named(part: Any) -> list[str]:
    package = type(part).__module__.partition(".")[0]
    return [package, type(part).__name__]


def scheduler_of(recipe: Recipe) -> Any:
    """The scheduler of the recipe's pipeline, told what the network was trained on."""
    pretrained = check_given(task_of(recipe).codec.pretrained, "codec.pretrained")
    scheduler = load_part(pretrained, read_index(pretrained), "scheduler")
    with require_extra("train", "the scheduler"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
    if not isinstance(recipe.path, VPPath):
        return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    if recipe.path.zero_snr:  # which few schedulers know
        return DDIMScheduler(
            **schedule_of(recipe.path),
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )
    return type(scheduler).from_config(scheduler.config, **schedule_of(recipe.path))


def schedule_of(path: VPPath) -> dict[str, Any]:
    """The path in the words of diffusers' schedulers."""
    return {
        "prediction_type": PREDICTIONS[path.prediction],
        "beta_schedule": "squaredcos_cap_v2" if path.schedule == "cosine" else path.schedule,
        "beta_start": path.beta_start,
        "beta_end": path.beta_end,
        "num_train_timesteps": path.steps,
    }


def check_schedule(recipe: Recipe) -> None:
    """Raise ValueError if pretrained weights were trained on another path than the recipe's.

    Nothing is said of a U-Net that is trained from scratch.
    """
    if unet_of(recipe).init != "pretrained":
        return
    pretrained, theirs = _schedule_of_weights(recipe)
    if not isinstance(recipe.path, VPPath):
        if "flow" not in f"{theirs.get('prediction_type')} {theirs.get('_class_name')}".lower():
            raise ValueError(
                f"the weights of {pretrained} were trained on a diffusion path; a FlowMatchingPath "
                f"needs model.init scratch"
            )
        return
    wanted = schedule_of(recipe.path) | {"rescale_betas_zero_snr": recipe.path.zero_snr}
    wrong = {
        name: (theirs[name], value)
        for name, value in wanted.items()
        if name in theirs and theirs[name] != value
    }
    if wrong:
        said = ", ".join(f"{name} {one} (path: {own})" for name, (one, own) in wrong.items())
        raise ValueError(
            f"the scheduler of {pretrained} says {said}; pretrained weights go on with what they "
            f"were trained on: set path.prediction (epsilon, v or data) and the path's betas"
        )


def _schedule_of_weights(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Whose weights the U-Net begins with, and what their scheduler says.

    Of a checkpoint that has no scheduler, the run's own path; else that of the codec's pipeline.
    """
    given = check_given(task_of(recipe).codec.pretrained, "codec.pretrained")
    weights = str(unet_of(recipe).pretrained or given)
    noted = Path(weights) / "recipe.json"
    told = Path(weights) / "scheduler" / "scheduler_config.json"
    if told.is_file():
        return weights, read_json(told)
    if noted.is_file():
        path = read_json(noted).get("path", {})
        if path.get("kind") == "VPPath":
            path.pop("kind")
            return weights, schedule_of(VPPath(**path))
        return weights, {"prediction_type": "flow"}
    config: dict[str, Any] = load_part(given, read_index(given), "scheduler").config
    return given, config
