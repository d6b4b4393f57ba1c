"""How good the images of a trained model are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.generate import Generator
from immiscible_diffusion.metric import (
    METRICS,
    FeatureExtractor,
    Quality,
    Reference,
    extract,
    extractor_from_name,
    make_reference,
    measure,
)
from immiscible_diffusion.recipe import Recipe
from immiscible_diffusion.sampler import Sampler

JUDGE_SEED = 0  # the judge is the same for every seed of a comparison


@dataclass(frozen=True)
class Judge:
    """Measures samples against a data set in a feature space."""

    extractor: FeatureExtractor
    reference: Reference
    dataset: DataSet

    @classmethod
    def of(cls, recipe: Recipe, dataset: DataSet, device: torch.device | str = "cpu") -> "Judge":
        """The judge that the recipe asks for; its classifier is trained once and cached.

        Raises:
            ValueError: too few samples or data for the feature space.
        """
        extractor = extractor_from_name(
            recipe.evaluation.features, dataset, seed=JUDGE_SEED, device=str(device)
        )
        if recipe.evaluation.samples < extractor.dim + 1:
            raise ValueError(
                f"evaluation.samples {recipe.evaluation.samples} is too few for a Frechet distance "
                f"in {extractor.dim} dimensions; use at least {extractor.dim + 1}"
            )
        return cls(extractor, make_reference(dataset, extractor, seed=JUDGE_SEED), dataset)

    def __call__(
        self,
        batches: Iterator[Tensor],
        metrics: Sequence[str] = METRICS,
        *,
        allow_few: bool = False,
    ) -> Quality:
        """The quality of ``batches`` of images ``[b, C, H, W]`` in [-1, 1]; none is kept."""
        features = extract(self.extractor, (batch.clamp(-1, 1) for batch in batches))
        return measure(features, self.reference, metrics=metrics, allow_few=allow_few)


def judged(
    generator: Generator,
    judge: Judge,
    model: nn.Module,
    seed: int,
    sampler: Sampler,
    *,
    metrics: Sequence[str] = METRICS,
    keep: int = 0,
) -> tuple[Quality, int, Tensor]:
    """Generate and judge ``evaluation.samples`` images.

    Returns:
        The quality, the function evaluations per image (mean over batches, rounded), and the first
        ``keep`` images.
    """
    evaluations: list[int] = []
    kept: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        count = generator.recipe.evaluation.samples
        for batch, nfe in generator(model, count, seed=seed, sampler=sampler):
            evaluations.append(nfe)
            if sum(map(len, kept)) < keep:
                kept.append(batch[:keep].cpu())
            yield batch

    quality = judge(images(), metrics)
    shown = torch.cat(kept)[:keep] if kept else torch.empty(0, *generator.dataset.shape)
    return quality, round(sum(evaluations) / len(evaluations)), shown
