"""What training steps are fed with: the micro-batches of a rank, paired with noise."""

from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import islice

import torch

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings.paired_loader import PairedBatches, PairedLoader
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.condition_dropout import drop_labels, drop_text
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.pixels import Pixels
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams


@dataclass(frozen=True)
class Feed:
    """The micro-batches of one rank, counted from step 0 on: functions of the recipe alone.

    Args:
        recipe: names the seed, the batch size, scaling and what else matters.
        dataset: the data.
        device: where the model is.
        rank: this process.
        world: number of processes.
        codec: makes of pictures what is diffused.
    """

    recipe: Recipe
    dataset: DataSet
    device: torch.device
    rank: int = 0
    world: int = 1
    codec: Codec = field(default_factory=Pixels)

    def seen(self, cond: Cond | None, rng: RandomStreams) -> Cond | None:
        """What the network is told of the conditions."""
        if not self.recipe.conditional or cond is None:
            return None
        share, classes = self.recipe.cond_drop_prob, self.dataset.num_classes
        if self.recipe.by_text and isinstance(self.codec, LatentCodec):
            return drop_text(cond, self.codec.empty, share, rng.labels) if share else cond
        if not share or classes is None:
            return cond
        return drop_labels(cond, classes, share, rng.labels)

    def streams(self, index: int) -> RandomStreams:
        """The random streams of a micro-batch: it is keyed as if it were a rank."""
        step, micro = divmod(index, self.recipe.gradient_accumulation_steps)
        return RandomStreams(self.recipe.seed, step, micro * self.world + self.rank, self.device)

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Batches from training step ``step`` onward."""
        return self.dataset.batches(
            self.recipe.batch_size,
            self.recipe.seed,
            start=step,
            rank=self.rank,
            world=self.world,
            gradient_accumulation_steps=self.recipe.gradient_accumulation_steps,
        )

    def starting_at(self, index: int) -> Generator[Batch, None, None]:
        """The micro-batches from number ``index`` on."""
        step, micro = divmod(index, self.recipe.gradient_accumulation_steps)
        made = self.batches(step)
        for _ in islice(made, micro):
            pass
        return made

    def pairs(self, step: int, coupling: Coupling) -> PairedBatches:
        """The data from a step on, scaled and on the device, each with its noise and conditions."""
        loader = PairedLoader(
            self,
            coupling,
            self.prepare,
            streams=self.streams,
            device=self.device,
            ahead=self.recipe.prefetch,
            start=step * self.recipe.gradient_accumulation_steps,
        )
        return iter(loader)

    def prepare(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The batch on the device, encoded and scaled, as the model sees it.

        With labels, which the coupling may use even if the model does not. ``generator`` is what
        the codec draws from.
        """
        return self.recipe.as_seen(self.codec.encode(batch.to(self.device), generator))
