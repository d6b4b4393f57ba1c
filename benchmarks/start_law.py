"""Why pairing can lose at many sampling steps: the start law, and the judge.

    python benchmarks/init_noise_distribution.py runs/demo

For every finished cell of a comparison: Frechet distance of its final weights, sampled from N(0, I)
and from N(0, s^2 I) with s the standard deviation of the noise that its coupling produced in
training, judged by the classifier and in pixels. Means over the seeds. (A matched start of scale
alone; the full law, with its mean and directions, is another matter.)
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch

from immiscible_diffusion.couplings import parse_coupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.samplers import SamplerConfig, start_noise
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.metrics import extractor_from_name, make_reference, measure
from immiscible_diffusion.training.run_dir import RunDir

FEATURES = ("classifier", "pixels")


def noise_scale(trained: LoadedRun, passes: int = 5) -> float:
    """Standard deviation of the noise that the run's coupling gives its data."""
    data = everything(trained.dataset)
    coupling = parse_coupling(trained.recipe.coupling, Moments.fit(data))
    generator = torch.Generator().manual_seed(0)
    batches = data.split(trained.recipe.batch_size)
    noise = [coupling(batch, generator=generator) for _ in range(passes) for batch in batches]
    return float(torch.cat(noise).std())


def everything(dataset: DataSet) -> torch.Tensor:
    """All data ``[N, *shape]``."""
    return dataset.batch(torch.arange(len(dataset))).data


def distances(trained: LoadedRun, scale: float, budget: int) -> list[float]:
    """Frechet distance in every feature space, of images started from ``scale`` N(0, I)."""
    recipe, dataset = trained.recipe, trained.dataset
    noise = scale * start_noise(recipe.seed, range(recipe.evaluation.samples), dataset.shape)
    with torch.no_grad():
        images = SamplerConfig("euler", budget)(recipe.path.velocity(trained.model), noise).data
    found = []
    for name in FEATURES:
        extractor = extractor_from_name(name, dataset)
        reference = make_reference(dataset, extractor)
        quality = measure(extractor(images.clamp(-1, 1)), reference, metrics=("frechet",))
        found.append(float(quality.frechet or 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path, help="folder of `immiscible compare`")
    folder = parser.parse_args().comparison
    torch.set_num_threads(1)
    table: dict[tuple[str, str, int], list[list[float]]] = defaultdict(list)
    for finished in sorted(folder.glob("cells/*/*/finished.json")):
        trained = LoadedRun.load(RunDir.existing(finished.parent), "cpu")
        scale = noise_scale(trained)
        for start, factor in (("N(0, I)", 1.0), ("matched scale", scale)):
            for budget in trained.recipe.evaluation.sampling_steps:
                name = f"{trained.recipe.coupling} ({scale:.2f})"
                table[name, start, budget].append(distances(trained, factor, budget))
    print(f"| coupling (std of its noise) | start | Euler steps | {' | '.join(FEATURES)} |")
    print("|---|---|---|" + "---|" * len(FEATURES))
    for (name, start, budget), rows in table.items():
        means = " | ".join(f"{fmean(column):.2f}" for column in zip(*rows, strict=True))
        print(f"| {name} | {start} | {budget} | {means} |")


if __name__ == "__main__":
    main()
