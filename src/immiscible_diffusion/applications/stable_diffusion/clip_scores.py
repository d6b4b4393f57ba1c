"""CLIPScore and CMMD of a folder of pictures, for ``immiscible evaluate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.data.in_memory import chosen
from immiscible_diffusion.metrics.clip import Clip, cmmd, cmmd_features
from immiscible_diffusion.metrics.features.base import data_batches, extract

ClipFigure = Literal["score", "cmmd"]
REAL = 30_000  # real pictures that CMMD is measured against; the paper's number on COCO
AT_ONCE = 64


def clip_figures(
    which: Sequence[ClipFigure], folder: Path, dataset: DataSet, device: torch.device
) -> dict[str, Any]:
    """The figures asked for, each with what it depends on.

    Args:
        which: score, for which the folder must know its prompts, and cmmd.
        folder: pictures that ``immiscible sample --to`` wrote.
        dataset: the real pictures.
        device: where CLIP runs.

    Raises:
        ValueError: CLIP's weights or the prompts are not there: says where they are looked for.
    """
    pictures, found = SampleFolder(folder), dict[str, Any]()
    if "score" in which:
        score = Clip.load(device=device).score(pictures.with_prompts(AT_ONCE))
        found |= {
            "clip_score": score.mean,
            "clip_score_error": score.standard_error,
            "clip_score_model": f"{score.model}, 100 max(cos, 0)",
        }
    if "cmmd" in which:
        extractor = cmmd_features(device)
        rows = chosen(len(dataset), REAL, seed=0)
        real = extract(extractor, data_batches(dataset, rows, AT_ONCE))
        made = extract(extractor, pictures.in_batches(AT_ONCE))
        found |= {
            "cmmd": cmmd(real, made),
            "cmmd_real": len(real),
            "cmmd_model": f"{extractor.name}, {extractor.preprocessing}",
        }
    return found
