"""Writes analysis.html, one page that needs nothing else, from analysis.json and its thumbnails."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.reporting.analysis import plots, records, summary
from immiscible_diffusion.reporting.analysis.plots import Series
from immiscible_diffusion.reporting.html import image_file, number, render
from immiscible_diffusion.reporting.plotting import BASELINE as BASELINE_COLOR
from immiscible_diffusion.reporting.plotting import LineStyle, line_styles
from immiscible_diffusion.utils.atomic_files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup
    from pandas import DataFrame

_CLASSES = 40  # in a plot, and rows of a table
_SMALL = 64  # pixels: smaller images are not smoothed
_NOISE = ("square", "shift_square", "alignment", "kl", "information")
_NOISE_COLUMNS = ("|n|² / D", "|mean|²", "Alignment", "KL, nats", "Information, nats", "|n|², sd")


def write_analysis_page(folder: str | os.PathLike[str]) -> Path:
    """Write ``folder/analysis.html`` from ``folder/analysis.json``; returns its path.

    Raises:
        ValueError: analysis.json is no JSON or of another schema, or a thumbnail is no PNG.
        FileNotFoundError: without analysis.json.
        MissingDependencyError: without matplotlib, pandas or jinja2.
    """
    target = Path(folder)
    page = render_analysis_page(records.read_analysis(target / "analysis.json"), target)
    write_text(target / "analysis.html", page)
    return target / "analysis.html"


def render_analysis_page(record: records.AnalysisRecord, folder: str | os.PathLike[str]) -> str:
    """The HTML of an analysis; thumbnails are read from ``folder``."""
    page = _Page(record, Path(folder))
    return render("analysis.html", page=page, record=record, summary=summary, title=page.title)


class _Page:
    """Plots, tables and images of one analysis, which the template asks for."""

    def __init__(self, record: records.AnalysisRecord, folder: Path) -> None:
        self.record, self.folder, self.couplings = record, folder, record.couplings
        self.times, self.noun = record.times, record.data.noun
        self.ticks = [f"{t:g}" for t in record.times]
        self.styles = line_styles([c.name for c in self.couplings if c.name != records.BASELINE])
        self.styles[records.BASELINE] = LineStyle(BASELINE_COLOR, "o")
        name = record.data.name.rstrip("/").rpartition("/")[2]  # of a folder its own name
        self.title = f"{name}: how mixed the samples are, and what pairing changes"

    def series(self, read: Callable[[records.CouplingRecord], Iterable[records.Mean]]) -> list[Series]:
        """The values that ``read`` finds in every coupling."""
        return [Series(c.label, self.styles[c.name], list(read(c))) for c in self.couplings]

    def by_level(self, condition: str, name: str, times: Sequence[float] | None = None) -> list[Series]:
        """The value ``name`` at all levels (or ``times``), given ``condition``."""
        return self.series(lambda c: (c.at(condition, t, name) for t in times or self.times))

    def effective_count(self, condition: str) -> float:
        """The effective number of samples before the noisy point is seen."""
        every = (c.under(condition) for c in self.couplings)
        return max((one.effective_count.value for one in every if one), default=math.nan)

    def effective_plot(self, condition: str, title: str) -> "Markup | None":
        """How many samples count at the main level; None where that is not known."""
        total = self.effective_count(condition)
        series = self.by_level(condition, "effective", [self.record.main_time])
        label = f"effective number of {self.noun}"
        return plots.fractions(title, series, label, total) if total > 0 else None

    def overview(self) -> "DataFrame | None":
        """One level, all conditions: how much the choice of the condition matters."""
        conditions, t = ["", *self.record.conditions], self.record.main_time
        if len(conditions) < 3:
            return None
        rows = [
            [c.label, *(summary.counted(c.at(given, t, "effective")) for given in conditions)] for c in self.couplings
        ]
        counts = (summary.count(self.effective_count(given)) for given in conditions)
        header = ["Coupling", *(f"given {c}" if c else "no condition" for c in conditions)]
        return _frame(header, [*rows, ["(before x_t is seen)", *counts]])

    def level_plot(self, condition: str, name: str, title: str, label: str, **options: Any) -> "Markup":
        """A value by level."""
        return plots.lines(title, self.ticks, self.by_level(condition, name), label, **options)

    def relative_loss_plot(self, condition: str, title: str, label: str) -> "Markup | None":
        """The irreducible loss as a fraction of that without pairing."""
        base = self.record.baseline
        if base is None or base.under(condition) is None or len(self.couplings) < 2:
            return None

        def relative(coupling: records.CouplingRecord) -> list[records.Mean]:
            if coupling is base:
                return [records.Mean(1.0, 0.0)] * len(self.times)
            every = ([c.at(condition, t, "irreducible") for c in (coupling, base)] for t in self.times)
            return [summary.ratio(*pair) for pair in every]

        return plots.lines(title, self.ticks, self.series(relative), label, reference=1.0)

    def level_table(self, condition: str, name: str) -> "DataFrame":
        """A row for each coupling of which the value is known at some level."""
        rows = [
            [one.label, *map(str, one.means)]
            for one in self.by_level(condition, name)
            if any(mean.is_known for mean in one.means)
        ]
        if name == "irreducible":
            weights = {level.t: level.weight for level in self.couplings[0].miscibility.levels}
            rows.append(["(the path's weight)", *(number(weights.get(t)) for t in self.times)])
        return _frame(["Coupling", *self.ticks], rows)

    def estimates(self) -> list[tuple[records.CouplingRecord, float, records.Mean]]:
        """Couplings of estimated density, with the level whose error is surely largest."""
        worst = []
        for c in self.couplings:
            if c.miscibility.estimate:
                errors = [(level.t, level.consistency_error) for level in c.miscibility.levels]
                known = [(t, e) for t, e in errors if e.is_known] or [(math.nan, records.UNKNOWN)]
                worst.append((c, *max(known, key=lambda one: abs(one[1].value) - one[1].bar)))
        return worst

    def factor(self, error: records.Mean) -> float:
        """By which an effective number is off where its logarithm is off by ``error``."""
        return math.exp(min(abs(error.value), 700))

    def thumbnails(self) -> list[dict[str, Any]]:
        """Of every sample: its image, and by coupling the images of every level."""
        samples: dict[int, dict[str, Any]] = {}
        for c in self.couplings:
            for one in c.thumbnails:
                truth = image_file(self.folder / one.truth, f"The true sample, number {one.row}")
                sample = samples.setdefault(one.row, {"truth": truth, "couplings": []})
                images = {level.t: self.level_images(level, c.name) for level in one.levels}
                sample["couplings"].append((c.label, images))
        return list(samples.values())

    def level_images(self, level: records.ThumbnailLevel, coupling: str) -> list["Markup | None"]:
        files = {"Noisy point": level.x_t, "Prediction": level.denoised}
        return [
            image_file(self.folder / file, f"{what} at t = {level.t:g}, {coupling}") for what, file in files.items()
        ]

    def thumbnail_class(self) -> str:
        """How the browser scales images: small ones keep their pixels."""
        shape = self.record.data.shape
        return "curves" if len(shape) < 3 else "pixels" if shape[-1] <= _SMALL else ""

    def noise_plot(self, name: str, title: str, label: str, reference: float) -> "Markup | None":
        """A value of the noise; None where it is not known of any coupling."""
        series = self.series(lambda c: [getattr(c.noise, name)])
        known = any(one.means[0].is_known for one in series)
        return plots.points(title, series, label, reference) if known else None

    def directions_plot(self, name: str, title: str, label: str, reference: float) -> "Markup":
        """Means or variances of the noise along the directions of the data."""
        series = self.series(lambda c: getattr(c.noise, name))
        ticks = [str(i + 1) for i in range(len(self.couplings[0].noise.direction_variance))]
        options: dict[str, Any] = {"below": plots.DIRECTION, "reference": reference}
        return plots.lines(title, ticks, series, label, **options)

    def noise_table(self) -> "DataFrame":
        fits = any(c.gaussian_fit for c in self.couplings)
        header = ["Coupling", *_NOISE_COLUMNS, "Pairs"]
        header += ["Gaussian fit less its bias, nats", "Raw", "Bias", "Noises"] if fits else []
        rows = []
        for c in self.couplings:
            row, fit = [c.label, *self._noise_cells(c.noise), f"{c.noise.pairs:,}"], c.gaussian_fit
            if fit:
                row += [*map(number, (fit.corrected, fit.raw, fit.bias)), f"{fit.count:,}"]
            rows.append(row + ["-"] * (len(header) - len(row)))
        return _frame(header, rows)

    def _noise_cells(self, noise: records.NoiseStatistics) -> list[str]:
        """As ``_NOISE_COLUMNS``; the last is how far ``|n|^2`` moved, of N(0, I) with standard deviation sqrt(2 D)."""
        root = math.sqrt(math.prod(self.record.data.shape) / 2)
        square = records.Mean((noise.square.value - 1) * root, noise.square.bar * root)
        moved = "-" if self.record.data.masked else str(square)
        return [*(str(getattr(noise, name)) for name in _NOISE), moved]

    def directions_table(self) -> "DataFrame":
        rows = [
            [f"{c.label}, {name}", *map(str, means)]
            for c in self.couplings
            for name, means in (("variance", c.noise.variances), ("mean", c.noise.means))
        ]
        return _frame(["Coupling", *map(str, range(1, len(rows[0])))], rows)

    @property
    def classes(self) -> dict[str, str]:
        """Labels whose noise was measured by itself, the first so many, with their names."""
        labels = sorted({key for c in self.couplings for key in c.noise.per_label}, key=int)
        names = dict(enumerate(self.record.data.classes or ()))
        return {key: names.get(int(key), f"label {key}") for key in labels[:_CLASSES]}

    def class_plot(self, name: str, title: str, label: str) -> "Markup":
        """A value of the noise of every label by itself."""

        def read(coupling: records.CouplingRecord) -> list[records.Mean]:
            noises = (coupling.noise.per_label.get(key) for key in self.classes)
            return [getattr(noise, name) if noise else records.UNKNOWN for noise in noises]

        ticks = list(self.classes.values())
        options: dict[str, Any] = {"below": "class", "joined": False, "reference": 0.0}
        return plots.lines(title, ticks, self.series(read), label, **options)

    def class_tables(self) -> dict[str, "DataFrame"]:
        def rows(noises: dict[str, records.NoiseStatistics]) -> list[list[str]]:
            every = [(name, noises[key]) for key, name in self.classes.items() if key in noises]
            return [[name, f"{one.samples:,}", *self._noise_cells(one)] for name, one in every]

        header = ["Class", "Samples", *_NOISE_COLUMNS]
        with_labels = [c for c in self.couplings if c.noise.per_label]
        return {c.label: _frame(header, rows(c.noise.per_label)) for c in with_labels}

    def information_plot(self) -> "Markup":
        counts = {"among all": float(self.record.data.samples)}
        for condition in self.record.conditions[:1]:
            counts["given the condition"] = self.effective_count(condition)
        limits = [
            (f"{meaning}: log {summary.count(n)} = {math.log(n):.2f}", math.log(n))
            for meaning, n in counts.items()
            if n > 1
        ]
        series = self.series(lambda c: [c.noise.information, c.noise.kl])
        spent = [c.spent for c in self.couplings]
        return plots.information_bars("What a noise tells of its sample", series, spent, limits)

    def information_table(self) -> "DataFrame":
        rows = []
        for c in self.couplings:
            means = (c.noise.information, c.noise.kl, c.noise.information_and_kl)
            spent = "" if c.spent is None else number(c.spent)
            rows.append([c.label, *map(str, means), spent])
        return _frame(["Coupling", "Information", "KL", "Sum", "log k - 1 + 1/k"], rows)

    def wrong_sums(self) -> list[str] | None:
        """KNN couplings whose information and KL do not add up; None without KNN."""
        sums = [(c.name, c.spent, c.noise.information_and_kl) for c in self.couplings]
        knn = [(name, spent, both) for name, spent, both in sums if spent is not None and both.is_known]
        wrong = [name for name, spent, both in knn if abs(both.value - spent) > 4 * both.bar + 1e-3]
        return wrong if knn else None


def _frame(header: list[str], rows: list[list[str]]) -> "DataFrame":
    import pandas as pd

    return pd.DataFrame(rows, columns=header)
