"""How often a comparison finds a difference where there is none.

    python -m reproduce.false_positives

Made-up curves without any effect go through the whole procedure of ``immiscible compare``: both savings, intervals
paired by seed, verdicts, Holm's correction over a page. A curve is a power law with a floor, times what the trial's
seed, its sampling steps and each evaluation add (logs, Gaussian; the last correlated along training). Printed: the
share of single verdicts that are resolved, of pages with any, and of headlines that claim a gain of the best coupling,
before and after the correction.
"""

import argparse
import math

import numpy as np

from immiscible_diffusion.reporting.compare.records import Comparison, CouplingEntry, Dataset, SampleMetrics, Trial
from immiscible_diffusion.reporting.compare.speedup import Verdict, speedups
from immiscible_diffusion.reporting.compare.summary import best_coupling, headline_results

STEPS = (150, 267, 474, 844, 1500)
SAMPLING_STEPS = (2, 5, 20, 100)
COUPLINGS = 4
# Slope over training steps, floor, start, and noise of the logs.
CURVES = {"falling": (0.5, 0.0, 12.0, 0.04), "flattening": (1.0, 0.4, 3.0, 0.08), "plateau": (3.0, 0.5, 5.0, 0.08)}


def comparison(curve: str, seeds: int, rng: np.random.Generator) -> Comparison:
    """A baseline and ``COUPLINGS`` couplings that do not differ from it."""
    names = ["independent", *(f"c{i}" for i in range(COUPLINGS))]
    shared = rng.normal(0, 0.05, seeds)
    return Comparison(
        **dict.fromkeys(("recipe", "command", "note", "hardware", "date", "features"), ""),
        versions={},
        dataset=Dataset("made up", 1),
        accuracy=None,
        samples=1000,
        real_samples=1000,
        floor=None,
        sampling_steps=SAMPLING_STEPS,
        headline_steps=20,
        sampler="euler",
        eval_steps=STEPS,
        batch_size=1,
        total_steps=STEPS[-1],
        parameters=1,
        couplings=tuple(CouplingEntry(name, name, baseline=not i) for i, name in enumerate(names)),
        trials=tuple(trial(curve, name, seed, shared[seed], rng) for name in names for seed in range(seeds)),
    )


def trial(curve: str, name: str, seed: int, shared: float, rng: np.random.Generator) -> Trial:
    """One run: the weights' luck is common to all sampling steps, half of the rest is each evaluation's own."""
    slope, floor, start, noise = CURVES[curve]
    common, metrics = np.zeros(1), []
    for i, step in enumerate(STEPS):
        common = rng.normal(0, 1, 1) if not i else 0.8 * common + 0.6 * rng.normal(0, 1, 1)
        for steps in SAMPLING_STEPS:
            luck = shared + noise * (common.item() + rng.normal()) / 2
            value = (floor + start * (step / STEPS[0]) ** -slope) * (1 + 8 / steps**1.2) * math.exp(luck)
            metrics.append(SampleMetrics(step, steps, frechet=value))
    return Trial(name, seed, tuple(metrics), finished=True)


def rates(curve: str, seeds: int, pages: int) -> list[float]:
    """Shares of verdicts over training and sampling steps, and of pages and headlines, with and without Holm."""
    rng, rows = np.random.default_rng([seeds, *curve.encode()]), []
    for _ in range(pages):
        page = comparison(curve, seeds, rng)
        results = speedups(page)
        best = best_coupling(page, results)
        assert best
        gains = [r for each in headline_results(page, results, best.name) for r in each if r.verdict is Verdict.HELPS]
        kinds = [np.mean([r.is_resolved for r in results if r.saves == k]) for k in ("training", "sampling")]
        corrected = [any(r.holds for r in some) for some in (results, gains)]
        rows.append([*kinds, any(r.is_resolved for r in results), corrected[0], bool(gains), corrected[1]])
    return [float(mean) for mean in np.mean(rows, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=400, help="comparisons for each row")
    pages = parser.parse_args().pages
    columns = ["verdicts, training steps", "verdicts, sampling steps", "pages with any", "after Holm"]
    columns += ["headlines with a gain", "after Holm"]
    print(f"| curves | seeds | {' | '.join(columns)} |")
    print("|---|" + "--:|" * (1 + len(columns)))
    for seeds in (3, 5):
        for curve in CURVES:
            texts = [f"{100 * rate:.1f}%" for rate in rates(curve, seeds, pages)]
            print(f"| {curve} | {seeds} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
