"""What an analysis allows to say before training, in sentences."""

import math
from typing import Any

from immiscible_diffusion.analysis.diagnostics import failed

NEAR_NOISE = 0.98
# docs/results/prediction_2-core-cpu_2026-11-23.md: 50 points, stated before they were measured.
KNOWN = (
    "How many training steps this saves does not follow from these figures (where we measured "
    "both, the reduction of the irreducible loss did not predict the speed-up: correlation 0.05 at "
    "5 and 0.14 at 20 Euler steps), so no coupling is recommended. Seen afterwards, and so to be "
    "confirmed: the distance of the noise from N(0, I) went with harm (-0.75 and -0.81, if "
    "sampling starts there), but mostly between families of couplings: within plain KNN -0.60 and "
    "-0.75, within the others about 0. Measure it on your data: immiscible probe (minutes, a "
    "small network), or immiscible compare (a recipe)."
)


def advice(analysis: dict[str, Any]) -> dict[str, Any]:
    """``{"recommends": bool, "facts": [...], "sentences": [...]}`` of an analysis.json.

    The facts are its leading figures in words; the sentences what to do about them. Of an estimate
    that failed (``trust.failed``) nothing is told but that.
    """
    couplings = [entry for entry in analysis["couplings"] if entry.get("miscibility")]
    usable = [entry for entry in couplings if not failed(entry)]
    facts = [_mixed(usable[0])] if usable else []
    facts += [_changed(entry) for entry in usable]
    facts += [_failure(entry) for entry in couplings if entry not in usable]
    sentences = [_distorted(entry, analysis["data"].get("masked", False)) for entry in usable]
    sentences += [_small(analysis["data"]), KNOWN]
    said = {"facts": facts, "sentences": sentences}
    return {"recommends": False} | {name: [s for s in each if s] for name, each in said.items()}


def _near_noise(entry: dict[str, Any]) -> tuple[float, float | None]:
    """The level nearest to t = 0.98 (at 1 the posterior of independent noise is flat anyway).

    Its t, and the effective number of data there; None where that is not known.
    """
    levels = entry["miscibility"]["levels"]
    found = min(levels, key=lambda level: abs(level["t"] - NEAR_NOISE))
    return found["t"], found["effective"]["value"] if _finite(found["effective"]) else None


def _mixed(entry: dict[str, Any]) -> str:
    (t, effective), candidates = _near_noise(entry), entry["miscibility"]["candidates"]
    if effective is None or not _finite(candidates):
        return ""
    return (
        f"With {entry['name']} a noisy point at t = {t:g} may come from "
        f"{effective:.0f} of {candidates['value']:.0f} data."
    )


def _changed(entry: dict[str, Any]) -> str:
    """What a coupling tells the network of the sample."""
    noise = entry.get("noise")
    if not noise or entry["name"] == "independent" or not _finite(noise["information"]):
        return ""
    nats, whole = noise["information"]["value"], math.log(max(2, noise["images"]))
    estimate = " (an estimate)" if noise["estimate"] else ""
    t, effective = _near_noise(entry)
    left = "" if effective is None else f"; at t = {t:g} {effective:.0f} data stay possible"
    return (
        f"{entry['name']}: the noise tells {max(0.0, nats):.2f}{estimate} of the {whole:.1f} nats "
        f"that tell all data apart{left}."
    )


def _failure(entry: dict[str, Any]) -> str:
    return (
        f"{entry['name']}: its density could not be estimated on these data (surprise and entropy "
        f"disagree, or the information comes out below 0), so no figure is given."
    )


def _distorted(entry: dict[str, Any], masked: bool) -> str:
    """What sampling from N(0, I) gets wrong after training with a coupling."""
    noise = entry.get("noise")
    if not noise or not _finite(noise["kl"]):
        return ""
    value, error = noise["kl"]["value"], noise["kl"]["error"] or 0.0
    if value < 3 * error or value < 0.01:
        return ""
    name, estimate = entry["name"], " (an estimate)" if noise["estimate"] else ""
    said = f"{name}: its noise is {value:.2f}{estimate} nats from N(0, I), where sampling starts"
    if "shuffled:" in name:  # a control is to have the law that it controls for
        return f"{said}."
    if masked:
        return (
            f"{said}; the remedies, calibrated: and --init-noise matched, are of whole data alone."
        )
    remedy = "" if "calibrated:" in name else f"train with calibrated:{name}, or "
    return f"{said}; {remedy}sample with --init-noise matched."


def _small(data: dict[str, Any]) -> str:
    if data["images"] >= 1000:
        return ""
    return (
        f"There are {data['images']} data only: few enough for a network to know them by heart, "
        f"with or without pairing."
    )


def _finite(mean: dict[str, Any]) -> bool:
    return mean["value"] is not None and math.isfinite(mean["value"])
