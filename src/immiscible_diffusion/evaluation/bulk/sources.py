"""What makes the pictures: a run of ours, or a pipeline of diffusers."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.bulk.run import Draw
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import keyed_generator


def from_trained(
    trained: LoadedRun, sampler: SamplerConfig, seed: int, prompts: Sequence[str] = ()
) -> Draw:
    """Rows to pictures by a trained run; picture i is the one that ``immiscible sample`` makes.

    Where ``prompts`` are given, which a network told by text can be, it is of prompt i mod their
    number.
    """
    generator = trained.generator(sampler, prompts=tuple(prompts))

    def draw(rows: Sequence[int]) -> Tensor:
        return generator.of_rows(trained.model, rows, seed=seed, sampler=sampler).data

    return draw


def from_pipeline(pipeline: Any, prompts: Sequence[str], seed: int, **settings: Any) -> Draw:
    """Rows to pictures by a text-to-image pipeline of diffusers.

    Args:
        pipeline: as ``load_pipeline`` gives it.
        prompts: picture i is of prompt i mod their number.
        seed: picture i starts from noise of ``(seed, i)``.
        settings: passed on, such as ``num_inference_steps`` and ``guidance_scale``.
    """
    return partial(_draw, pipeline, prompts, seed, settings)


def _draw(
    pipeline: Any, prompts: Sequence[str], seed: int, settings: dict[str, Any], rows: Sequence[int]
) -> Tensor:
    made = pipeline(
        prompt=[prompts[row % len(prompts)] for row in rows],
        generator=[keyed_generator(seed, row, "sample") for row in rows],
        output_type="pt",
        **settings,
    )
    pictures: Tensor = made.images
    return pictures.float() * 2 - 1


def load_pipeline(source: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline of a folder or a name on the hub, quiet and without a safety checker.

    Raises:
        ValueError: it is not there: says what to download.
    """
    with require_extra("train", "sampling a pipeline"):
        from diffusers import DiffusionPipeline
    try:
        with warnings.catch_warnings():
            # torch_dtype is an older name of dtype, which older releases do not know.
            warnings.simplefilter("ignore", FutureWarning)
            pipeline = DiffusionPipeline.from_pretrained(source, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"there is no run and no pipeline at {source} ({reason}); fetch it where there is a "
            f"network (`hf download {source} --local-dir FOLDER`), and give that folder"
        ) from error
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it would black out pictures, which no judge should see
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
