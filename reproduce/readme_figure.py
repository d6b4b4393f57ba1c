"""The picture of the README: what pairing saves in training steps and in sampling steps, and where.

    python -m reproduce.readme_figure docs/results/digits-flow.json docs/images/digits-flow.png

Three panels of the record that ``reproduce.publish`` keeps: the metric along training, the metric by number of
sampling steps at the end, and one coupling over the baseline at every training step and number of sampling steps.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import pandas as pd

from immiscible_diffusion.reporting import plotting
from immiscible_diffusion.reporting.compare import Comparison
from immiscible_diffusion.reporting.compare.plots import draw_heat_map, metric_by_step, ratios_to_baseline, styles_of
from immiscible_diffusion.utils.atomic_files import atomic_path, read_record

SHOWN = {
    "independent": "no pairing",
    "calibrated:knn:k=64": "KNN k = 64, calibrated",
    "assignment": "assignment",
    "matched:knn:k=4": "KNN k = 4, matched start",
    "shuffled:calibrated:knn:k=64": "k = 64 calibrated, shuffled (control)",
}
BEST, STEPS = "calibrated:knn:k=64", 20


def draw(axes: Any, comparison: Comparison, curves: dict[str, Any], xlabel: str, title: str) -> None:
    """A line with its range over seeds for each coupling."""
    styles = styles_of(comparison)
    for name, frame in curves.items():
        axes.plot(frame.index, frame["mean"], label=SHOWN[name], **styles[name].options)
        axes.fill_between(frame.index, frame.low, frame.high, color=styles[name].color, alpha=0.12, linewidth=0)
    plotting.log_x(axes, sorted({int(x) for frame in curves.values() for x in frame.index}))
    plotting.log_y(axes)
    axes.set(xlabel=xlabel, ylabel="Frechet distance (lower is better)", title=title)
    axes.grid(True)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    c = Comparison.from_dict(read_record(options.record))
    by_step = {name: metric_by_step(c, name, STEPS) for name in SHOWN}
    ends = {name: [(n, metric_by_step(c, name, n).iloc[-1]) for n in sorted(c.sampling_steps)] for name in SHOWN}
    by_sampling = {name: pd.DataFrame([row for _, row in rows], [n for n, _ in rows]) for name, rows in ends.items()}
    with matplotlib.rc_context(plotting.STYLE):
        figure = matplotlib.figure.Figure(figsize=(14, 4.6), layout="constrained", dpi=110)
        first, second, third = figure.subplots(1, 3)
        draw(first, c, by_step, "training steps", f"Training, sampled in {STEPS} Euler steps")
        draw(second, c, by_sampling, "Euler steps of the sampler", f"After {c.total_steps:,} training steps")
        draw_heat_map(third, c, ratios_to_baseline(c, BEST), math.log(3))
        third.set_title("k = 64 calibrated / no pairing")
        figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        with atomic_path(options.picture) as temporary:
            figure.savefig(temporary, format="png")


if __name__ == "__main__":
    main()
