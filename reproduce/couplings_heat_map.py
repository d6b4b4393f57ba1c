"""All couplings of a comparison at a glance: their distance over the baseline's, by number of sampling steps.

    python -m reproduce.couplings_heat_map docs/results/digits-flow.json docs/images/digits-flow-couplings.png

After the last training step, from the record that ``reproduce.publish`` keeps. Blue is better than no pairing, red
worse; gray where the 95 % interval over seeds holds 1, bold where it does not after Holm's correction for all numbers.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import matplotlib.figure

from immiscible_diffusion.reporting import plotting
from immiscible_diffusion.reporting.compare import Comparison
from immiscible_diffusion.reporting.compare.plots import ratios_to_baseline, text_styles
from immiscible_diffusion.utils.atomic_files import atomic_path, read_record


def draw(comparison: Comparison) -> matplotlib.figure.Figure:
    """A row for each coupling, a column for each number of sampling steps."""
    rows = [entry for entry in comparison.couplings if not entry.baseline]
    columns = sorted(comparison.sampling_steps)
    figure = matplotlib.figure.Figure(figsize=(3.2 + 0.8 * len(columns), 1 + 0.34 * len(rows)), dpi=110)
    axes = figure.subplots()
    ratios = {
        (columns.index(n), y): ratio
        for y, entry in enumerate(rows)
        for (step, n), ratio in ratios_to_baseline(comparison, entry.name).items()
        if step == comparison.total_steps
    }
    for (x, y), style in text_styles(ratios).items():
        value = ratios[x, y].value
        plotting.tile(axes, x, y, -math.log(value) / math.log(4))
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=9, **style)
    axes.set_xticks(range(len(columns)), [str(n) for n in columns])
    axes.set_yticks(range(len(rows)), [entry.label for entry in rows])
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel(f"{comparison.sampler_name} steps of the sampler")
    axes.set_title(f"Frechet distance / that of no pairing, {len(comparison.seeds)} seeds", fontsize=10)
    return figure


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("image", type=Path)
    options = parser.parse_args()
    with matplotlib.rc_context(plotting.STYLE), atomic_path(options.image) as temporary:
        figure = draw(Comparison.from_dict(read_record(options.record)))
        figure.savefig(temporary, format="png", bbox_inches="tight")


if __name__ == "__main__":
    main()
