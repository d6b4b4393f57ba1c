"""What policies did in the simulator: scores with intervals, and a film."""

from html import escape
from pathlib import Path

from immiscible_diffusion.reporting.compare.results import Comparison, PolicyEntry
from immiscible_diffusion.reporting.elements import image, table

_HEADER = ["Coupling", "Score", "less the baseline's", "Success", "Mean of the last", "Best"]
_HEADER += ["Plan, ms", "Seeds"]


def policy_section(comparison: Comparison, folder: Path, note: str) -> str:
    """Scores of every coupling and the film; nothing where no policy was at work."""
    if not comparison.policies:
        return ""
    labels = {entry.name: entry.label for entry in comparison.couplings}
    rows = [_row(labels[entry.coupling], entry) for entry in comparison.policies]
    episodes = comparison.policies[0].episodes
    text = (
        f"Score: the largest share of the goal that was covered, as a share of 95%, mean over "
        f"{episodes} episodes from fixed starts, the same for every coupling and seed, after the "
        "last training step. Success: more than 95% was covered. In brackets 95% intervals: of "
        "scores by a bootstrap over seeds and episodes, of shares by Wilson for one seed's "
        "episodes. The mean of the last evaluated checkpoints and the best of them are the papers' "
        "figures; the best was chosen on the episodes that judge it. A gain whose interval holds 0 "
        "is not resolved."
    )
    film = ""
    if comparison.film is not None:
        picture = image(folder, comparison.film, "Policies at work, a row for each coupling")
        caption = "The first seed's policies at work on the same episodes; a row for each coupling."
        film = (
            f'<figure><div class="scroll film">{picture}</div>'
            f"<figcaption>{escape(f'{caption} {note}'.strip())}</figcaption></figure>"
        )
    drawn = table((_HEADER, rows), comparison)
    return f'<h2>In the simulator</h2>\n{drawn}\n<p class="note">{escape(text)}</p>\n{film}'


def _row(label: str, entry: PolicyEntry) -> list[str]:
    return [
        label,
        _figure(entry.score),
        "-" if entry.gain is None else _figure(entry.gain, signed=True),
        _figure(entry.success),
        f"{entry.last:.3f}",
        f"{entry.best:.3f}",
        f"{entry.latency_ms:.0f}",
        str(entry.seeds),
    ]


def _figure(values: tuple[float, float, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    value, low, high = (f"{number:{sign}.3f}" for number in values)
    return f"{value} ({low} to {high})"
