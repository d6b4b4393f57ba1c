"""Why pairing can lose at many sampling steps: the noise that sampling starts from, the features.

    python -m reproduce.init_noise_scale runs/demo

For every finished trial of a comparison: Frechet distance of its final weights, sampled from
N(0, I) and from N(0, s^2 I) with s the standard deviation of the noise that its coupling produced
in training, in the classifier's features and in pixels. Means over the seeds. (A matched start of
scale alone; the full distribution, with its mean and directions, is another matter.)
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import immiscible_diffusion.recipes  # noqa: F401 (tasks and networks that a run may name)
from immiscible_diffusion.couplings import parse_coupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.samplers import SamplerConfig, start_noise
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.metrics import extractor_from_name, make_reference, measure
from immiscible_diffusion.training.builders import Run

FEATURES = ("classifier", "pixels")


def noise_scale(run: Run, passes: int = 5) -> float:
    """Standard deviation of the noise that the run's coupling gives its data."""
    data = all_data(run.task.dataset)
    coupling = parse_coupling(run.recipe.coupling, Moments.fit(data))
    generator = torch.Generator().manual_seed(0)
    batches = data.split(run.recipe.batch_size)
    noise = [coupling(batch, generator=generator) for _ in range(passes) for batch in batches]
    return float(torch.cat(noise).std())


def all_data(dataset: DataSet) -> torch.Tensor:
    """All data ``[N, *shape]``."""
    return dataset.batch(torch.arange(len(dataset))).data


def distances(run: Run, scale: float, steps: int) -> list[float]:
    """Frechet distance in every feature space, of images started from ``scale`` N(0, I)."""
    recipe, dataset = run.recipe, run.task.dataset
    config: Any = recipe.task.eval
    noise = scale * start_noise(recipe.seed, range(config.samples), dataset.shape)
    with torch.no_grad():
        images = SamplerConfig("euler", steps)(recipe.path.velocity(run.model), noise).data
    values = []
    for name in FEATURES:
        extractor = extractor_from_name(name, dataset)
        reference = make_reference(dataset, extractor)
        metrics = measure(extractor(images.clamp(-1, 1)), reference, metrics=("frechet",))
        values.append(float(metrics.frechet or 0))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path, help="folder of `immiscible compare`")
    folder = parser.parse_args().comparison
    torch.set_num_threads(1)
    table: dict[tuple[str, str, int], list[list[float]]] = defaultdict(list)
    for finished in sorted(folder.glob("*/*/*/finished.json")):
        run = load_run(finished.parent, "cpu")
        scale = noise_scale(run)
        for start, factor in (("N(0, I)", 1.0), ("matched scale", scale)):
            for steps in run.recipe.task.eval.sampling_steps:
                name = f"{run.recipe.coupling} ({scale:.2f})"
                table[name, start, steps].append(distances(run, factor, steps))
    print(f"| coupling (std of its noise) | start | Euler steps | {' | '.join(FEATURES)} |")
    print("|---|---|---|" + "---|" * len(FEATURES))
    for (name, start, steps), rows in table.items():
        means = " | ".join(f"{fmean(column):.2f}" for column in zip(*rows, strict=True))
        print(f"| {name} | {start} | {steps} | {means} |")


if __name__ == "__main__":
    main()
