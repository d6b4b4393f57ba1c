"""What an analysis allows to say before training, in sentences."""

import math
from typing import Any

NEAR_NOISE = 0.98
# docs/results/prediction_2-core-cpu_2026-11-23.md: 50 points, stated before they were measured.
KNOWN = (
    "How many training steps this saves does not follow from these figures (where we measured "
    "both, the reduction of the irreducible loss did not predict the speed-up: correlation 0.05 at "
    "5 and 0.14 at 20 Euler steps), so no coupling is recommended. What did go with harm was the "
    "distance of the noise from N(0, I) (-0.75 and -0.81), if sampling starts there. Measure it on "
    "your data: immiscible probe (minutes, a small network), or immiscible compare (a recipe)."
)


def advice(analysis: dict[str, Any]) -> dict[str, Any]:
    """``{"recommends": bool, "facts": [...], "sentences": [...]}`` of an analysis.json.

    The facts are its leading figures in words; the sentences what to do about them.
    """
    couplings = [entry for entry in analysis["couplings"] if entry.get("miscibility")]
    facts = [_mixed(couplings)] if couplings else []
    facts += [said for entry in couplings if (said := _changed(entry))]
    sentences = [said for entry in couplings if (said := _distorted(entry))]
    if said := _small(analysis["data"]):
        sentences.append(said)
    return {"recommends": False, "facts": facts, "sentences": [*sentences, KNOWN]}


def _near_noise(entry: dict[str, Any]) -> dict[str, Any]:
    """The level nearest to t = 0.98: at 1 the posterior of independent noise is flat anyway."""
    levels = entry["miscibility"]["levels"]
    found: dict[str, Any] = min(levels, key=lambda level: abs(level["t"] - NEAR_NOISE))
    return found


def _mixed(couplings: list[dict[str, Any]]) -> str:
    entry = couplings[0]
    level, count = _near_noise(entry), entry["miscibility"]["candidates"]["value"]
    return (
        f"With {entry['name']} a noisy point at t = {level['t']:g} may come from "
        f"{level['effective']['value']:.0f} of {count:.0f} data."
    )


def _changed(entry: dict[str, Any]) -> str:
    """What a coupling tells the network of the datum."""
    noise = entry.get("noise")
    if not noise or entry["name"] == "independent" or not _finite(noise["information"]):
        return ""
    nats, whole = noise["information"]["value"], math.log(max(2, noise["images"]))
    estimate = " (an estimate)" if noise["estimate"] else ""
    return (
        f"{entry['name']}: the noise tells {max(0.0, nats):.2f}{estimate} of the {whole:.1f} nats "
        f"that tell all data apart; at t = {_near_noise(entry)['t']:g} "
        f"{_near_noise(entry)['effective']['value']:.0f} data stay possible."
    )


def _distorted(entry: dict[str, Any]) -> str:
    """What sampling from N(0, I) gets wrong after training with a coupling."""
    noise = entry.get("noise")
    if not noise or not _finite(noise["kl"]):
        return ""
    value, error = noise["kl"]["value"], noise["kl"]["error"]
    if value < 3 * error or value < 0.01:
        return ""
    name = entry["name"]
    remedy = "" if "calibrated:" in name else f"train with calibrated:{name}, or "
    return (
        f"{name}: its noise is {value:.2f} nats from N(0, I), where sampling starts; {remedy}"
        f"sample with --start matched."
    )


def _small(data: dict[str, Any]) -> str:
    if data["images"] >= 1000:
        return ""
    return (
        f"There are {data['images']} data only: few enough for a network to know them by heart, "
        f"with or without pairing."
    )


def _finite(mean: dict[str, Any]) -> bool:
    return mean["value"] is not None and math.isfinite(mean["value"])
