"""A small VAE: made, trained, and gone on with after an interruption."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.images import draw_flips
from immiscible_diffusion.data.sampler import KeyedSampler
from immiscible_diffusion.smallsd.settings import VAESettings
from immiscible_diffusion.smallsd.theirs import diffusers
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.random import RandomStreams, key
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard

WARMUP = 50
CLIP = 1.0
CURVE_POINTS = 5


def make_vae(settings: VAESettings, shape: tuple[int, ...], seed: int) -> Any:
    """An ``AutoencoderKL`` with random weights for pictures ``shape`` = (C, H, W)."""
    levels = len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "small vae"))
        return diffusers("AutoencoderKL")(
            in_channels=shape[0],
            out_channels=shape[0],
            latent_channels=settings.latent_channels,
            block_out_channels=settings.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=settings.layers,
            norm_num_groups=settings.groups,
            sample_size=shape[1],
        )


def vae_loss(vae: Any, pictures: Tensor, generator: torch.Generator, how: VAESettings) -> Tensor:
    """Squared and absolute error of a drawn reconstruction, and a little KL from N(0, I)."""
    posterior = vae.encode(pictures).latent_dist
    error = vae.decode(posterior.sample(generator)).sample - pictures
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return error.pow(2).mean() + how.l1 * error.abs().mean() + how.kl * kl


@dataclass
class VAETraining:
    """Training of a VAE, a function of its settings and seed however often it is interrupted.

    Attributes:
        vae: what is trained, in place.
        images: the pictures.
        rows: which of them may be seen, ``[N]`` int64.
        settings: how.
        seed: of order, mirroring and the latents drawn.
        state: file to go on from; None = none is kept.
        every: steps between such files.
        measure: the figure for the curve, of the VAE.
        curve: ``[step, figure]``, about five.
        seconds: of processor time spent so far, interruptions left out.
    """

    vae: Any
    images: DataSet
    rows: Tensor
    settings: VAESettings
    seed: int
    state: Path | None = None
    every: int = 100
    measure: Callable[[Any], float] | None = None
    curve: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optim = torch.optim.AdamW(
            self.vae.parameters(), lr=self.settings.lr, betas=(0.9, 0.99), weight_decay=0.0
        )
        count = min(self.settings.batch_size, len(self.rows))
        self.order = KeyedSampler(len(self.rows), count, key(self.seed, "small vae order"))

    def run(self, told: Callable[[int, float], None], started: int = 0) -> None:
        """Train from step ``started`` to the end, telling steps done and the loss."""
        steps = self.settings.steps
        marks = {round(steps * (i + 1) / CURVE_POINTS) for i in range(CURVE_POINTS)}
        self.vae.train().requires_grad_(True)
        with InterruptGuard() as guard:
            for step in range(started, steps):
                began = time.process_time()
                loss = self._step(step)
                self.seconds += time.process_time() - began
                told(step + 1, loss)
                if step + 1 in marks and self.measure is not None:
                    self.curve.append([step + 1, self.measure(self.vae.eval())])
                    self.vae.train()
                if (step + 1) % self.every == 0 or guard.received is not None:
                    self.save(step + 1)
                if guard.received is not None and step + 1 < steps:
                    text = f"stopped at step {step + 1} of the VAE; the same command goes on"
                    raise Interrupted(guard.received, text)
        self.vae.eval().requires_grad_(False)

    def _step(self, step: int) -> float:
        streams = RandomStreams(self.seed, step)
        for group in self.optim.param_groups:
            group["lr"] = self.settings.lr * rate(step, self.settings.steps)
        loss = vae_loss(self.vae, self._pictures(step), streams.encode, self.settings)
        self.optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), CLIP)
        self.optim.step()
        return loss.item()

    def _pictures(self, step: int) -> Tensor:
        data = self.images.batch(self.rows[self.order.indices(step)]).data
        flips = draw_flips(len(data), self.settings.flip, RandomStreams(self.seed, step).augment)
        return data if flips is None else torch.where(flips.view(-1, 1, 1, 1), data.flip(-1), data)

    def save(self, step: int) -> None:
        """Write what is needed to go on after ``step`` steps."""
        if self.state is None:
            return
        with atomic_path(self.state) as temporary:
            torch.save(
                {
                    "step": step,
                    "vae": self.vae.state_dict(),
                    "optimizer": self.optim.state_dict(),
                    "curve": self.curve,
                    "seconds": self.seconds,
                },
                temporary,
            )

    def resume(self) -> int:
        """Go back to the state that was written; the steps it had done, 0 if there is none."""
        if self.state is None or not self.state.is_file():
            return 0
        try:
            found = torch.load(self.state, map_location="cpu", weights_only=True)
            self.vae.load_state_dict(found["vae"])
            self.optim.load_state_dict(found["optimizer"])
            self.curve = [list(point) for point in found["curve"]]
            self.seconds = float(found["seconds"])
            return int(found["step"])
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
            raise ValueError(
                f"{self.state} cannot be read ({error}); remove it to start the VAE anew"
            ) from error


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at ``step``: linear warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(1, steps // 4)))
    return warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))
