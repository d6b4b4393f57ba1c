"""Pictures in the report: sample grids at equal training steps, images on their way from noise."""

from html import escape
from pathlib import Path

from immiscible_diffusion.reporting.compare.results import Comparison, Trial
from immiscible_diffusion.reporting.elements import image

_COLUMNS = 4  # steps shown in the sample grids: as many as fit a desk screen


def samples_section(comparison: Comparison, folder: Path, note: str) -> str:
    """Grids of one seed, a row for each coupling, a column for each of some training steps."""
    seed = next((s for s in comparison.seeds if _with_grids(comparison, s)), None)
    if seed is None and comparison.policies:
        return ""
    if seed is None:
        return "<h2>Samples</h2><p>No sample grids were recorded.</p>"
    cells = _with_grids(comparison, seed)
    steps = _spread(sorted({int(step) for cell in cells.values() for step in cell.grids or {}}))
    header = "".join(f"<th>step {step:,}</th>" for step in steps)
    rows = []
    for entry in comparison.couplings:
        grids = (cells[entry.name].grids or {}) if entry.name in cells else {}
        images = [
            image(folder, grids.get(str(step)), f"Samples: {entry.label}, step {step:,}")
            for step in steps
        ]
        shown = "".join(f"<td>{grid}</td>" for grid in images)
        rows.append(f"<tr><td>{escape(entry.label)}</td>{shown}</tr>")
    caption = (
        f"Samples at equal training steps, seed {seed}, from the same start noise in every row. "
    )
    return (
        '<h2>Samples</h2>\n<figure><div class="scroll"><table class="grids">'
        f"<tr><th>Coupling</th>{header}</tr>{''.join(rows)}</table></div>"
        f"<figcaption>{escape(caption + note)}</figcaption></figure>"
    )


def denoising_section(comparison: Comparison, folder: Path, note: str) -> str:
    """The same start noises denoised by each coupling's network; nothing where none were drawn."""
    seed = next((s for s in comparison.seeds if _with_strips(comparison, s)), None)
    if seed is None:
        return ""
    cells = _with_strips(comparison, seed)
    rows = "".join(
        f"<tr><td>{escape(entry.label)}</td><td>"
        f"{image(folder, cells[entry.name].strip, f'Denoising: {entry.label}')}</td></tr>"
        for entry in comparison.couplings
        if entry.name in cells
    )
    caption = (
        f"From noise (left) to image (right) after the last training step, seed {seed}, the same "
        "start noise for every coupling. Two rows for each image: what the network saw, scaled to "
        "equal size, and the image it took it for. The less an early guess differs from the last, "
        "the straighter the path. "
    )
    return (
        '<h2>Denoising</h2>\n<figure><div class="scroll"><table class="grids strips">'
        f"<tr><th>Coupling</th><th>noise to image</th></tr>{rows}</table></div>"
        f"<figcaption>{escape(caption + note)}</figcaption></figure>"
    )


def _with_grids(comparison: Comparison, seed: int) -> dict[str, Trial]:
    return {cell.coupling: cell for cell in comparison.cells if cell.seed == seed and cell.grids}


def _with_strips(comparison: Comparison, seed: int) -> dict[str, Trial]:
    return {cell.coupling: cell for cell in comparison.cells if cell.seed == seed and cell.strip}


def _spread(steps: list[int]) -> list[int]:
    """Choose at most four steps, evenly spread in their order, the first and last among them."""
    if len(steps) <= _COLUMNS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (_COLUMNS - 1))] for i in range(_COLUMNS)]
