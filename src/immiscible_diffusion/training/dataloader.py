"""The training data of one rank: its parts of every step, from any step on."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from immiscible_diffusion.couplings import PairedBatch
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.diffusion.losses import Loss
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import RandomStreams


@dataclass(frozen=True)
class TrainDataLoader:
    """What one rank trains on: functions of the seed and of ``parts`` alone, however many ranks there are.

    The global batch of a step is cut into ``parts``, each of which has random streams of its own, is encoded, and is
    paired as one. A part goes to one rank, as a micro-batch of its own. Where ranks do not divide the parts, each of
    ``shares`` ranks loads and pairs the whole part and trains its share of the rows, in as many pieces as give the
    micro-batches that are asked for.

    Args:
        dataset: the data.
        batch_size: samples of a step, over all ranks and micro-batches.
        seed: the run's.
        device: where random numbers are drawn.
        rank: of this process.
        world: number of processes.
        gradient_accumulation_steps: micro-batches of a rank that are asked for; more where ``parts`` ask for them.
        num_workers: processes that load.
        parts: of a step; by default a micro-batch of a rank is one.

    Raises:
        ValueError: the batch does not divide into the micro-batches of ``parts``.
    """

    dataset: DataSet
    batch_size: int
    seed: int
    device: torch.device
    rank: int = 0
    world: int = 1
    gradient_accumulation_steps: int = 1
    num_workers: int = 0
    parts: int | None = None

    def __post_init__(self) -> None:
        if self.parts is None or self.batch_size % (self.parts * self.shares * self.num_pieces) == 0:
            return  # by default the data set checks it, where it divides the batch
        *few, most = (str(number) for number in range(1, self.batch_size + 1) if self.batch_size % number == 0)
        processes = f"{', '.join(few)} or {most} processes" if few else "1 process"
        # an old checkpoint does not say its parts: they are those of this start
        cut = "these are" if self.parts == self.world * self.gradient_accumulation_steps else "this run was cut into"
        raise ValueError(
            f"{cut} {self.parts} part{'s' * (self.parts > 1)}; with its batch of {self.batch_size} it resumes with "
            f"{processes} and gradient_accumulation_steps 1, not {self.world} x {self.gradient_accumulation_steps}"
        )

    def __str__(self) -> str:
        shared = f", each shared by {self.shares}" if self.shares > 1 else ""
        return f"{self.num_parts} part{'s' * (self.num_parts > 1)} a step, {self.parts_per_step} to a process{shared}"

    @property
    def num_parts(self) -> int:
        """``parts``, or its default."""
        return self.parts or self.world * self.gradient_accumulation_steps

    @property
    def groups(self) -> int:
        """Ranks r, r + groups, ... share the parts r, r + groups, ... of every step (r < groups)."""
        return math.gcd(self.num_parts, self.world)

    @property
    def parts_per_step(self) -> int:
        """Parts of a step that this rank sees."""
        return self.num_parts // self.groups

    @property
    def shares(self) -> int:
        """Ranks that share a part."""
        return self.world // self.groups

    @property
    def num_pieces(self) -> int:
        """Micro-batches that this rank's share of a part is trained in."""
        return -(-self.gradient_accumulation_steps // self.parts_per_step)

    def changes(self, model: nn.Module, loss: Loss) -> list[str]:
        """Name what of ``model`` and ``loss`` the other micro-batches of a resumed run change."""
        divided = self.shares * self.num_pieces > 1
        dropout = {type(m).__name__ for m in model.modules() if divided and isinstance(m, _DropoutNd) and m.p > 0}
        norms = {type(m).__name__ for m in model.modules() if isinstance(m, _BatchNorm)}
        return sorted(dropout | norms) + ["noise of the loss"] * (divided and loss != loss.without_augmentation())

    def micro_batches(
        self, batch: PairedBatch, t: Tensor, cond: Cond | None
    ) -> Iterator[tuple[PairedBatch, Tensor, Cond | None]]:
        """Yield what this rank trains of a part, with its times and the conditions left, piece by piece.

        Piece n of part p draws dropout as part p + n ``num_parts`` would.
        """
        first, size = self.rank // self.groups * self.num_pieces, len(batch.data) // (self.shares * self.num_pieces)
        pairing = batch.pairing_seconds and batch.pairing_seconds / self.num_pieces
        mask = None if batch.mask is None else batch.mask.expand_as(batch.data)
        for number in range(first, first + self.num_pieces):
            rows = slice(number * size, (number + 1) * size)
            piece = PairedBatch(
                batch.data[rows],
                batch.noise[rows],
                mask=None if mask is None else mask[rows],
                rng=replace(batch.rng, rank=batch.rng.rank + number * self.num_parts),
                pairing_seconds=pairing,
                loading_seconds=batch.loading_seconds / self.num_pieces,
            )
            yield piece, t[rows], cond and {name: value[rows] for name, value in cond.items()}

    def starting_at(self, index: int) -> Generator[Batch, None, None]:
        """Yield this rank's parts from number ``index`` on, counted from step 0."""
        step, skipped = divmod(index, self.parts_per_step)
        loader = self.dataset.batches(
            self.batch_size,
            self.seed,
            start=step,
            rank=self.rank % self.groups,
            world=self.groups,
            gradient_accumulation_steps=self.parts_per_step,
            ahead=0,  # the thread that pairs makes them, or takes them from workers
            num_workers=self.num_workers,
        )
        for _ in islice(loader, skipped):
            pass
        return loader

    def __iter__(self) -> Generator[Batch, None, None]:
        return self.starting_at(0)

    def streams(self, index: int) -> RandomStreams:
        """Return the random streams of part ``index`` of this rank: it is keyed as if it were a rank."""
        step, number = divmod(index, self.parts_per_step)
        return RandomStreams(self.seed, step, number * self.groups + self.rank % self.groups, self.device)
