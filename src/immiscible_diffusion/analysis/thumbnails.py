"""Points of a path and what the best network predicts from them, as small pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.miscibility import Shown
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

COLOURED = (1, 3)
CURVES, WIDTH, HEIGHT, FINER = 8, 128, 64, 4
# Okabe and Ito's palette, told apart with every common color blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#999999")


@dataclass(frozen=True)
class Look:
    """How a sample becomes a picture.

    Attributes:
        low: value that is black, or at the bottom of a plot.
        high: value that is white, or at the top.
        note: what is shown, where it is not the sample as a picture; or why nothing is.
        kind: picture, curves or none.
    """

    low: float
    high: float
    note: str
    kind: str

    @classmethod
    def of(cls, data: Tensor) -> "Look":
        """For data like ``data`` ``[N, *shape]``."""
        shape = tuple(data.shape[1:])
        low, high, said = _range(data)
        if len(shape) == 1 and shape[0] < 3:
            return cls(low, high, f"data of shape {list(shape)} are not shown as pictures", "none")
        if len(shape) < 3:
            drawn = "its numbers as one curve" if len(shape) == 1 else "a curve for each column"
            most = f", the first {CURVES}" if len(shape) == 2 and shape[1] > CURVES else ""
            return cls(low, high, f"pictures show a sample as {drawn}{most}{said}", "curves")
        if len(shape) > 4:
            return cls(low, high, f"data of shape {list(shape)} are not shown as pictures", "none")
        return cls(low, high, f"{_what(shape)}{said}", "picture")

    def save(self, sample: Tensor, path: Path) -> None:
        """Write ``sample`` ``[*shape]`` as a PNG."""
        with require_extra("train", "writing pictures"):
            from PIL import Image
        levels = (sample.detach().float().cpu() - self.low) / (self.high - self.low)
        if self.kind == "curves":
            picture = _curves(levels)
        else:
            gray = (plane(levels).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
            array = gray.contiguous().numpy()
            picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")


def plane(sample: Tensor) -> Tensor:
    """What is shown of ``sample``: ``[1 or 3, H, W]`` of an image, a latent or a video."""
    if sample.ndim == 4:
        colors_first = sample.shape[0] in COLOURED or sample.shape[1] not in COLOURED
        middle = sample.shape[1 if colors_first else 0] // 2
        sample = sample[:, middle] if colors_first else sample[middle]
    return sample if len(sample) in COLOURED else sample[:1]


def _what(shape: tuple[int, ...]) -> str:
    parts = []
    if len(shape) == 4:
        parts.append("the frame in the middle")
    channels = shape[0] if len(shape) == 3 or shape[1] not in COLOURED else shape[1]
    if len(shape) == 4 and shape[0] in COLOURED:
        channels = shape[0]
    if channels not in COLOURED:
        parts.append("the first channel, gray")
    return f"pictures show {' and '.join(parts)}" if parts else ""


def _range(data: Tensor) -> tuple[float, float, str]:
    """What is black and what is white, and that it was chosen."""
    some = data[torch.linspace(0, len(data) - 1, min(len(data), 200)).long()].flatten().float()
    low, high = float(some.min()), float(some.max())
    if -1 <= low < 0 and high <= 1:
        return -1.0, 1.0, ""
    if low >= 0 and high <= 1:
        return 0.0, 1.0, ""
    step = max(1, len(some) // 1_000_000)  # what quantile takes
    low, high = some[::step].quantile(torch.tensor([0.005, 0.995])).tolist()
    if not high > low:
        low, high = low - 1, low + 1
    joint = "; values" if data.ndim > 1 else "values"
    return low, high, f"{joint} from {low:.3g} to {high:.3g}"


def _curves(levels: Tensor) -> Any:
    """Columns of ``levels`` ``[T, A]`` in 0 ... 1 as curves over T."""
    from PIL import Image, ImageDraw

    columns = levels[:, None] if levels.ndim == 1 else levels
    width, height = FINER * WIDTH, FINER * HEIGHT  # made small in the end, for smooth lines
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, width - 1, height - 1), outline="#BBBBBB", width=FINER)
    across = torch.linspace(2 * FINER, width - 2 * FINER, max(2, len(columns))).tolist()
    for number in range(min(CURVES, columns.shape[1])):
        # A margin of half their range above and below: noise reaches beyond the data.
        down = height * (1 - (columns[:, number].clamp(-0.5, 1.5) + 0.5) / 2)
        heights = down.clamp(FINER, height - FINER).tolist() * (2 if len(columns) == 1 else 1)
        points = list(zip(across, heights, strict=True))
        pen.line(points, fill=COLOURS[number], width=2 * FINER, joint="curve")
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def write_pictures(
    shown: Shown, levels: list[tuple[float, float]], data: Tensor, look: Look, stem: Path
) -> list[dict[str, Any]]:
    """Write the truth, ``x_t`` and its best prediction of every probe in ``shown``.

    Args:
        shown: from ``miscibility(show=...)``.
        levels: of each level its ``t`` and how much longer than a sample ``x_t`` is: its picture is
            divided by that.
        data: ``[N, *shape]``.
        look: how they are drawn.
        stem: of the files: ``folder/pictures/name``.

    Returns:
        As analysis.json has them, with files named from the folder.
    """
    if look.kind == "none":
        return []

    def save(sample: Tensor, ending: str) -> str:
        path = stem.with_name(f"{stem.name}-{ending}.png")
        look.save(sample, path)
        return f"{path.parent.name}/{path.name}"

    found = []
    for index, row in enumerate(shown.rows.tolist()):
        files = []
        for level, (t, size) in enumerate(levels):
            x_t = save(shown.x_t[level, index] / size, f"{index}-{level}-x")
            denoised = save(shown.denoised[level, index], f"{index}-{level}-best")
            files.append({"t": t, "x_t": x_t, "denoised": denoised})
        truth = save(data[row], f"{index}-truth")
        found.append({"row": row, "files": files, "truth": truth})
    return found
