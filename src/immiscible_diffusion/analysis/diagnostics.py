"""Whether an estimated density can be believed, seen from its own figures."""

import math
from collections.abc import Mapping
from typing import Any

MOST_OFF = 0.5  # nats
SURE = 3.0  # standard errors


def failed(entry: Mapping[str, Any]) -> bool:
    """Whether the density of a coupling, an entry of analysis.json, is an estimate that failed.

    Two things hold for every true density: the mean surprise is the mean entropy, and the noise
    cannot tell less than nothing of its sample. So an estimate failed where surprise and entropy
    are more than half a nat apart at any level, or the information is below 0 by more than three
    standard errors. What is missing or broken counts as no sign of it.
    """
    mixing, noise = _record(entry.get("miscibility")), _record(entry.get("noise"))
    if not (mixing.get("estimate") or noise.get("estimate")):
        return False
    levels = mixing.get("levels")
    for level in levels if isinstance(levels, list) else []:
        surprise, entropy = (_mean(_record(level).get(n))[0] for n in ("surprise", "entropy"))
        if abs(surprise - entropy) > MOST_OFF:  # False of NaN
            return True
    value, error = _mean(noise.get("information"))
    return value < -SURE * error


def is_zero(mean: Any) -> bool:
    """Whether a mean of analysis.json is 0 without error, as the KL of what keeps N(0, I) is."""
    return _mean(mean) == (0.0, 0.0)


def _mean(value: Any) -> tuple[float, float]:
    """A mean and its standard error, NaN where there is none."""
    found = _record(value)
    return _real(found.get("value")), _real(found.get("error"))


def _record(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _real(value: Any) -> float:
    usual = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usual else math.nan
