"""A made-up analysis.json with known answers."""

import math

LEVELS = (0.4, 0.9, 0.98, 1.0)
# By coupling: effective numbers, irreducible losses; then information and KL in nats.
MIXED = {
    "independent": ((3, 1600, 1790, 1797), (0.13, 0.36, 0.31, 0.29), 0, 0),
    "knn:k=64": ((1.4, 400, 736, 760), (0.02, 0.27, 0.26, 0.25), 1.0, math.log(64) - 63 / 64 - 1),
    "assignment": ((1.1, 20, 43, 52), (0.004, 0.14, 0.17, 0.18), 3.8, -0.2),
}
CONDITIONS = ("the label", "a Gaussian kernel on the condition, bandwidth 0.5")


def mean(value, error=0.0):
    return {"value": value, "error": error}


def mixing_of(name, given, share):
    numbers, losses, *_ = MIXED[name]
    wrong = -0.3 if name == "assignment" else 0.0
    error = 0.0 if name == "independent" else 5.0
    levels = [
        {
            "t": t,
            "effective": mean(1 + share * (number - 1), share * error),
            "entropy": mean(math.log(number), 0.02),
            "surprise": mean(math.log(number) + wrong, 0.05),
            "true_probability": mean(1 / number, 0.1 / number),
            "irreducible": mean(loss, 0.01 * loss),
            "reached": mean(loss, 0.01 * loss),
            "weight": 1.0,
        }
        for t, number, loss in zip(LEVELS, numbers, losses, strict=True)
    ]
    estimate = "estimated from 20,000 pairs" if name == "assignment" else ""
    whole = {"coupling": name, "estimate": estimate, "given": given, "images": 1797}
    return whole | {"probes": 200, "candidates": mean(1797 * share), "levels": levels}


def noise_of(name, labels=()):
    *_, information, kl = MIXED[name]
    return {
        "coupling": name,
        "estimate": "",
        "images": 1797,
        "pairs": 2000,
        "shift_square": mean(-0.001, 0.01),
        "square": mean(0.8, 0.003),
        "alignment": mean(1.2, 0.02),
        "direction_shift": [0.1, 0.0, -0.4],
        "spectrum": [1.1, 1.0, 0.8],
        "spectrum_error": [0.03, 0.03, 0.03],
        "kl": mean(kl, 0.02 if kl else 0.0),
        "information": mean(information, 0.02),
        "per_label": {label: noise_of(name) for label in labels},
    }


def analysed(number, name):
    shown = [
        {"t": t, "x_t": f"pictures/x{number}.png", "denoised": "pictures/d.png"} for t in LEVELS
    ]
    row = {"label": "batch 128", "measured": mean(1.9, 0.02), "published": 1.93, "unit": "%"}
    papers = {"title": f"Distance reduction, {name}", "stands_for": "Table 2 of 2406.12303"}
    papers |= {"rows": [row, {"label": "other", "measured": mean(3.2, None), "published": None}]}
    papers |= {"pictures": [{"file": "pictures/d.png", "caption": "A map"}], "note": "As inferred."}
    given = [mixing_of(name, condition, 0.1) for condition in CONDITIONS]
    return {
        "name": name,
        "seconds": 3.2,
        "k": 64 if "knn" in name else None,
        "removable": math.log(64) - 63 / 64 if "knn" in name else None,
        "miscibility": mixing_of(name, "", 1.0),
        "given": given,
        "noise": noise_of(name, labels=("0", "1", "7")),
        "gaussian_fit": {"raw": 48.6, "bias": 48.23, "corrected": 0.37, "count": 50_000},
        "papers": [papers],
        "pictures": [{"row": 17, "truth": "pictures/d.png", "files": shown}],
        "trained": None,
    }


def made_analysis():
    """A made-up analysis.json."""
    return {
        "format": 1,
        "command": "immiscible analyse --data digits --coupling knn:k=64",
        "date": "2026-11-23",
        "hardware": "2 CPU cores",
        "versions": {"torch": "2.13.0"},
        "seconds": 60.0,
        "data": {
            "name": "digits",
            "note": "8 x 8 digits",
            "images": 1797,
            "shape": [1, 8, 8],
            "rms": 0.85,
            "mirrored": False,
            "classes": ["zero", "one"],
            "masked": False,
            "cond": ["label"],
        },
        "path": {"kind": "FlowPath", "weighting": "uniform"},
        "levels": list(LEVELS),
        "probes": 200,
        "seed": 0,
        "couplings": [analysed(number, name) for number, name in enumerate(MIXED)],
        "papers": None,
        "trained": {"stability": {"title": "Perturbed noise", "rows": [], "note": "10, 20, 30%"}},
        "given_summary": "Given the label 5.19 nats remain mixed.",
        "advice": {"recommends": False, "sentences": ["It is not known what helps."]},
    }
