"""How long a semidiscrete plan takes to fit: digits, and CIFAR-10 with mirror images.

    OMP_NUM_THREADS=1 python benchmarks/semidiscrete_fit.py --cifar FOLDER --markdown FILE

CPU seconds of one thread. Digits: to a chi-square of the shares of 1e-3, counted once more by noises of its own; bar:
60 seconds. CIFAR-10: seconds of a step by number of samples and directions, from fits of 2 and of 10 steps, and from
these what a fit to the default tolerance takes, by a number of steps that is not run: ``N / tolerance`` noises and
half as many more, as the average counts late steps more. Exits with 1 when the bar is missed.
"""

import argparse
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from coupling_cost import machine_line

from immiscible_diffusion.couplings import Moments, SemidiscretePlan
from immiscible_diffusion.couplings.semidiscrete_fit import BATCH
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.utils.random import keyed_generator

SIZES, RANKS = (10_000, 25_000, 100_000), (64, 256)
TOLERANCE, BAR = 1e-3, 60.0
USUAL = 0.02  # the default tolerance
OF_MOMENTS, AT_A_TIME = 10_000, 1000  # samples, as in training


def data(config: DataConfig) -> torch.Tensor:
    """All samples ``[N, *shape]``, mirror images too, in random order."""
    images = load_images(config)
    order = torch.randperm(images.index_count, generator=keyed_generator("order"))
    return torch.cat([images.indexed(part).data for part in order.split(AT_A_TIME)])


def chi_square(plan: SemidiscretePlan, noises: int) -> float:
    """Of the shares, unbiased, by noises that the fit did not see."""
    count, generator = len(plan.samples), keyed_generator("counted again")
    number = torch.zeros(count)
    for _ in range(noises // BATCH):
        noise = torch.randn(BATCH, *plan.mean.shape, generator=generator)
        number += plan.sample_of(noise).bincount(minlength=count)
    total = noises // BATCH * BATCH
    return float(count * (number * (number - 1)).sum() / (total * (total - 1)) - 1)


def fit(samples: torch.Tensor, moments: Moments, **options: float) -> tuple[SemidiscretePlan, float, int]:
    """The plan, CPU seconds and steps."""
    began, steps = time.process_time(), [0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that are cut short
        batches = samples.split(AT_A_TIME)
        plan = SemidiscretePlan.fit(batches, moments, progress=lambda done, _: steps.append(done), **options)
    return plan, time.process_time() - began, steps[-1]


def digits(noises: int = 1 << 21) -> tuple[list[str], bool]:
    """Rows of a table by tolerance, and whether the bar is met."""
    samples = data(DataConfig("digits"))
    moments = Moments.fit(samples)
    lines = ["| digits, N = 1,797, 61 directions | steps | CPU s | chi-square, counted again |", "|---|--:|--:|--:|"]
    for name, options in {
        "start": {"max_steps": 0},
        f"to {USUAL:g}": {"tolerance": USUAL},
        f"to {TOLERANCE:g}": {"tolerance": TOLERANCE},
    }.items():
        plan, seconds, steps = fit(samples, moments, **options)
        found = chi_square(plan, noises)
        lines.append(f"| {name} | {steps} | {seconds:.1f} | {found:.2g} |")
        print(lines[-1], flush=True)
    return lines, seconds <= BAR and found <= TOLERANCE


def cifar(folder: str, sizes: list[int]) -> list[str]:
    """Rows of a table by number of samples and directions."""
    samples = data(DataConfig("cifar10", path=folder, flip=True))
    moments = Moments.fit(samples[:OF_MOMENTS].split(AT_A_TIME), directions=max(RANKS))
    lines = [
        "| CIFAR-10, flips: N | directions | CPU s a step | chi-square of the start | steps | CPU min in all |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    assert moments.directions is not None
    assert moments.spectrum is not None
    for size in sizes:
        for rank in RANKS:
            own = replace(moments, directions=moments.directions[:rank], spectrum=moments.spectrum[:rank])
            few, many = (fit(samples[:size], own, tolerance=10.0, max_steps=steps)[1] for steps in (2, 10))
            start = chi_square(fit(samples[:size], own, max_steps=0)[0], 1 << 15)
            step, steps = (many - few) / 8, round(1.5 * size / USUAL / BATCH)
            cells = f"{size:,} | {rank} | {step:.3f} | {start:.2g} | {steps} | {step * steps / 60:.0f}"
            lines.append(f"| {cells} |")
            print(lines[-1], flush=True)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", help="folder with CIFAR-10's parquet files; without it those rows are left out")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines, passed = digits()
    if arguments.cifar is None:
        lines += ["", "CIFAR-10 is left out: --cifar was not given."]
    else:
        lines += ["", *cifar(arguments.cifar, arguments.sizes)]
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*lines, "", f"CPU time of one thread. {machine_line()}."]) + "\n")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
