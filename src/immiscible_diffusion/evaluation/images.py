"""How good the images of a trained model are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.pipeline import Generator
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.metrics import (
    METRICS,
    FeatureExtractor,
    FeatureStatistics,
    Floor,
    Reference,
    SampleMetrics,
    cache_folder,
    check_metrics,
    extract,
    extractor_from_name,
    floor_of,
    halves,
    make_reference,
    measure,
    stream_statistics,
)
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.random import keyed_generator

EVAL_SEED = 0  # the judge is the same for every seed of a comparison


@dataclass(frozen=True)
class ImageEvaluator:
    """Measures samples against a data set in a feature space."""

    extractor: FeatureExtractor
    reference: Reference
    dataset: DataSet

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        dataset: DataSet,
        device: torch.device | str = "cpu",
        limit: int | None = None,
    ) -> "ImageEvaluator":
        """The judge that the recipe asks for; its classifier is trained once and cached.

        ``limit`` real data are compared with, chosen at random; all by default.

        Raises:
            ValueError: too few samples or data for the feature space.
        """
        extractor = extractor_from_name(
            recipe.of_images.features, dataset, seed=EVAL_SEED, device=str(device)
        )
        if recipe.of_images.samples < extractor.dim + 1:
            raise ValueError(
                f"evaluation.samples {recipe.of_images.samples} is too few for a Frechet distance "
                f"in {extractor.dim} dimensions; use at least {extractor.dim + 1}"
            )
        reference = make_reference(
            dataset, extractor, limit=limit, seed=EVAL_SEED, cache=cache_folder()
        )
        return cls(extractor, reference, dataset)

    def __call__(
        self,
        batches: Iterator[Tensor],
        metrics: Sequence[str] = METRICS,
        *,
        allow_few: bool = False,
    ) -> SampleMetrics:
        """The quality of ``batches`` of images ``[b, C, H, W]`` in [-1, 1]; none is kept.

        Their features are, in float32, unless the Frechet distance alone is asked for.
        """
        check_metrics(metrics)
        images = (_finite(batch).clamp(-1, 1) for batch in batches)
        features: Tensor | FeatureStatistics
        if set(metrics) <= {"frechet"}:
            features = stream_statistics(self.extractor.dim, map(self.extractor, images))
        else:
            features = extract(self.extractor, images)
        return measure(features, self.reference, metrics=metrics, allow_few=allow_few)

    def real_against_real(
        self, samples: int, metrics: Sequence[str] = METRICS
    ) -> tuple[Floor | None, SampleMetrics]:
        """How two disjoint random sets of real data score against each other.

        Each is of ``samples`` data, or half of all if that is less: the Frechet distance depends
        on the count, so only figures from as many samples compare with it.

        Returns:
            The Frechet distance over 10 splits, None where they are too few for it; and the other
            ``metrics`` on the first split.
        """
        size, seed = min(samples, self.reference.statistics.count // 2), self.reference.seed
        if size == self.reference.statistics.count // 2:
            floor = self.reference.floor
        else:
            floor = floor_of(self.reference.real, size, seed)
        rest = [name for name in metrics if name != "frechet"]
        if not rest:
            return floor, SampleMetrics(size, self.extractor.name)
        one, other = halves(self.reference.real, size, seed, 0)
        reference = Reference.of(other, self.extractor.name, seed)
        return floor, measure(one, reference, metrics=rest)

    def floor(self, samples: int) -> Floor | None:
        """What ``samples`` of the data's own law would score against the reference, about."""
        found = self.reference.floor
        return None if found is None else found.at(samples, self.reference.statistics.count)

    def noise_distance(self, samples: int, batch_size: int = 512) -> float | None:
        """Frechet distance of pure noise, N(0, I), as images: what learning nothing scores."""
        sizes = [min(batch_size, samples - start) for start in range(0, samples, batch_size)]
        batches = (
            torch.randn(
                (size, *self.dataset.shape),
                generator=keyed_generator(EVAL_SEED, number, "noise floor"),
            )
            for number, size in enumerate(sizes)
        )
        return self(batches, ("frechet",), allow_few=True).frechet


def judged(
    generator: Generator,
    judge: ImageEvaluator,
    model: nn.Module,
    seed: int,
    sampler: SamplerConfig,
    *,
    metrics: Sequence[str] = METRICS,
    keep: int = 0,
) -> tuple[SampleMetrics, int, Tensor]:
    """Generate and judge ``evaluation.samples`` images.

    Returns:
        The quality, the function evaluations per image (mean over batches, rounded), and the first
        ``keep`` images.
    """
    evaluations: list[int] = []
    kept: list[Tensor] = []

    def images() -> Iterator[Tensor]:
        count = generator.recipe.of_images.samples
        for batch, nfe in generator(model, count, seed=seed, sampler=sampler):
            evaluations.append(nfe)
            if sum(map(len, kept)) < keep:
                kept.append(batch[:keep].cpu())
            yield batch

    quality = judge(images(), metrics)
    shown = torch.cat(kept)[:keep] if kept else torch.empty(0, *generator.dataset.shape)
    return quality, round(sum(evaluations) / len(evaluations)), shown


def _finite(batch: Tensor) -> Tensor:
    """``batch``; ValueError for NaN or infinity, which bytes would hide."""
    wrong = int((~batch.flatten(1).isfinite().all(dim=1)).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of {len(batch)} images hold NaN or infinity; the model has probably diverged"
        )
    return batch
