"""Scores for text-to-image models in ``immiscible evaluate``: CLIP, and LoRA on few images."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.data.in_memory import random_rows
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.evaluation.evaluator import EVAL_SEED, EvalResult, Evaluator
from immiscible_diffusion.metrics import FeatureExtractor
from immiscible_diffusion.metrics.clip import Clip, cmmd, cmmd_features
from immiscible_diffusion.metrics.features import extractor_from_name
from immiscible_diffusion.metrics.features.base import data_batches, extract
from immiscible_diffusion.metrics.few_shot import few_shot_metrics
from immiscible_diffusion.training.builders import Run
from immiscible_diffusion.training.run_dir import RunDir

ClipMetric = Literal["score", "cmmd"]
CMMD_REAL = 30_000  # real images that CMMD compares with: the paper's number on COCO
BATCH = 64
GRID_IMAGES = 32


def clip_metrics(
    metrics: Sequence[ClipMetric], folder: Path, dataset: DataSet, device: torch.device
) -> dict[str, Any]:
    """CLIPScore and CMMD of a folder of images, each with what it depends on.

    ``folder`` holds images that ``immiscible sample --to`` wrote, ``dataset`` real ones. ValueError
    if CLIP's weights are absent, or prompts for ``score``; it says where they are looked for.
    """
    images, scores = SampleFolder(folder), dict[str, Any]()
    if "score" in metrics:
        score = Clip.load(device=device).score(images.with_prompts(BATCH))
        scores |= {"clip_score": score.mean, "clip_score_error": score.standard_error}
        scores |= {"clip_score_model": f"{score.model}, 100 max(cos, 0)"}
    if "cmmd" in metrics:
        extractor = cmmd_features(device)
        rows = random_rows(len(dataset), CMMD_REAL, seed=0)
        real = extract(extractor, data_batches(dataset, rows, BATCH))
        samples = extract(extractor, images.in_batches(BATCH))
        scores |= {"cmmd": cmmd(real, samples), "cmmd_real": len(real)}
        scores |= {"cmmd_model": f"{extractor.name}, {extractor.preprocessing}"}
    return scores


@dataclass(frozen=True, eq=False)
class FewShotEvaluator(Evaluator):
    """Scores samples of the training captions beside the training images themselves."""

    extractor: FeatureExtractor  # images to features
    dataset: DataSet  # the training images
    real: Tensor  # those of the most common shape, ``[N, C, H, W]``
    samples: int  # images generated for every score

    @classmethod
    def of(cls, dataset: DataSet, config: ImageEvalConfig, device: torch.device) -> "FewShotEvaluator":
        """Prepare the features."""
        options: Any = {"seed": EVAL_SEED, "device": str(device)}
        extractor = extractor_from_name(config.features, dataset, **options)
        real = dataset.batch(dataset.common_rows()).data
        return cls(extractor, dataset, real, config.samples)

    def check(self) -> str:
        """Say what scores images; everything was loaded when this was made."""
        return f"{self.extractor.name}, {len(self.real)} images"

    def __call__(self, pipeline: SamplingPipeline, model: nn.Module, *, seed: int, **_: Any) -> EvalResult:
        """Generate and score images."""
        batches = list(pipeline(model, self.samples, seed=seed))
        images = torch.cat([data for data, _ in batches]).cpu()
        scores = dataclasses.asdict(few_shot_metrics(self.extractor, images, self.real))
        return EvalResult({"samples": len(images), **scores}, images[:GRID_IMAGES])

    def evaluate_run(self, run: Run, *, seed: int, batch_size: int, metrics: Any) -> dict[str, Any]:
        """Score a run's model, with all that has to stand beside the scores."""
        result = self(run.pipeline(batch_size), run.model, seed=seed, step=run.step)
        return {
            "step": run.step,
            "sampler": str(run.recipe.sampler),
            "seed": seed,
            "features": self.extractor.name,
            "data": f"{self.dataset.name}, {len(self.real)} images",
            **result.scores,
        }

    def summary(self, runs: Mapping[str, Mapping[int, RunDir]], folder: Path, step: int) -> dict[str, Any]:
        """Return what the scores of a comparison were made with."""
        sizes = {"samples": self.samples, "real_samples": len(self.real)}
        return {"features": self.extractor.name, **sizes, "accuracy": None, "floor": None}
