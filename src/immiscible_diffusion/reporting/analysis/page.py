"""Writes analysis.html, one page that needs nothing else, from analysis.json and its thumbnails."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.reporting.analysis import plots
from immiscible_diffusion.reporting.analysis.plots import Series
from immiscible_diffusion.reporting.analysis.records import (
    BASELINE,
    SURE,
    UNKNOWN,
    AnalysisRecord,
    CouplingRecord,
    Mean,
    Miscibility,
    NoiseStatistics,
    read_analysis,
)
from immiscible_diffusion.reporting.analysis.summary import (
    condition_summary,
    count,
    counted,
    findings,
    ratio,
    remarks,
)
from immiscible_diffusion.reporting.html import image_file, number, render
from immiscible_diffusion.reporting.plotting import BASELINE as BASELINE_COLOR
from immiscible_diffusion.reporting.plotting import LineStyle, line_styles
from immiscible_diffusion.utils.atomic_files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup
    from pandas import DataFrame

_CLASSES = 40  # in a plot, and rows of a table
_ROWS = 6  # couplings times samples that are drawn without a click
_SMALL = 64  # pixels: smaller images are not smoothed
_QUANTITIES = {
    "effective": "Effective number",
    "entropy": "Entropy of the posterior (nats)",
    "true_probability": "Posterior probability of the true sample",
    "irreducible": "Irreducible loss per dimension",
    "model_loss": "Loss of the optimal denoiser on these very points, per dimension",
    "consistency_error": "Negative log-likelihood less entropy (nats; 0 for an exact density)",
}
# Of the noise: title of the plot, label of its axis, value of N(0, I) without pairing.
_NOISE = {
    "square": ("Length of the noise", "|n|² / D (1 for N(0, I))", 1.0),
    "shift_square": ("Shift of its mean", "|mean of n|², variances (0 for N(0, I))", 0.0),
    "alignment": ("Alignment with the sample", "standard deviations (0 without pairing)", 0.0),
    "kl": ("Distance from N(0, I)", "KL, nats (0 for N(0, I))", 0.0),
}
_NOISE_COLUMNS = ("|n|² / D", "|mean|²", "Alignment", "KL, nats", "Information, nats")


def write_analysis_page(folder: str | os.PathLike[str]) -> Path:
    """Write ``folder/analysis.html`` from ``folder/analysis.json``; returns its path.

    Raises:
        ValueError: analysis.json is no JSON or of another schema, or a thumbnail is no PNG.
        FileNotFoundError: without analysis.json.
        MissingDependencyError: without matplotlib, pandas or jinja2.
    """
    target = Path(folder)
    page = render_analysis_page(read_analysis(target / "analysis.json"), target)
    write_text(target / "analysis.html", page)
    return target / "analysis.html"


def render_analysis_page(record: AnalysisRecord, folder: str | os.PathLike[str]) -> str:
    """The HTML of an analysis; thumbnails are read from ``folder``."""
    return render("analysis.html", **_Page(record, Path(folder)).context())


class _Page:
    """What the template shows of one analysis."""

    def __init__(self, record: AnalysisRecord, folder: Path) -> None:
        self.record, self.folder, self.couplings = record, folder, record.couplings
        self.styles = line_styles([c.name for c in self.couplings if c.name != BASELINE])
        self.styles[BASELINE] = LineStyle(BASELINE_COLOR, "o")

    def context(self) -> dict[str, Any]:
        record, data = self.record, self.record.data
        name = data.name.rstrip("/").rpartition("/")[2]  # of a folder its own name
        return {
            "title": f"{name}: how mixed the samples are, and what pairing changes",
            "record": record,
            "lead": condition_summary(record),
            "findings": findings(record),
            "remarks": remarks(record),
            "head_plots": self.head_plots(),
            "overview": self.overview(),
            "versions": [self.version(condition) for condition in ("", *record.conditions)],
            "estimates": [(c, self.worst_level(c)) for c in self.couplings if self.estimated(c)],
            "consistency_plot": self.consistency_plot(),
            "times": record.times,
            "thumbnails": self.thumbnails(),
            "shown_first": max(1, _ROWS // len(self.couplings)),
            "thumbnail_class": self.thumbnail_class(),
            "noise_plots": self.noise_plots(),
            "noise_table": self.noise_table(),
            "impossible": [c for c in self.couplings if _impossible(c.noise.kl)],
            "directions": self.directions_table(),
            "class_plots": self.class_plots(),
            "class_tables": self.class_tables(),
            "information_plot": self.information_plot(),
            "information_table": self.information_table(),
            "wrong_sums": self.wrong_sums(),
            "count": count,
            "factor": lambda error: math.exp(min(abs(error.value), 700)),
            "seconds": sum(coupling.seconds for coupling in self.couplings),
        }

    def series(self, read: Callable[[CouplingRecord], Iterable[Mean]]) -> list[Series]:
        """The values that ``read`` finds in every coupling."""
        return [Series(c.label, self.styles[c.name], list(read(c))) for c in self.couplings]

    def by_level(self, condition: str, name: str) -> list[Series]:
        return self.series(lambda c: [_at(c.under(condition), t, name) for t in self.record.times])

    def head_plots(self) -> list["Markup"]:
        record, t, drawn = self.record, self.record.main_time, []
        for condition in [*record.conditions[:1], ""]:
            series = self.series(lambda c, g=condition: [_at(c.under(g), t, "effective")])  # type: ignore[misc]
            total = self.effective_count(condition)
            if total > 0:
                title = f"{'Given the condition' if condition else 'Over all samples'}, t = {t:g}"
                label = f"effective number of {record.data.noun}"
                drawn.append(plots.fractions(title, series, label, total))
        return drawn

    def effective_count(self, condition: str) -> float:
        """Before the noisy point is seen."""
        every = (c.under(condition) for c in self.couplings)
        return max((one.effective_count.value for one in every if one), default=math.nan)

    def overview(self) -> "DataFrame | None":
        """One level, all conditions: how much the choice of the condition matters."""
        conditions = ["", *self.record.conditions]
        if len(conditions) < 3:
            return None
        t = self.record.main_time
        header = ["Coupling", *(f"given {c}" if c else "no condition" for c in conditions)]
        rows = [
            [c.label, *(counted(_at(c.under(given), t, "effective")) for given in conditions)]
            for c in self.couplings
        ]
        counts = [count(self.effective_count(given)) for given in conditions]
        return _frame(header, [*rows, ["(before x_t is seen)", *counts]])

    def version(self, condition: str) -> dict[str, Any]:
        """Plots and tables given one condition, or none where ``condition`` is empty."""
        record, times = self.record, self.record.times
        ticks, noun, total = [f"{t:g}" for t in times], record.data.noun, record.data.samples
        number_of = self.effective_count(condition)
        where = f", given {condition}" if condition else ""
        drawn = [
            plots.lines(
                f"{noun.capitalize()} a noisy point may come from",
                ticks,
                self.by_level(condition, "effective"),
                f"effective number of {noun}",
                log=True,
                reference=number_of,
                least=1.0,
            ),
            plots.lines(
                "Probability of the true sample",
                ticks,
                self.by_level(condition, "true_probability"),
                "posterior probability",
                log=True,
            ),
            plots.lines(
                "Irreducible loss",
                ticks,
                self.by_level(condition, "irreducible"),
                "irreducible loss per dimension",
            ),
        ]
        base = record.baseline.under(condition) if record.baseline else None
        if base is not None and len(self.couplings) > 1:
            relative = self.series(
                lambda c: [
                    ratio(_at(c.under(condition), t, "irreducible"), base.at(t, "irreducible"))
                    if c.name != BASELINE
                    else Mean(1.0, 0.0)
                    for t in times
                ]
            )
            label = "fraction of the loss without pairing"
            drawn.append(
                plots.lines("Irreducible loss, relative", ticks, relative, label, reference=1.0)
            )
        tables = {title: self.level_table(condition, name) for name, title in _QUANTITIES.items()}
        return {
            "condition": condition,
            "where": where,
            "number": number_of,
            "total": total,
            "plots": drawn,
            "tables": tables,
        }

    def level_table(self, condition: str, name: str) -> "DataFrame":
        times = self.record.times
        rows = [
            [one.label, *map(str, one.means)]
            for one in self.by_level(condition, name)
            if any(mean.is_known for mean in one.means)
        ]
        if name == "irreducible":
            weights = {level.t: level.weight for level in self.couplings[0].miscibility.levels}
            rows.append(["(the path's weight)", *(number(weights.get(t)) for t in times)])
        return _frame(["Coupling", *(f"{t:g}" for t in times)], rows)

    def estimated(self, coupling: CouplingRecord) -> bool:
        return bool(coupling.miscibility.estimate)

    def worst_level(self, coupling: CouplingRecord) -> tuple[float, Mean]:
        """The level whose consistency error is surely largest."""
        every = [(level.t, level.consistency_error) for level in coupling.miscibility.levels]
        every = [(t, error) for t, error in every if error.is_known] or [(math.nan, UNKNOWN)]
        return max(every, key=lambda one: abs(one[1].value) - one[1].bar)

    def consistency_plot(self) -> "Markup | None":
        if not any(map(self.estimated, self.couplings)):
            return None
        return plots.lines(
            "How wrong the densities are",
            [f"{t:g}" for t in self.record.times],
            self.by_level("", "consistency_error"),
            "negative log-likelihood less entropy (nats)",
            reference=0.0,
        )

    def thumbnails(self) -> list[dict[str, Any]]:
        """Of every sample: its image, and by coupling the images of every level."""
        every: dict[int, dict[str, Any]] = {}
        for coupling in self.couplings:
            for one in coupling.thumbnails:
                alt = f"The true sample, number {one.row}"
                truth = image_file(self.folder / one.truth, alt)
                sample = every.setdefault(one.row, {"truth": truth, "couplings": []})
                levels = {
                    level.t: [
                        image_file(
                            self.folder / file, f"{what} at t = {level.t:g}, {coupling.name}"
                        )
                        for what, file in (
                            ("Noisy point", level.x_t),
                            ("Prediction", level.denoised),
                        )
                    ]
                    for level in one.levels
                }
                sample["couplings"].append((coupling.label, levels))
        return list(every.values())

    def thumbnail_class(self) -> str:
        """How the browser scales images: small ones keep their pixels."""
        shape = self.record.data.shape
        return "curves" if len(shape) < 3 else "pixels" if shape[-1] <= _SMALL else ""

    def noise_plots(self) -> list["Markup"]:
        drawn = []
        for name, (title, label, reference) in _NOISE.items():
            series = self.series(lambda c, n=name: [getattr(c.noise, n)])  # type: ignore[misc]
            if any(one.means[0].is_known for one in series):
                drawn.append(plots.points(title, series, label, reference))
        ticks = [str(i + 1) for i in range(len(self.couplings[0].noise.direction_variance))]
        for title, label, reference, read in (
            ("Variance along the data's directions", "variance (1 for N(0, I))", 1.0, _variances),
            ("Mean along the data's directions", "standard deviations", 0.0, _direction_means),
        ):
            series = self.series(lambda c, f=read: f(c.noise))  # type: ignore[misc]
            drawn.append(
                plots.lines(title, ticks, series, label, below=plots.DIRECTION, reference=reference)
            )
        return drawn

    def noise_table(self) -> "DataFrame":
        fits = any(c.gaussian_fit for c in self.couplings)
        header = ["Coupling", *_NOISE_COLUMNS, "Pairs"]
        header += ["Gaussian fit less its bias, nats", "Raw", "Bias", "Noises"] if fits else []
        rows = []
        for c in self.couplings:
            row = [c.label, *_noise_cells(c.noise), f"{c.noise.pairs:,}"]
            if fits:
                fit = c.gaussian_fit
                values = (fit.corrected, fit.raw, fit.bias) if fit else (None,) * 3
                row += [*map(number, values), f"{fit.count:,}" if fit else "-"]
            rows.append(row)
        return _frame(header, rows)

    def directions_table(self) -> "DataFrame":
        rows = [
            [f"{c.label}, {name}", *map(str, read(c.noise))]
            for c in self.couplings
            for name, read in (("variance", _variances), ("mean", _direction_means))
        ]
        return _frame(["Coupling", *map(str, range(1, len(rows[0])))], rows)

    @property
    def classes(self) -> list[str]:
        """Labels whose noise was measured by itself."""
        return sorted({key for c in self.couplings for key in c.noise.per_label}, key=int)

    def class_name(self, label: str) -> str:
        names = self.record.data.classes or ()
        return names[int(label)] if 0 <= int(label) < len(names) else f"label {label}"

    def class_plots(self) -> list["Markup"]:
        keys = self.classes[:_CLASSES]
        names = [self.class_name(key) for key in keys]
        drawn = []
        for name in ("shift_square", "kl") if keys else ():
            title, label, reference = _NOISE[name]
            series = self.series(
                lambda c, n=name: (  # type: ignore[misc]
                    getattr(c.noise.per_label[key], n) if key in c.noise.per_label else UNKNOWN
                    for key in keys
                )
            )
            options: dict[str, Any] = {"below": "class", "joined": False, "reference": reference}
            drawn.append(plots.lines(f"{title}, by class", names, series, label, **options))
        return drawn

    def class_tables(self) -> dict[str, "DataFrame"]:
        header = ["Class", "Samples", *_NOISE_COLUMNS]
        return {
            c.label: _frame(
                header,
                [
                    [self.class_name(key), f"{one.samples:,}", *_noise_cells(one)]
                    for key in self.classes[:_CLASSES]
                    if (one := c.noise.per_label.get(key))
                ],
            )
            for c in self.couplings
            if c.noise.per_label
        }

    def information_plot(self) -> "Markup":
        counts = [("among all", float(self.record.data.samples))]
        if self.record.conditions:
            condition = self.record.conditions[0]
            counts.append(("given the condition", self.effective_count(condition)))
        limits = [
            (f"{meaning}: log {count(n)} = {math.log(n):.2f}", math.log(n))
            for meaning, n in counts
            if n > 1
        ]
        series = self.series(lambda c: [c.noise.information, c.noise.kl])
        spent = [c.spent for c in self.couplings]
        return plots.information_bars("What a noise tells of its sample", series, spent, limits)

    def information_table(self) -> "DataFrame":
        rows = [
            [
                c.label,
                *map(str, (c.noise.information, c.noise.kl, _total(c))),
                number(c.spent) if c.spent is not None else "",
            ]
            for c in self.couplings
        ]
        return _frame(["Coupling", "Information", "KL", "Sum", "log k - 1 + 1/k"], rows)

    def wrong_sums(self) -> list[str] | None:
        """KNN couplings whose information and KL do not add up; None without KNN."""
        knn = [c for c in self.couplings if c.spent is not None and _total(c).is_known]
        if not knn:
            return None
        return [c.name for c in knn if abs(_total(c).value - c.spent) > 4 * _total(c).bar + 1e-3]  # type: ignore[operator]


def _at(mixing: Miscibility | None, t: float, name: str) -> Mean:
    return UNKNOWN if mixing is None else mixing.at(t, name)


def _impossible(kl: Mean) -> bool:
    """Whether a KL is below 0 beyond its error."""
    return kl.is_known and kl.value < -max(SURE * kl.bar, 0.005)


def _variances(noise: NoiseStatistics) -> list[Mean]:
    pairs = zip(noise.direction_variance, noise.direction_error, strict=True)
    return [Mean(value, error) for value, error in pairs]


def _direction_means(noise: NoiseStatistics) -> list[Mean]:
    """With the errors of means of ``pairs`` values of the measured variance."""
    pairs = zip(noise.direction_mean, noise.direction_variance, strict=True)
    return [Mean(value, math.sqrt(variance / noise.pairs)) for value, variance in pairs]


def _noise_cells(noise: NoiseStatistics) -> list[str]:
    return [str(getattr(noise, name)) for name in (*_NOISE, "information")]


def _total(coupling: CouplingRecord) -> Mean:
    information, kl = coupling.noise.information, coupling.noise.kl
    return Mean(information.value + kl.value, math.hypot(information.bar, kl.bar))


def _frame(header: list[str], rows: list[list[str]]) -> "DataFrame":
    import pandas as pd

    return pd.DataFrame(rows, columns=header)
