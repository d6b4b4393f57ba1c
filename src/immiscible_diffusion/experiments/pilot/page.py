"""probe.html: the sentence, what is behind it, and what it does not promise."""

import math
import os
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from immiscible_diffusion.experiments.pilot.pictured import DATA, picture_path
from immiscible_diffusion.experiments.pilot.summary import arms_of
from immiscible_diffusion.experiments.pilot.verdict import BASELINE, MATCHED, SHUFFLED
from immiscible_diffusion.reporting import plotting as panels
from immiscible_diffusion.reporting.elements import (
    definitions,
    document,
    facts,
    image,
    legend,
    panel,
    plain_table,
)
from immiscible_diffusion.utils.atomic_files import read_json, write_text

_BADGES = {"helps": "helps", "costs": "hurts"}
_SAYS = {
    "helps": "helps",
    "costs": "costs",
    "law": "the control gains as much or more",
    "none": "no effect above seed noise",
    "floor": "within the floor",
    "open": "cannot tell",
}


def write_probe_page(folder: str | os.PathLike[str]) -> Path:
    """Write ``folder/probe.html`` from ``folder/probe.json``; returns its path.

    Raises:
        ValueError: probe.json is no JSON or of another format, or a picture is no PNG.
        MissingDependencyError: without matplotlib.
    """
    target = Path(folder)
    values = read_json(target / "probe.json")
    if not isinstance(values, dict) or values.get("format") != 1:
        raise ValueError(f"{target / 'probe.json'} is not a probe of format 1")
    write_text(target / "probe.html", render(values, target))
    return target / "probe.html"


def render(values: dict[str, Any], folder: Path) -> str:
    """The HTML of a probe; pictures are read from ``folder``."""
    title = f"Does pairing help on {values['data']['name']}? ({values['coupling']})"
    sections = [_head(values, title)]
    if values["comparisons"]:
        sections += [_curves(values), _table(values), _samples(values, folder)]
    return document(title, [*sections, _how(values)])


def _head(values: dict[str, Any], title: str) -> str:
    data, plan = values["data"], values["plan"]
    shape = " x ".join(map(str, data["shape"]))
    figures = [(f"{data['count']:,}", f"data of {shape}")]
    if plan is not None:
        done = f"{len(values['seeds_finished'])} of {plan['seeds']}"
        figures += [(done, "seeds"), (f"{plan['steps']:,}", "training steps each")]
        figures += [(f"{values['seconds'] / 60:.1f}", "minutes of training")]
    kind = _BADGES.get(values["verdict"], "unresolved")
    return (
        f"<h1>{escape(title)}</h1>\n{facts(figures)}\n"
        f'<ul class="findings"><li class="{kind}"><p class="lead">'
        f"<b>{escape(values['sentence'])}</b></p></li></ul>\n"
        f'<div class="warning"><p><b>{escape(values["no_promise"])}</b></p></div>'
    )


def _looks(values: dict[str, Any]) -> dict[str, panels.Look]:
    """One color for each start; controls dashed."""
    name = values["coupling"]
    looks = panels.looks_of([name, MATCHED + name])
    for start in ("", MATCHED):
        look = looks[start + name]
        looks[start + SHUFFLED + name] = panels.Look(look.color, look.marker, True)
    looks[BASELINE] = panels.Look(panels.BASELINE, "o", False)
    return looks


def _curves(values: dict[str, Any]) -> str:
    looks, arms = _looks(values), arms_of(values)
    drawn = "".join(panel(_curve(values, budget)) for budget in _budgets(values))
    key = legend([(panels.look_key(looks[arm]), _label(arm)) for arm in arms])
    floor = values["floor"]
    caption = (
        "Frechet distance of samples to data held out of training, lower is better. Lines: "
        "geometric mean over seeds; bands: smallest to largest seed; points alone: seeds; dashed "
        "or hollow: the control, the same noises shuffled. Gray: the floor, two sets of "
        f"{floor['size']:,} real data are {floor['mean']:.3g} apart ({floor['low']:.3g} to "
        f"{floor['high']:.3g})."
    )
    return (
        f"<h2>Distance to held-out data</h2>\n<figure>{key}"
        f'<div class="panels">{drawn}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _curve(values: dict[str, Any], budget: int) -> str:
    looks, floor = _looks(values), values["floor"]
    if len(values["plan"]["at"]) == 1:
        return _ends(values, budget)
    with panels.svg_panel(f"probe-{budget}", f"{budget} Euler steps") as (axes, output):
        for arm in arms_of(values):
            found = _by_step(values, arm, budget)
            steps = sorted(found)
            means = [math.exp(fmean(map(math.log, found[step]))) for step in steps]
            axes.plot(steps, means, **looks[arm].options)
            ends = [min(found[s]) for s in steps], [max(found[s]) for s in steps]
            alpha = 0.06 if looks[arm].control else 0.15
            axes.fill_between(steps, *ends, color=looks[arm].color, alpha=alpha, linewidth=0)
        axes.axhspan(max(floor["low"], 1e-12), floor["high"], color="#888888", alpha=0.22)
        axes.set(xlabel="training steps", ylabel="Frechet distance", yscale="log")
        _plain_ticks(axes, axes.yaxis)
    return output[0]


def _ends(values: dict[str, Any], budget: int) -> str:
    """Every seed at the end of training, where there was no time for a curve."""
    looks, floor, arms = _looks(values), values["floor"], arms_of(values)[::-1]
    with panels.svg_panel(f"probe-{budget}", f"{budget} Euler steps") as (axes, output):
        for row, arm in enumerate(arms):
            for found in _by_step(values, arm, budget).values():
                options = {**looks[arm].options, "linestyle": "none"}
                axes.plot(found, [row] * len(found), **options)
        axes.axvspan(max(floor["low"], 1e-12), floor["high"], color="#888888", alpha=0.22)
        labels = [_label(arm).replace(", from", ",\nfrom") for arm in arms]
        axes.set_yticks(range(len(arms)), labels, parse_math=False)
        axes.set(xlabel="Frechet distance at the end", xscale="log")
        _plain_ticks(axes, axes.xaxis)
    return output[0]


def _plain_ticks(axes: Any, axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.grid(True)
    axes.set_axisbelow(True)


def _by_step(values: dict[str, Any], arm: str, budget: int) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for cell in values["cells"]:
        if cell["seed"] not in values["seeds_finished"]:
            continue
        for point in cell["points"]:
            if point["arm"] == arm and point["budget"] == budget:
                found.setdefault(point["step"], []).append(max(point["distance"], 1e-12))
    return found


def _table(values: dict[str, Any]) -> str:
    header = ["Coupling and start", "Euler steps", "Verdict", "Distance", "without pairing"]
    header += ["Ratio", "against its control", "of it pairing", "Fewer steps"]
    rows = []
    for row in values["comparisons"]:
        share = row["share_of_pairing"]
        rows.append(
            [
                _label(row["arm"]),
                str(row["budget"]),
                _SAYS[row["verdict"]],
                f"{row['final']:.3g}",
                f"{row['baseline']:.3g}",
                _interval(row["ratio"]),
                _interval(row["of_pairing"]),
                "-" if share is None else f"{min(1.0, share):.0%}",
                _speed_up(row["speed_up"]),
            ]
        )
    note = (
        f"Ratio: final distance with pairing / without, paired by seed; below 1 is better. "
        f"{len(rows)} comparisons were looked at, so each interval is at {values['level']:.2%} "
        f"(Bonferroni): together they hold at 95%. A gain counts if its interval excludes 1, the "
        f"floor does not hide it, and the interval against the control excludes 1 too; 'no effect' "
        f"means an effect of 25% would have been seen. Fewer steps: training steps without pairing "
        f"/ with it to the same distance, 95% interval, for information."
    )
    return f'<h2>Comparisons</h2>\n{plain_table((header, rows))}<p class="note">{escape(note)}</p>'


def _samples(values: dict[str, Any], folder: Path) -> str:
    sampling_steps = _budgets(values)
    if not (folder / picture_path(BASELINE, sampling_steps[0])).is_file():
        return (
            "<h2>Samples</h2><p>Data of this shape are not shown: pictures are made of images of "
            "one or three channels.</p>"
        )
    rows = []
    for arm in arms_of(values):
        shown = "".join(
            f"<td>{image(folder, picture_path(arm, b), f'{_label(arm)}, {b} steps')}</td>"
            for b in sampling_steps
        )
        rows.append(f"<tr><td>{escape(_label(arm))}</td>{shown}</tr>")
    real = image(folder, picture_path(DATA, None), "Data held out")
    rows.append(f'<tr><td>Data</td><td colspan="{len(sampling_steps)}">{real}</td></tr>')
    head = "".join(f"<th>{b} Euler steps</th>" for b in sampling_steps)
    return (
        '<h2>Samples</h2>\n<figure><div class="scroll"><table class="grids">'
        f"<tr><th>Trained with</th>{head}</tr>{''.join(rows)}</table></div><figcaption>At the end "
        "of training, first seed, from the same start noise.</figcaption></figure>"
    )


def _how(values: dict[str, Any]) -> str:
    data, plan = values["data"], values["plan"]
    made = {
        "Data": f"{data['name']}. {data['note']}".strip(". "),
        "Held out": f"{data['held_out']:,} at random for every seed, for judging alone",
        "Told the network": ", ".join(data["conditions"]) or "no condition",
        "Network": f"{values['network']}; flow matching, batches of {values['batch_size']}",
        "Distance": f"Frechet distance in: {values['features'] or '-'}",
        "Without training": _untrained(values["untrained"]),
        "Judged at steps": ", ".join(map(str, plan["at"])) if plan else "-",
        "Seeds": ", ".join(map(str, values["seeds_finished"])) or "none finished",
        "Hardware": f"{values['hardware']}, {values['threads']} threads",
        "Load at the start": values["load"] or "unknown",
        "Date": values["date"],
        "Versions": ", ".join(f"{name} {v}" for name, v in values["versions"].items()),
        "Numbers": "probe.json beside this page",
    }
    return (
        f"<h2>How this was made</h2>\n<pre>{escape(values['command'])}</pre>\n"
        f"{definitions(made)}\n<p>All couplings of one seed share data, their order, times, "
        "initial weights and the start noise of sampling; only the noise of training differs. Data "
        "that overlap, such as windows of one recording, leak from training to what is held "
        "out.</p>"
    )


def _untrained(distance: float | None) -> str:
    if distance is None:
        return "-"
    return f"{distance:.3g} away (pure noise or the mean of the data, whichever is nearer)"


def _budgets(values: dict[str, Any]) -> list[int]:
    return sorted({row["budget"] for row in values["comparisons"]})


def _label(arm: str) -> str:
    if arm == BASELINE:
        return "no pairing"
    name = arm.removeprefix(MATCHED)
    name = f"{name.removeprefix(SHUFFLED)}, shuffled" if name.startswith(SHUFFLED) else name
    return f"{name}, from its own law" if arm.startswith(MATCHED) else f"{name}, from N(0, I)"


def _interval(ratio: dict[str, Any]) -> str:
    if ratio["low"] is None or ratio["high"] is None:
        return f"{ratio['value']:.3g}"
    return f"{ratio['value']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})"


def _speed_up(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["bound"] == "~":
        return "-"
    text = f"{estimate['bound']} {_interval(estimate)}x".strip()
    return text
