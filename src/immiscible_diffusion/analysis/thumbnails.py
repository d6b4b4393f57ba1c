"""Noisy points and the optimal denoiser's predictions as small images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.analysis.noise_density import PairDensity, take
from immiscible_diffusion.analysis.posterior import OptimalDenoiser, mixing
from immiscible_diffusion.analysis.sample_pairs import choose_rows, draw_noise
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data.in_memory import join_notes
from immiscible_diffusion.reporting.analysis.records import ThumbnailLevel, Thumbnails
from immiscible_diffusion.reporting.plotting import PALETTE
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra

COLOR_CHANNELS = (1, 3)
CURVES, WIDTH, HEIGHT, FINER = 8, 128, 64, 4
COLORS = (*PALETTE, "#222222", "#999999")


@dataclass(frozen=True)
class ThumbnailStyle:
    """How a sample is drawn."""

    low: float  # value that is black, or at the bottom of a plot
    high: float  # value that is white, or at the top
    note: str  # what is drawn, where it is not the sample as an image; or why nothing is
    kind: str  # image, curves or none

    @classmethod
    def of(cls, data: Tensor) -> "ThumbnailStyle":
        """For data like ``data`` ``[N, *shape]``."""
        shape = tuple(data.shape[1:])
        low, high, values = _range(data)
        if shape in ((1,), (2,)) or len(shape) > 4:
            return cls(low, high, f"samples of shape {list(shape)} are not drawn", "none")
        if len(shape) < 3:
            drawn = "its numbers as one curve" if len(shape) == 1 else "a curve for each column"
            most = f", the first {CURVES}" if len(shape) == 2 and shape[1] > CURVES else ""
            note = join_notes(f"images show a sample as {drawn}{most}", values)
            return cls(low, high, note, "curves")
        parts = ["the frame in the middle"] if len(shape) == 4 else []
        if len(frame(data[0])) not in COLOR_CHANNELS:
            parts.append("the first channel, gray")
        drawn = f"images show {' and '.join(parts)}" if parts else ""
        return cls(low, high, join_notes(drawn, values), "image")

    def save(self, sample: Tensor, path: Path) -> None:
        """Write ``sample`` ``[*shape]`` as a PNG."""
        with require_extra("train", "writing images"):
            from PIL import Image
        levels = (sample.detach().float().cpu() - self.low) / (self.high - self.low)
        if self.kind == "curves":
            image = _curves(levels)
        else:
            gray = (plane(levels).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
            array = gray.contiguous().numpy()
            image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        with atomic_path(path) as temporary:
            image.save(temporary, format="PNG")


def frame(sample: Tensor) -> Tensor:
    """``[C, H, W]``: an image or latent, or the middle frame of a video."""
    if sample.ndim < 4:
        return sample
    channels_first = sample.shape[0] in COLOR_CHANNELS or sample.shape[1] not in COLOR_CHANNELS
    middle = sample.shape[1 if channels_first else 0] // 2
    return sample[:, middle] if channels_first else sample[middle]


def plane(sample: Tensor) -> Tensor:
    """``[1 or 3, H, W]``: what is drawn of an image, a latent or a video."""
    channels = frame(sample)
    return channels if len(channels) in COLOR_CHANNELS else channels[:1]


def _range(data: Tensor) -> tuple[float, float, str]:
    """The values drawn black and white, and a note where they do not follow from the data."""
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
    return low, high, f"values from {low:.3g} to {high:.3g}"


def _curves(levels: Tensor) -> Any:
    """Columns of ``levels`` ``[T, A]`` in 0 ... 1 as curves over T."""
    from PIL import Image, ImageDraw

    columns = levels[:, None] if levels.ndim == 1 else levels
    width, height = FINER * WIDTH, FINER * HEIGHT  # made small in the end, for smooth lines
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, width - 1, height - 1), outline="#BBBBBB", width=FINER)
    across = torch.linspace(2 * FINER, width - 2 * FINER, max(2, len(columns))).tolist()
    for number in range(min(CURVES, columns.shape[1])):
        # A margin of half their range above and below: noise reaches beyond the data.
        down = height * (1 - (columns[:, number].clamp(-0.5, 1.5) + 0.5) / 2)
        heights = down.clamp(FINER, height - FINER).tolist() * (2 if len(columns) == 1 else 1)
        points = list(zip(across, heights, strict=True))
        pen.line(points, fill=COLORS[number], width=2 * FINER, joint="curve")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def write_thumbnails(
    images: Batch, coupling: Coupling, density: PairDensity, config: AnalysisConfig, style: ThumbnailStyle, stem: Path
) -> tuple[Thumbnails, ...]:
    """Write some samples, their noisy points and the optimal denoiser's predictions as PNG files.

    They are the first noisy points of ``miscibility``. A noisy point that is longer than a sample
    (sigma above 1) is divided by sigma.

    Args:
        images: all data, their conditions and mask.
        coupling: makes the noise.
        density: of the coupling.
        config: of the analysis.
        style: how samples are drawn.
        stem: of the files: ``folder/thumbnails/name``.
    """
    if style.kind == "none" or not config.thumbnails:
        return ()
    rows = choose_rows(len(images), config.probes, config.seed)
    noise = draw_noise(coupling, images, rows, seed=config.seed, batch_size=config.batch_size)
    rows, noise = rows[: config.thumbnails], noise[: config.thumbnails]
    data, denoiser = take(images, rows).data, OptimalDenoiser(images, density, config.path)

    def save(sample: Tensor, ending: str) -> str:
        path = stem.with_name(f"{stem.name}-{ending}.png")
        style.save(sample, path)
        return f"{path.parent.name}/{path.name}"

    levels: list[list[ThumbnailLevel]] = [[] for _ in rows]
    for number, t in enumerate(config.levels):
        times = torch.full((len(rows),), t, dtype=torch.float64, device=data.device)
        x_t = config.path.sample(data.double(), noise.double(), times).x_t
        predictions, size = denoiser(x_t, t), max(1.0, mixing(config.path, t).sigma)
        for index, (point, prediction) in enumerate(zip(x_t, predictions, strict=True)):
            own = f"{index}-{number}"
            files = save(point.float() / size, f"{own}-x"), save(prediction, f"{own}-best")
            levels[index].append(ThumbnailLevel(t, *files))
    return tuple(
        Thumbnails(row, save(data[index], f"{index}-truth"), tuple(levels[index]))
        for index, row in enumerate(rows.tolist())
    )
