"""pilot.html: the verdict, what is behind it, and what it does not promise."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from immiscible_diffusion.reporting.compare import Comparison, plots
from immiscible_diffusion.reporting.compare.page import sample_grids
from immiscible_diffusion.reporting.compare.speedup import speedup
from immiscible_diffusion.reporting.compare.tables import interval_text, new_frame
from immiscible_diffusion.reporting.html import image_file, number, render
from immiscible_diffusion.utils.atomic_files import write_text
from immiscible_diffusion.utils.statistics import Interval

NO_PROMISE = (
    "No promise for large models: this is a small network after minutes of training, scored by a "
    "simple distance. What pairing does to it need not be what it does to a large network after "
    "days, in either direction. It says whether an effect shows on these data at all."
)
_VERDICTS = {
    "helps": "helps",
    "costs": "costs",
    "noise": "the control gains as much or more",
    "none": "no effect above seed noise",
    "floor": "within the floor",
    "open": "cannot tell",
}


def write_pilot_page(record: Mapping[str, Any], comparison: Comparison | None, folder: str | os.PathLike[str]) -> Path:
    """Write the page of a pilot into ``folder``; returns its path.

    Args:
        record: pilot.json.
        comparison: of its trials; None where nothing was evaluated.
        folder: images are read from it.

    Raises:
        MissingDependencyError: without matplotlib, pandas or jinja2.
    """
    target, shown = Path(folder), [] if comparison is None else _plots(comparison)
    page = render(
        "pilot.html",
        title=f"Does pairing help on {record['data']['name']}? ({record['question']['coupling']})",
        r=record,
        c=comparison,
        no_promise=NO_PROMISE,
        plots=shown,
        effects=new_frame(_row(effect, comparison) for effect in record["effects"]),
        grids=comparison and sample_grids(comparison, target),
        held_out=image_file(target / "samples" / "held_out.png", "Samples held out"),
    )
    write_text(target / "pilot.html", page)
    return target / "pilot.html"


def _plots(comparison: Comparison) -> list[Any]:
    curves = comparison.sampling_steps if len(comparison.eval_steps) > 1 else ()
    by_step = [plots.metric_against_steps(comparison, steps) for steps in curves]
    return [*by_step, plots.metric_against_sampling_steps(comparison)]


def _row(effect: Mapping[str, Any], comparison: Comparison | None) -> dict[str, str]:
    """An effect as a row of the table."""
    name, steps = effect["coupling"], effect["sampling_steps"]
    ratios = {key: interval_text(Interval(**effect[key])) for key in ("total", "pairing", "noise")}
    saved = speedup(comparison, name, steps) if comparison else None
    return {
        "Coupling": comparison.entry(name).label if comparison else name,
        "Euler steps": f"{steps}",
        "Verdict": _VERDICTS[effect["verdict"]],
        "Distance": number(effect["final"]),
        "without pairing": number(effect["baseline"]),
        "Ratio": ratios["total"],
        "pairing itself": ratios["pairing"],
        "changed noise": ratios["noise"],
        "Speed-up": interval_text(saved.steps, saved.bound) if saved else "-",
    }
