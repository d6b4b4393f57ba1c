"""analysis.json as the page reads it: what is missing or broken leaves a gap, never an error."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from immiscible_diffusion.analysis.diagnostics import failed, is_zero
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.reporting.html import number
from immiscible_diffusion.reporting.plotting import BASELINE, Look, looks_of

NOTHING = Mean(math.nan, math.nan)
BASE = "independent"
_TAG = 26  # letters beside an axis


def real(value: Any) -> float:
    """A finite number, or NaN."""
    usual = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usual and math.isfinite(value) else math.nan


def mean(value: Any) -> Mean:
    """A mean with its standard error; a bare number has none."""
    if isinstance(value, Mapping):
        return Mean(real(value.get("value")), real(value.get("error")))
    return Mean(real(value), math.nan)


def text(value: Any) -> str:
    """Words; empty for what is missing."""
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return "" if value is None else str(value)


def record(value: Any) -> Mapping[str, Any]:
    """An object; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def records(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list, or of an object of objects; none for anything else."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def reals(value: Any) -> list[float]:
    """A list of numbers, NaN where they are none."""
    return [real(item) for item in value] if isinstance(value, list) else []


def words(value: Any) -> list[str]:
    """The texts of a list, those that are not empty."""
    return [text(item) for item in value if text(item)] if isinstance(value, list) else []


def known(value: Mean) -> bool:
    """Whether there is a value."""
    return not math.isnan(value.value)


def error_of(value: Mean) -> float:
    """The standard error, 0 where there is none or it is rounding."""
    small = math.isnan(value.error) or value.error <= 1e-9 * abs(value.value)
    return 0.0 if small else value.error


def figure(value: float) -> str:
    """A number for people; '-' where there is none."""
    if math.isnan(value):
        return "-"
    if value and abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 999.5 and value == round(value) else number(value)


def count(value: float) -> str:
    """A number of images: 1,790 or 42.8 or 1.07."""
    if math.isnan(value) or abs(value) < 99.95:
        return figure(value)
    return f"{value:,.0f}"


def plus_minus(value: Mean, decimals: int = 6) -> str:
    """A mean with its standard error, to two digits of the error: '736.2 ± 5.3'."""
    error = error_of(value)
    if not known(value) or not error:
        return figure(value.value)
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > decimals:
        return f"{value.value:.1e} ± {error:.0e}"
    return f"{value.value:,.{places}f} ± {error:,.{places}f}"


def counted(value: Mean) -> str:
    """A mean number of images: whole where there are many."""
    error = error_of(value)
    if not known(value) or value.value < 100:
        return plus_minus(value)
    return f"{value.value:,.0f} ± {error:,.0f}" if error >= 1 else f"{value.value:,.0f}"


def difference(one: Mean, other: Mean) -> Mean:
    """Of two means, as if they were independent."""
    return Mean(one.value - other.value, math.hypot(error_of(one), error_of(other)))


def ratio(one: Mean, other: Mean) -> Mean:
    """Of two means, as if they were independent; nothing where the divisor may be 0."""
    if not known(one) or not known(other) or other.value <= 4 * error_of(other):
        return NOTHING
    value = one.value / other.value
    return Mean(value, math.hypot(error_of(one), value * error_of(other)) / other.value)


@dataclass(frozen=True, eq=False)
class Mixing:
    """One ``Miscibility.to_json``: by level, what was measured."""

    values: Mapping[str, Any]

    @property
    def given(self) -> str:
        """The condition."""
        return text(self.values.get("given"))

    @property
    def estimate(self) -> str:
        """How the density was estimated."""
        return text(self.values.get("estimate"))

    @property
    def candidates(self) -> float:
        """Images that may be meant before the point is seen."""
        found = mean(self.values.get("candidates")).value
        return real(self.values.get("images")) if math.isnan(found) else found

    def at(self, t: float, name: str) -> Mean:
        """The value ``name`` at ``t``; ``wrong`` is surprise less entropy."""
        for level in records(self.values.get("levels")):
            if real(level.get("t")) == t:
                if name == "wrong":
                    return difference(mean(level.get("surprise")), mean(level.get("entropy")))
                return mean(level.get(name))
        return NOTHING

    @property
    def times(self) -> list[float]:
        """Levels, lowest first."""
        found = {real(level.get("t")) for level in records(self.values.get("levels"))}
        return sorted(t for t in found if not math.isnan(t))


@dataclass(frozen=True, eq=False)
class Coupling:
    """One coupling of the analysis and how it is drawn."""

    name: str
    look: Look
    values: Mapping[str, Any]

    @property
    def mixing(self) -> Mixing:
        """Without a condition."""
        return Mixing(record(self.values.get("miscibility")))

    @property
    def noise(self) -> Mapping[str, Any]:
        """``NoiseMeasures.to_json``; without what an estimate that failed says of it."""
        found = record(self.values.get("noise"))
        return _without_estimates(found) if self.failed else found

    @property
    def failed(self) -> bool:
        """Whether its density was estimated, and plainly wrong."""
        return failed(self.values)

    @property
    def estimate(self) -> str:
        """How its density was estimated; empty for a closed form."""
        return self.mixing.estimate or text(self.noise.get("estimate"))

    @property
    def label(self) -> str:
        """Its name, marked where it is estimated."""
        mark = " (estimate failed)" if self.failed else " (estimated)"
        return self.name + (mark if self.estimate else "")

    @property
    def tag(self) -> str:
        """Its label for an axis: the middle of a long name left out."""
        name, mark = self.name, " (failed)" if self.failed else " (est.)" * bool(self.estimate)
        keep = _TAG - len(mark)
        if len(name) > keep:
            name = f"{name[: keep // 2 - 1]}…{name[-keep // 2 :]}"
        return name + mark

    def given(self, condition: str) -> Mixing:
        """Given ``condition``; without one for an empty text."""
        if not condition:
            return self.mixing
        found = (Mixing(each) for each in records(self.values.get("given")))
        return next((each for each in found if each.given == condition), Mixing({}))


def _without_estimates(noise: Mapping[str, Any]) -> Mapping[str, Any]:
    """``NoiseMeasures`` without what comes of the density; a KL that is exactly 0 does not."""
    left = ("information",) if is_zero(noise.get("kl")) else ("information", "kl")
    found = {name: value for name, value in noise.items() if name not in left}
    labels = record(noise.get("per_label"))
    return found | {"per_label": {k: _without_estimates(record(v)) for k, v in labels.items()}}


@dataclass(frozen=True, eq=False)
class Analysis:
    """analysis.json."""

    values: Mapping[str, Any]
    couplings: tuple[Coupling, ...]

    @classmethod
    def of(cls, values: Any) -> "Analysis":
        """Read it; ValueError for another format."""
        values = record(values)
        if (version := values.get("format", 1)) != 1:
            raise ValueError(f"analysis.json has format {version!r}; this version reads format 1")
        found = [(text(each.get("name")), each) for each in records(values.get("couplings"))]
        looks = looks_of([name for name, _ in found if name != BASE])
        looks[BASE] = Look(BASELINE, "o", False)
        return cls(values, tuple(Coupling(name, looks[name], each) for name, each in found))

    @property
    def data(self) -> Mapping[str, Any]:
        """What was analyzed."""
        return record(self.values.get("data"))

    @property
    def images(self) -> float:
        """How many."""
        return real(self.data.get("images"))

    @property
    def things(self) -> str:
        """What they are called."""
        return "images" if len(reals(self.data.get("shape"))) == 3 else "data"

    @property
    def baseline(self) -> Coupling | None:
        """Without pairing."""
        return next((each for each in self.couplings if each.name == BASE), None)

    @property
    def paired(self) -> list[Coupling]:
        """All others."""
        return [each for each in self.couplings if each.name != BASE]

    @property
    def conditions(self) -> list[str]:
        """Conditions that things are given, in order of their first appearance."""
        found = [Mixing(m).given for c in self.couplings for m in records(c.values.get("given"))]
        return list(dict.fromkeys(given for given in found if given))

    def times(self, condition: str = "") -> list[float]:
        """Levels of any coupling, lowest first."""
        return sorted({t for each in self.couplings for t in each.given(condition).times})

    @property
    def level(self) -> float:
        """The level that sentences speak of: the last before pure noise; NaN without levels."""
        times = self.times()
        below = [t for t in times if t < 1]
        return max(below or times or [math.nan])

    def class_name(self, key: str) -> str:
        """Of the label ``key``."""
        names = self.data.get("classes")
        listed = names if isinstance(names, list) else []
        usable = key.isdecimal() and int(key) < len(listed)
        return text(listed[int(key)]) if usable else f"label {key}"


def joined(items: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    listed = list(items)
    if len(listed) < 2:
        return "".join(listed)
    return f"{', '.join(listed[:-1])} and {listed[-1]}"
