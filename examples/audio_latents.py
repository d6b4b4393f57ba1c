"""An application of one's own: audio latents ``[channels, time]``, in one file.

A task says what differs from images: the data, how samples are scored. Trainer, checkpoints,
pairing, ``load_run`` and ``compare`` take it as they take images:
``python examples/audio_latents.py --coupling knn:k=4 --steps 500``.
"""

import argparse
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.evaluation.evaluator import EvalResult
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.models import MLP
from immiscible_diffusion.training.ema import EMAConfig
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import EvalConfig, Task, TaskConfig
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.batch import Batch


class Tones(DataSet):
    """Decaying tones of four pitches in two channels: stands for latents of an audio codec."""

    name, shape, num_classes = "tones", (2, 32), 4

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return the tones at ``indices`` with their pitch; augmented by phase when training."""
        pitch = indices % self.num_classes
        phase = 0.4 * indices
        if generator is not None:
            phase = torch.rand(len(indices), generator=generator)
        time = torch.arange(32) / 32
        angle = 2 * math.pi * ((pitch + 2)[:, None] * time + phase[:, None])
        tones = torch.stack([angle.sin(), angle.cos()], dim=1) * torch.exp(-time)
        return Batch(tones, {"label": pitch})


@dataclass(frozen=True)
class AudioLatents(TaskConfig):
    """Audio latents with pitch labels."""

    data: int = 512
    eval: EvalConfig = field(default_factory=EvalConfig)

    def build(self, recipe: Recipe, device: torch.device, dataset: DataSet | None = None) -> Task:
        """Return the task with its data."""
        return AudioTask(recipe, device, dataset)

    def tiny(self) -> "AudioLatents":
        """Shrink to a smoke run."""
        return replace(self, data=64)


class AudioTask(Task):
    """Audio latents: loaded from ``Tones``, scored by their spectrum."""

    def load_data(self, split: str) -> DataSet:
        """Return the tones."""
        return Tones(self.recipe.task.data)

    def validation_data(self) -> tuple[DataSet, str]:
        """Return the training data: there are no others."""
        return self.dataset, "train"

    def evaluator(self, config: EvalConfig | None = None, max_real: int | None = None):
        """Return what scores samples: the distance of their mean spectrum from that of the data."""
        real = self.dataset.batch(torch.arange(len(self.dataset))).data

        def score(pipeline, model, *, seed, step, **_) -> EvalResult:
            samples = torch.cat([data for data, _ in pipeline(model, len(real), seed=seed)])
            spectra = [torch.fft.rfft(x).abs().mean(dim=0) for x in (real, samples)]
            return EvalResult({"spectral_distance": float((spectra[0] - spectra[1]).norm())})

        return score


def audio_flow() -> Recipe:
    """Flow matching on audio latents, conditioned on pitch: seconds on a CPU."""
    return Recipe(
        name="audio-flow",
        task=AudioLatents(),
        model=MLP(width=128, depth=2),
        conditional=True,
        optim=OptimizerConfig(lr=2e-3, warmup_steps=50, lr_schedule="cosine"),
        ema=EMAConfig(0.99, warmup=True),
        batch_size=64,
        steps=500,
        preview_every=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coupling", default="knn:k=4")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/audio"))
    options = parser.parse_args()
    recipe = replace(audio_flow(), coupling=options.coupling, steps=options.steps)
    Trainer(recipe, RunDir.open(options.out, recipe), device="cpu").train()
    run = load_run(options.out, "cpu")
    result = run.task.evaluator()(run.pipeline(), run.model, seed=0, step=run.step)
    print(f"{options.out}: {dict(result.scores)}")


if __name__ == "__main__":
    main()
