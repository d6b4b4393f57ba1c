"""Scores of generated images against real ones."""

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.evaluation.evaluator import EVAL_SEED, EvalResult
from immiscible_diffusion.metrics import (
    METRICS,
    FeatureExtractor,
    FeatureStatistics,
    Floor,
    PixelFeatures,
    Reference,
    SampleMetrics,
    cache_folder,
    check_metrics,
    extract,
    extractor_from_name,
    floor_of,
    frechet_distance,
    halves,
    make_reference,
    measure,
    stream_statistics,
)
from immiscible_diffusion.reporting.compare.records import Floor as FloorRecord
from immiscible_diffusion.training.builders import Run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.progress import watched
from immiscible_diffusion.utils.random import keyed_generator

GRID_IMAGES = 32


@dataclass(frozen=True)
class ImageEvaluator:
    """Scores images against a data set in a feature space."""

    extractor: FeatureExtractor  # images to features
    reference: Reference  # features of the real images
    dataset: DataSet  # the real images
    samples: int  # images generated for every score
    pixels: Reference | None = None  # pixels of the real images, if they are scored too

    @classmethod
    def of(
        cls, dataset: DataSet, config: ImageEvalConfig, device: torch.device | str = "cpu", max_real: int | None = None
    ) -> "ImageEvaluator":
        """Prepare features, on ``device``, and reference; the classifier is trained once and cached.

        The reference is of ``max_real`` images, chosen at random, or of all. ValueError for too few samples or data;
        too few for the pixels leave ``pixels`` None, with a warning.
        """
        extractor = extractor_from_name(config.features, dataset, seed=EVAL_SEED, device=str(device))
        if config.samples < extractor.dim + 1:
            raise ValueError(
                f"eval.samples {config.samples} is too few for a Frechet distance in "
                f"{extractor.dim} dimensions; use at least {extractor.dim + 1}"
            )
        if config.reference is not None:
            if max_real is not None:
                raise ValueError("the real data are given as statistics; leave their number")
            reference = Reference.from_npz(Path(config.reference), extractor, len(dataset))
            return cls(extractor, reference, dataset, config.samples)
        reference = make_reference(dataset, extractor, limit=max_real, seed=EVAL_SEED, cache=cache_folder())
        if not config.pixels:
            return cls(extractor, reference, dataset, config.samples)
        if config.features == "pixels":
            return cls(extractor, reference, dataset, config.samples, reference)
        of_pixels = PixelFeatures(tuple(dataset.shape))
        pixels = make_reference(dataset, of_pixels, limit=max_real, seed=EVAL_SEED, cache=cache_folder())
        if min(config.samples, pixels.statistics.count) <= of_pixels.dim:
            warnings.warn(
                f"pixels are not scored: {config.samples} samples and {pixels.statistics.count} real data are too few "
                f"for a Frechet distance of {of_pixels.dim} pixels, which takes {of_pixels.dim + 1} of both",
                stacklevel=2,
            )
            return cls(extractor, reference, dataset, config.samples)
        return cls(extractor, reference, dataset, config.samples, pixels)

    def check(self) -> str:
        """Say what scores images; everything was loaded when this was made."""
        accuracy = self.extractor.accuracy
        known = accuracy is not None and not math.isnan(accuracy)
        return self.extractor.name + (f", held-out accuracy {accuracy:.1%}" if known else "")

    def measure(
        self, batches: Iterator[Tensor], metrics: Sequence[str] = METRICS, *, allow_few: bool = False
    ) -> SampleMetrics:
        """Score ``batches`` of images ``[b, C, H, W]`` in [-1, 1], none of which is kept; ValueError unless finite.

        Their features are, in float32, unless the Frechet distance alone is asked for.
        """
        check_metrics(metrics)
        if self.reference.source and tuple(metrics) == METRICS:
            metrics = ("frechet",)  # all that statistics can give
        same = self.pixels is self.reference  # the features are the pixels
        pixels = self.pixels if "frechet" in metrics and not same else None
        statistics = FeatureStatistics.empty(pixels.statistics.dim if pixels else 0)

        def clamped() -> Iterator[Tensor]:
            nonlocal statistics
            for batch in batches:
                image = _check_finite(batch).clamp(-1, 1)
                statistics = statistics.update(image.flatten(1)) if pixels else statistics
                yield image

        images = clamped()
        features: Tensor | FeatureStatistics
        if set(metrics) <= {"frechet"}:
            features = stream_statistics(self.extractor.dim, map(self.extractor, images))
        else:
            features = extract(self.extractor, images)
        scores = measure(features, self.reference, metrics=metrics, allow_few=allow_few)
        if pixels is None:
            return dataclasses.replace(scores, pixels=scores.frechet) if same else scores
        distance = frechet_distance(statistics, pixels.statistics, allow_few=allow_few)
        return dataclasses.replace(scores, pixels=distance)

    def __call__(
        self, pipeline: SamplingPipeline, model: nn.Module, *, seed: int, final: bool = True, **when: Any
    ) -> EvalResult:
        """Score generated images: the Frechet distance, and all metrics after the last step."""
        return self.evaluate(pipeline, model, seed, METRICS if final else ("frechet",))

    def evaluate(
        self, pipeline: SamplingPipeline, model: nn.Module, seed: int, metrics: Sequence[str], *, quiet: bool = True
    ) -> EvalResult:
        """Generate and score images; ``nfe`` is function evaluations per image."""
        evaluations: list[int] = []
        first: list[Tensor] = []

        def images() -> Iterator[Tensor]:
            for batch, nfe in pipeline(model, self.samples, seed=seed):
                evaluations.append(nfe)
                if sum(map(len, first)) < GRID_IMAGES:
                    first.append(batch[:GRID_IMAGES].cpu())
                yield batch

        shown = images() if quiet else watched(images(), self.samples, "sampling and scoring")
        scores = self.measure(shown, metrics).as_dict()
        nfe = round(sum(evaluations) / len(evaluations))
        return EvalResult({"nfe": nfe} | scores, torch.cat(first)[:GRID_IMAGES])

    def evaluate_run(
        self, run: Run, *, seed: int, batch_size: int, metrics: Sequence[str] = METRICS
    ) -> dict[str, Any]:
        """Score a run's model, with all that has to stand beside the scores, and show progress."""
        result = self.evaluate(run.pipeline(batch_size), run.model, seed, metrics, quiet=False)
        sampler = run.recipe.sampler
        return {
            "step": run.step,
            "ema": str(run.recipe.ema),
            "sampler": str(sampler),
            "step_selection": sampler.selection,
            "seed": seed,
            **result.scores,
            **self.describe(result.scores["samples"]),
        }

    def describe(self, samples: int) -> dict[str, str]:
        """Say what scores of ``samples`` images depend on."""
        floor, used, note = self.floor(samples), self.reference.statistics.count, self.dataset.note
        count = str(used) if used == len(self.dataset) else f"{used} of {len(self.dataset)}"
        encoding, no_floor = note or "of the source", "too few real data to tell"
        if (source := self.reference.source) is not None:
            digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
            note, encoding, no_floor = f"statistics of {source.name}, sha256 {digest}", "unknown", "unknown"
        return {
            "distance": self.extractor.distance,
            "preprocessing": self.extractor.preprocessing,
            "data": f"{self.dataset.name}{f' ({note})' if note else ''}, {count}",
            "encoding": encoding,
            "floor": floor.note if floor is not None else no_floor,
        }

    def summary(self, runs: Mapping[str, Mapping[int, RunDir]], folder: Path, step: int) -> dict[str, Any]:
        """Return what the scores of a comparison were made with."""
        floor = self.floor(self.samples)
        return {
            "features": self.extractor.name,
            "accuracy": self.extractor.accuracy,
            "samples": self.samples,
            "real_samples": self.reference.statistics.count,
            "floor": floor and FloorRecord(**dataclasses.asdict(floor), note=floor.note),
        }

    def calibrate(self, metrics: Sequence[str] = METRICS) -> dict[str, Any]:
        """Score real against real, with ``frechet`` over splits, and ``frechet_of_noise``."""
        floor, scores = self.real_against_real(self.samples, metrics)
        values = {name: value for name, value in scores.as_dict().items() if value is not None}
        if floor is not None:
            values |= {"frechet": floor.mean, "frechet_low": floor.low, "frechet_high": floor.high}
        return values | {"frechet_of_noise": self.noise_distance(self.samples)}

    def real_against_real(self, samples: int, metrics: Sequence[str] = METRICS) -> tuple[Floor | None, SampleMetrics]:
        """Score two disjoint random sets of real data against each other.

        Each is of ``samples`` data, or half of all if that is less: the Frechet distance depends on the count, so
        only scores from as many samples compare with it. Returns the Frechet distance over 10 splits, None where they
        are too few for it; and the other ``metrics`` on the first split.
        """
        half, seed = self.reference.statistics.count // 2, self.reference.seed
        size, real = min(samples, half), self.reference.real
        floor = self.reference.floor if size == half else floor_of(real, size, seed)
        rest = [name for name in metrics if name != "frechet"]
        if not rest:
            return floor, SampleMetrics(size, self.extractor.name)
        one, other = halves(real, size, seed, 0)
        return floor, measure(one, Reference.of(other, self.extractor.name, seed), metrics=rest)

    def floor(self, samples: int) -> Floor | None:
        """Return about what ``samples`` of the data's own distribution would score."""
        floor = self.reference.floor
        return None if floor is None else floor.at(samples, self.reference.statistics.count)

    def noise_distance(self, samples: int, batch_size: int = 512) -> float | None:
        """Return the Frechet distance of N(0, I) as images: what learning nothing scores."""

        def noise() -> Iterator[Tensor]:
            for number, start in enumerate(range(0, samples, batch_size)):
                shape = (min(batch_size, samples - start), *self.dataset.shape)
                yield torch.randn(shape, generator=keyed_generator(EVAL_SEED, number, "noise floor"))

        return self.measure(noise(), ("frechet",), allow_few=True).frechet


def _check_finite(batch: Tensor) -> Tensor:
    wrong = int((~batch.flatten(1).isfinite().all(dim=1)).sum())
    if wrong:
        raise ValueError(f"{wrong} of {len(batch)} images hold NaN or infinity; the model has probably diverged")
    return batch
