"""Writes the report: results.json, two CSV files and one HTML page that needs nothing else."""

import os
from html import escape
from pathlib import Path

from immiscible_diffusion.reporting.compare import plots, tables
from immiscible_diffusion.reporting.compare.excess import excess_section
from immiscible_diffusion.reporting.compare.findings import findings, missing, summary
from immiscible_diffusion.reporting.compare.policies import policy_section
from immiscible_diffusion.reporting.compare.results import FRECHET, Comparison
from immiscible_diffusion.reporting.compare.samples import denoising_section, samples_section
from immiscible_diffusion.reporting.elements import (
    css_class,
    definitions,
    document,
    facts,
    legend,
    panel,
    table,
)
from immiscible_diffusion.utils.atomic_files import write_json, write_text

_HOW_SPEEDUP = (
    "Speed-up = steps(baseline) / steps(coupling) to reach the same quality: above 1 is faster. "
    "Quality is the best figure so far, log-linear between evaluations; the target is "
    "the worse of the two final qualities, so that both reach it. Mean over seeds is geometric, "
    "the 95% interval is a paired t-interval on the logs, not corrected for the number of "
    "comparisons. '> x' or '< x': a run was at the target when first evaluated on some seed, so "
    "only a bound is known and no interval is given."
)


def write_report(comparison: Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write the report of ``comparison`` into ``folder``; returns the path of report.html.

    Writes results.json, results.csv (a row per coupling, seed, step and budget), speedups.csv and
    report.html, each whole or not at all. Sample grids are read from ``folder``.

    Raises:
        ValueError: if a grid exists but is no PNG.
        MissingDependencyError: without matplotlib.
    """
    target = Path(folder)
    page = render_page(comparison, target)
    write_json(target / "results.json", comparison.to_dict())
    write_text(target / "results.csv", tables.results_csv(comparison))
    write_text(target / "speedups.csv", tables.speedups_csv(comparison))
    write_text(target / "report.html", page)
    return target / "report.html"


def render_page(comparison: Comparison, folder: str | os.PathLike[str]) -> str:
    """Return the HTML of the report; sample grids are read from ``folder``."""
    title = f"{comparison.recipe}: training with and without pairing"
    sections = [
        _head(comparison, title),
        _missing(comparison),
        _main_figure(comparison),
        _speedups(comparison),
        policy_section(comparison, Path(folder), _note(comparison)),
        _controls(comparison),
        samples_section(comparison, Path(folder), _note(comparison)),
        denoising_section(comparison, Path(folder), _note(comparison)),
        _cost(comparison),
        excess_section(comparison, _legend(comparison), _note(comparison)),
        _losses(comparison),
        _metrics(comparison),
        _how(comparison),
    ]
    return document(title, sections)


def _head(comparison: Comparison, title: str) -> str:
    dataset = comparison.dataset
    figures = [
        (f"{comparison.total_steps:,}", f"training steps of batch {comparison.batch_size:,}"),
        (str(len(comparison.seeds)), "seeds" if len(comparison.seeds) != 1 else "seed"),
        (f"{dataset.count:,}", f"data ({dataset.name})"),
        (f"{comparison.parameters:,}", "parameters"),
        (comparison.hardware, comparison.date),
    ]
    found = "".join(
        f'<li class="{css_class(f.verdict)}"><p><span class="badge {css_class(f.verdict)}">'
        f"{escape(f.verdict)}</span> · <b>{escape(f.headline)}</b></p>"
        f"<p>{escape(f.detail)}</p></li>"
        for f in findings(comparison)
    )
    return (
        f"<h1>{escape(title)}</h1>\n{facts(figures)}\n"
        f'<p class="lead">{escape(summary(comparison))}</p>\n<ul class="findings">{found}</ul>\n'
        f'<p class="note">{escape(_evidence(comparison))}</p>'
    )


def _missing(comparison: Comparison) -> str:
    lines = missing(comparison)
    if not lines:
        return ""
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<div class="warning"><b>This comparison is not complete.</b><ul>{listed}</ul>'
        "<p>Means and intervals use the seeds that got furthest; speed-ups compare runs up to the "
        "last step that both reached.</p></div>"
    )


def _main_figure(comparison: Comparison) -> str:
    panels = "".join(
        panel(
            plots.quality_against_steps(comparison, budget),
            "headline" if budget == comparison.headline_steps else "",
        )
        for budget in comparison.sampling_steps
    )
    panels += panel(plots.quality_against_budget(comparison))
    caption = (
        f"{comparison.measure.capitalize()} against training steps, one panel per sampling budget "
        "(outlined: the headline budget), and at the end of training. Lines: geometric mean over "
        "seeds as evaluated; bands: smallest to largest seed; dashed: shuffled controls. "
    )
    return (
        f"<h2>Quality against training steps</h2>\n<figure>{_legend(comparison, floor=True)}"
        f'<div class="panels">{panels}</div>'
        f"<figcaption>{escape(caption + _evidence(comparison))}</figcaption></figure>"
    )


def _speedups(comparison: Comparison) -> str:
    first = comparison.headline_steps
    parts = ["<h2>Speed-up and final quality</h2>", f'<p class="note">{escape(_HOW_SPEEDUP)}</p>']
    for budget in [first, *(b for b in comparison.sampling_steps if b != first)]:
        headline = ", headline" if budget == first else ""
        parts.append(f"<h3>{budget} {escape(comparison.sampler_name)} steps{headline}</h3>")
        parts.append(table(tables.speedup_table(comparison, budget), comparison))
    note = "* the floor hides the difference: not resolved. Below 1 the ratio favors the coupling."
    return "\n".join([*parts, f'<p class="note">{note} {escape(_evidence(comparison))}</p>'])


def _controls(comparison: Comparison) -> str:
    kept = tables.control_table(comparison)
    if kept is None:
        return (
            "<h2>Controls</h2><p>No coupling was run with its noises shuffled over the batch, so "
            "how much of any gain is pairing is not known.</p>"
        )
    text = (
        "A control trains with the same noises shuffled over the batch: the same law of the noise, "
        "no pairing. What it keeps of the final gain is not due to pairing. "
        "Shares are ratios of means, given where the gain exceeds the spread of the floor and "
        "is positive on every seed."
    )
    note = f'<p class="note">{escape(_evidence(comparison))}</p>'
    return f"<h2>Controls</h2><p>{text}</p>{table(kept, comparison)}{note}"


def _cost(comparison: Comparison) -> str:
    caption = (
        f"Time of one training step on {comparison.hardware}; the dark part waits for pairing, "
        f"which is otherwise done in a thread meanwhile; dots are seeds. {_note(comparison)}"
    )
    return (
        '<h2>What pairing costs</h2>\n<figure><div class="panels two">'
        f"{panel(plots.pairing_cost(comparison))}"
        f"<div>{table(tables.cost_table(comparison), comparison)}</div></div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _losses(comparison: Comparison) -> str:
    kinds = ("validation", "training")
    drawn = "".join(panel(plots.losses_against_steps(comparison, kind)) for kind in kinds)
    caption = f"{plots.NOT_COMPARABLE} Bands: smallest to largest seed. {_note(comparison)}"
    return (
        f"<h2>Losses</h2>\n<p><b>{escape(plots.NOT_COMPARABLE)}</b> They show whether each run "
        f"trains and still improves.</p><figure>{_legend(comparison)}"
        f'<div class="panels two">{drawn}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _metrics(comparison: Comparison) -> str:
    if comparison.policies:
        return ""  # what there is of a policy stands above
    return (
        "<h2>All metrics at the last evaluated step</h2>\n"
        f"{table(tables.metric_table(comparison), comparison)}"
        '<p class="note">Means over seeds; lower is better for Frechet, KID and memorisation, '
        f"higher for the rest. {escape(_evidence(comparison))}</p>"
    )


def _how(comparison: Comparison) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    names = ", ".join(f"{entry.label} = {entry.name}" for entry in comparison.couplings)
    steps = ", ".join(f"{step:,}" for step in comparison.eval_steps)
    made = {
        "Recipe": comparison.recipe,
        "Couplings": names,
        "Seeds": ", ".join(map(str, comparison.seeds)) or "none yet",
        "Evaluated at": f"steps {steps}",
        "Quality": _evidence(comparison),
        "Hardware": comparison.hardware,
        "Date": comparison.date,
        "Versions": versions,
        "Numbers": "results.json, results.csv and speedups.csv beside this page",
        "Missing": " ".join(missing(comparison)) or "nothing",
    }
    return (
        f"<h2>How this was made</h2>\n<pre>{escape(comparison.command)}</pre>\n"
        f"{definitions(made)}\n<p>All couplings of one seed share initial weights, data order and "
        "times; only the noise differs.</p>"
    )


def _evidence(comparison: Comparison) -> str:
    """What stands beside every figure: features, counts, floor and note."""
    if comparison.measure != FRECHET:
        text = (
            f"The {comparison.measure} is of {comparison.samples:,} held-out windows, one plan for "
            f"each, in the range [-1, 1]."
        )
        return f"{text} {_note(comparison)}".strip()
    accuracy = comparison.accuracy
    features = f"Features: {comparison.features}"
    if accuracy is not None:
        features += f", held-out accuracy {100 * accuracy:.1f}%"
    text = f"{features}. {comparison.samples:,} samples against {comparison.real_samples:,} real."
    floor = comparison.floor
    if floor is None:
        text += " No floor: too few real data for two halves."
    else:
        text += f" Floor (gray): {floor.note}."
    return f"{text}{_sampling(comparison)} {_note(comparison)}".strip()


def _sampling(comparison: Comparison) -> str:
    return f" Sampling: {comparison.sampling}." if comparison.sampling else ""


def _note(comparison: Comparison) -> str:
    note = comparison.note.strip()
    return f"({note})" if note else ""


def _legend(comparison: Comparison, floor: bool = False) -> str:
    items = [(plots.legend_key(comparison, e.name), e.label) for e in comparison.couplings]
    if floor and comparison.floor is not None:
        items.append((plots.FLOOR_KEY, "floor"))
    return legend(items)
