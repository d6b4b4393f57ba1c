"""From noise to data with a trained network."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion import samplers
from immiscible_diffusion.diffusion.paths import Cond, Model, Path
from immiscible_diffusion.utils.checks import PositiveInt, check_fields


class InitNoise(Protocol):
    """The distribution that sampling starts from; ``couplings.NoiseDistribution`` is one."""

    def color(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn N(0, I) ``noise`` ``[B, *shape]`` into noise of the distribution."""


class Pruning(Protocol):
    """Which noise sampling may start from; ``couplings.EmptyAxes`` is one."""

    def accepts(self, noise: Tensor, threshold: float) -> Tensor:
        """Return whether each of ``noise`` ``[B, *shape]`` may be, ``[B]``."""


@dataclass(frozen=True)
class SamplingPipeline:
    """Generates data with a network; sample i depends on ``(seed, i)``, not on batches or devices.

    Args:
        path: that the network was trained on.
        sampler: the method, its steps and the weight of guidance.
        shape: of one sample as it is diffused.
        device: where the network is.
        batch_size: samples at a time.
        conditions: the conditions of samples by index.
        unconditional: the conditions that guidance pushes away from.
        decode: turns what was diffused into data.
        init_noise: the distribution of the noise that the network was trained on, for a sampler with
            ``init_noise="matched"``.
        pruning: the directions without data, for a sampler with ``prune``.
    """

    path: Path
    sampler: samplers.SamplerConfig
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"
    batch_size: PositiveInt = 512
    conditions: Callable[[Sequence[int]], Cond | None] = lambda indices: None
    unconditional: Callable[[Cond], Cond] | None = None
    decode: Callable[[Tensor], Tensor] = lambda data: data
    init_noise: InitNoise | None = None
    pruning: Pruning | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sampler.init_noise == "matched" and self.init_noise is None:
            raise ValueError(
                "sampler.init_noise matched needs the distribution of the noise that the network "
                "was trained on; give init_noise=NoiseDistribution.measure(...)"
            )
        if self.sampler.prune is not None and self.pruning is None:
            raise ValueError("sampler.prune needs the directions without data; give pruning=EmptyAxes.fit(...)")
        if self.sampler.guidance != 1 and self.unconditional is None:
            raise ValueError("sampler.guidance needs unconditional=, what it pushes away from")

    def __call__(self, model: nn.Module, count: int | range, *, seed: int) -> Iterator[tuple[Tensor, int]]:
        """Yield batches ``[b, *shape]`` of ``count`` samples, each with its function evaluations.

        A range names the samples themselves: ranks that share a set generate one range each.
        """
        indices = range(count) if isinstance(count, int) else count
        for start in range(0, len(indices), self.batch_size):
            sampled = self.sample(model, indices[start : start + self.batch_size], seed=seed)
            yield sampled.data, sampled.nfe

    def sample(self, model: nn.Module, indices: Sequence[int], *, seed: int) -> samplers.SamplerOutput:
        """Generate the samples ``indices``, in whatever order, with their function evaluations."""
        sampled = self._sample(self._guided(model), indices, seed)
        passes = 1 if self.sampler.guidance == 1 else 2  # with the condition and without
        return samplers.SamplerOutput(self.decode(sampled.data), passes * sampled.nfe)

    def trajectories(self, model: nn.Module, count: int, *, seed: int, columns: int = 8) -> Tensor:
        """Generate ``count`` samples with what the network predicts on the way, in rows."""
        recording = samplers.RecordingModel(self._guided(model), self.path)
        last = self._sample(recording, range(count), seed).data
        return self.decode(samplers.trajectory_grid(recording.frames, last, columns))

    def with_steps(self, steps: int) -> "SamplingPipeline":
        """Return the pipeline with another number of sampling steps."""
        return dataclasses.replace(self, sampler=self.sampler.with_steps(steps))

    def _guided(self, model: nn.Module) -> Model:
        model = model.eval()
        if self.unconditional is None:
            return model
        return samplers.guided(model, self.sampler.guidance, self.unconditional)

    @torch.no_grad()
    def _sample(self, model: Model, indices: Sequence[int], seed: int) -> samplers.SamplerOutput:
        cond = self.conditions(indices)
        noise = samplers.start_noise(seed, indices, self.shape, self.device)
        if self.sampler.prune is not None and self.pruning is not None:
            accepts = partial(self.pruning.accepts, threshold=self.sampler.prune)
            noise = samplers.pruned_noise(seed, indices, noise, accepts)
        if self.sampler.init_noise == "matched" and self.init_noise is not None:
            noise = self.init_noise.color(noise, (cond or {}).get("label"))
        step_noise = partial(samplers.start_noise, seed, indices, self.shape, self.device)
        return self.sampler.sample(self.path, model, noise, cond=cond, step_noise=step_noise)
