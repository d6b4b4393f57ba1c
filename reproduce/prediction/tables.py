"""Tables, correlations and the figure of the prediction."""

import csv
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_diffusion.couplings.registry import parse_without_data
from immiscible_diffusion.reporting.compare.speedup import steps_to
from reproduce.prediction.__main__ import COUPLINGS, SAMPLING_STEPS, SETS

PREDICTORS = {
    "loss": "irreducible loss, mean over t (main)",
    "noisy": "irreducible loss at t = 0.85 and 0.95",
    "effective": "log of the effective number of data at t = 0.98",
    "information": "information in the noise, nats",
    "kl": "KL from N(0, I), nats",
}
REPEATS = 4000
Outcome = tuple[str, int]
OUTCOMES: list[Outcome] = [(start, n) for start in ("normal", "matched") for n in SAMPLING_STEPS]
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


@dataclass(frozen=True)
class Point:
    """One coupling on one data set: what was predicted, and logs of what was measured.

    ``bounded`` has, of the seeds of every speed-up, how many without pairing and how many with it
    reached the distance at the first evaluation: the steps are at most those.
    """

    set: str
    coupling: str
    known: dict[str, float]
    speedup: dict[Outcome, list[float]]
    final: dict[Outcome, list[float]]
    bounded: dict[Outcome, tuple[int, int]]

    @property
    def control(self) -> bool:
        """Whether its noises were shuffled."""
        return self.coupling.startswith("shuffled:")

    def mark(self, outcome: Outcome) -> str:
        """Before a speed-up: at least, at most, or either way by seed; empty for none bounded."""
        without, paired = self.bounded[outcome]
        return ("~" if paired else "<= ") if without else (">= " if paired else "")


def points_of(found: dict[str, Any]) -> list[Point]:
    """All couplings of a data set but the baseline."""
    curves: dict[tuple[int, int, str, int], dict[int, float]] = {}
    for row in found["quality"]:
        key = (row["coupling"], row["seed"], row["start"], row["sampling_steps"])
        curves.setdefault(key, {})[row["step"]] = row["frechet"]
    base, points = found["known"][0], []
    for number, name in enumerate(COUPLINGS[1:], start=1):
        speedup: dict[Outcome, list[float]] = {}
        final: dict[Outcome, list[float]] = {}
        bounded: dict[Outcome, tuple[int, int]] = {}
        for coupling, seed, start, sampling_steps in curves:
            if coupling != number:
                continue
            pair = [best(curves[c, seed, start, sampling_steps]) for c in (0, number)]
            target = max(min(curve.values()) for curve in pair)
            (without, low), (steps, high) = (steps_to(curve, target) for curve in pair)
            before = bounded.get((start, sampling_steps), (0, 0))
            bounded[start, sampling_steps] = before[0] + low, before[1] + high
            speedup.setdefault((start, sampling_steps), []).append(math.log(without / steps))
            ratio = min(pair[1].values()) / min(pair[0].values())
            final.setdefault((start, sampling_steps), []).append(-math.log(ratio))
        known = reduction(base, exact(name, found["known"][number]))
        points.append(Point(found["set"], name, known, speedup, final, bounded))
    return points


def exact(name: str, known: dict[str, float]) -> dict[str, float]:
    """``known`` with a KL of 0 where the coupling keeps N(0, I), whatever an estimate said.

    What the estimate took from the information for it is given back.
    """
    if not getattr(parse_without_data(name), "preserves_marginal", False):
        return known
    return known | {"information": known["information"] + known.get("kl", 0.0), "kl": 0.0}


def reduction(base: dict[str, float], known: dict[str, float]) -> dict[str, float]:
    """Predictors: how much less than without pairing; a control's is its noise distribution's part."""
    shares = {name: 1 - known[name] / base[name] for name in ("loss", "noisy")}
    return shares | {
        "effective": math.log(base["effective"] / known["effective"]),
        "information": known["information"],
        "kl": known["kl"],
    }


def best(curve: dict[int, float]) -> dict[int, float]:
    """The best so far."""
    steps = sorted(curve)
    values = np.minimum.accumulate([curve[s] for s in steps]).tolist()
    return dict(zip(steps, values, strict=True))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN without spread."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else math.nan


def ranks(x: np.ndarray) -> np.ndarray:
    """For Spearman's; ties have their mean."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(x))


def interval(points: list[Point], x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """95 %: data sets drawn with replacement, then couplings within them."""
    groups = [np.flatnonzero([p.set == name for p in points]) for name in SETS]
    groups, found = [group for group in groups if len(group)], []
    generator = np.random.default_rng(0)
    for _ in range(REPEATS):
        drawn = [groups[i] for i in generator.integers(len(groups), size=len(groups))]
        rows = np.concatenate([generator.choice(group, len(group)) for group in drawn])
        found.append(correlation(x[rows], y[rows]))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def correlation_row(points: list[Point], predictor: str, outcome: Outcome, kind: str) -> str:
    """A row: correlations of a predictor with an outcome."""
    kept = [p for p in points if not p.control and math.isfinite(p.known[predictor])]
    x = np.array([p.known[predictor] for p in kept])
    y = np.array([np.mean(getattr(p, kind)[outcome]) for p in kept])
    low, high = interval(kept, x, y)
    out = []
    for name in SETS:
        rest = np.array([p.set != name for p in kept])
        if rest.any() and not rest.all():
            out.append(correlation(x[rest], y[rest]))
    within = [
        correlation(x[mine], y[mine]) for name in SETS if (mine := np.array([p.set == name for p in kept])).any()
    ]
    start, sampling_steps = outcome
    sizes = f"{min(out):.2f} to {max(out):.2f}" if out else "-"
    return (
        f"| {PREDICTORS[predictor]} | {kind}, {sampling_steps} steps, {start} | {len(kept)} | "
        f"{correlation(x, y):.2f} ({low:.2f} to {high:.2f}) | "
        f"{correlation(ranks(x), ranks(y)):.2f} | {sizes} | "
        f"{', '.join(f'{value:.2f}' for value in within)} |"
    )


def write_tables(folder: Path, figure: Path | None) -> int:
    """Markdown on stdout, points.csv in ``folder``, and the figure."""
    points = [
        point
        for name in SETS
        if (folder / f"{name}.json").exists()
        for point in points_of(json.loads((folder / f"{name}.json").read_text()))
    ]
    head = "| predictor | outcome | points | Pearson (95 %) | Spearman | without a set | within |"
    lines = [head, "|---|---|--:|---|--:|---|---|"]
    lines += [
        correlation_row(points, "loss", ("normal", sampling_steps), "speedup") for sampling_steps in SAMPLING_STEPS
    ]
    for kind in ("speedup", "final"):
        for predictor in PREDICTORS:
            for outcome in OUTCOMES:
                lines.append(correlation_row(points, predictor, outcome, kind))
    sys.stdout.write("\n".join(lines) + "\n\n" + table(points) + "\n")
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        kinds = ("speedup", "final", "bounded")
        names = [f"{kind} {b} {s}" for kind in kinds for s, b in OUTCOMES]
        writer.writerow(["set", "coupling", *PREDICTORS, *names])
        for p in points:
            values = [np.exp(np.mean(part[o])) for part in (p.speedup, p.final) for o in OUTCOMES]
            rounded = [f"{v:.4g}" for v in (*(p.known[n] for n in PREDICTORS), *values)]
            counts = [sum(p.bounded[o]) for o in OUTCOMES]
            writer.writerow([p.set, p.coupling, *rounded, *counts])
    if figure is not None:
        draw(points, figure)
    return 0


def table(points: list[Point]) -> str:
    """Every point: predicted reduction and measured speed-ups, those that are bounds marked."""
    lines = ["| data | coupling | loss reduced by | 5 steps | 20 steps | 5, matched | 20, matched |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for p in points:
        cells = [f"{p.mark(outcome)}{math.exp(np.mean(p.speedup[outcome])):.2f}" for outcome in OUTCOMES]
        lines.append(f"| {p.set} | {p.coupling} | {p.known['loss']:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(points: list[Point], figure: Path) -> None:
    """Predicted against measured, a panel for each number of sampling steps and start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid, axes = pyplot.subplots(2, 2, figsize=(9, 7), sharex=True, layout="constrained")
    for panel, outcome in zip(axes.flat, OUTCOMES, strict=True):
        for name, color in zip(SETS, COLORS, strict=True):
            for control in (False, True):
                mine = [p for p in points if p.set == name and p.control is control]
                x = [100 * p.known["loss"] for p in mine]
                logs = [np.array(p.speedup[outcome]) for p in mine]
                y = [np.exp(v.mean()) for v in logs]
                error = [[m - np.exp(v.min()) for m, v in zip(y, logs, strict=True)]]
                error += [[np.exp(v.max()) - m for m, v in zip(y, logs, strict=True)]]
                style = {"mfc": "white" if control else color, "color": color, "fmt": "o"}
                label = name if not control and panel is axes.flat[2] else None
                panel.errorbar(x, y, error, ms=5, lw=0.8, label=label, **style)
        panel.axhline(1, color="#888888", lw=0.8)
        panel.set_yscale("log")
        panel.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        panel.minorticks_off()
        start = "N(0, I)" if outcome[0] == "normal" else "matched start"
        panel.set_title(f"{outcome[1]} Euler steps, {start}", fontsize=11)
    for panel in axes[1]:
        panel.set_xlabel("irreducible loss reduced by (%, closed form)")
    for panel in axes[:, 0]:
        panel.set_ylabel("measured speed-up (x)")
    axes.flat[2].legend(fontsize=8, title="hollow: shuffled controls", title_fontsize=8, ncols=3, loc="lower right")
    grid.savefig(figure, dpi=110)
